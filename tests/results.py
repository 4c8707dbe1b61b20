import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "results"
    path.mkdir()
    return path


@pytest.fixture
def write_result(folder: Path) -> Callable[..., Path]:
    """Write one result file; keywords replace keys of the file."""

    def write(experiment: str, group: str, row: str, seed: int = 0, **changes: Any) -> Path:
        sentiment = experiment == "sentiment" or group == "sentiment"
        metrics = (
            {"train_rmse": 0.12, "test_rmse": 0.15, "test_rmse_mc": None}
            if sentiment
            else {"valid_ppl": 90.0, "valid_ppl_lua": 88.7, "test_ppl": 85.0, "words_per_s": 31_200.0}
        )
        if experiment == "sentiment":
            metrics["constant_rmse"] = 0.1915
        epochs = changes.get("epochs", 3)
        curve = [
            {"epoch": e, "train_rmse": 0.2 / e, "test_rmse": 0.1 + 0.1 / e}
            if sentiment
            else {"epoch": e, "train_ppl": 100.0 / e, "valid_ppl": 100.0 + 100.0 / e, "valid_ppl_lua": None}
            for e in range(1, epochs + 1)
        ]
        data = {
            "experiment": experiment,
            "group": group,
            "row": row,
            "seed": seed,
            "epochs": epochs,
            "planned_epochs": 3,
            "tested_epoch": epochs,
            "parameters": 4_650_000,
            "metrics": metrics,
            "curve": curve,
            "config": {},
            "provenance": {
                "commit": "0123456789abcdef",
                "dirty": False,
                "date": "2026-01-02T03:04:05",
                "wall_time_s": 3723.4,
                "hardware": {"cpu": "Some CPU", "cores": 2, "gpu": None, "devices": 1},
                "versions": {"torch": "2.13.0"},
            },
        } | changes
        path = folder / experiment / group / row / f"seed{seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data), encoding="utf-8")
        return path

    return write


@pytest.fixture
def slurm_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put commands with these answers in Slurm's place; returns the file of what sbatch is given."""

    def put(status: int = 0, failing: str = "squeue", **answers: str) -> Path:
        for name, answer in answers.items():
            (tmp_path / f"{name}.answer").write_text(answer)
            command = tmp_path / name
            fails = f">&2; exit {status}" if status and name == failing else ""
            command.write_text(
                f"""#!/bin/bash
[[ {name} == sbatch ]] && printf '%s\\n' "$@" > {tmp_path}/sbatch.arguments
printf %s "$(<{tmp_path}/{name}.answer)" {fails}
"""
            )
            command.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        return tmp_path / "sbatch.arguments"

    return put
