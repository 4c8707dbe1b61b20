"""A run from start to result file."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_modules.experiment import Experiment

PACKAGES = ("torch", "lightning", "torchmetrics", "datasets", "numpy")


class Trainer(L.Trainer):
    """Lightning's trainer with one more entry point, `reproduce`.

    Args:
        args: those of Lightning's Trainer.
        tested_weights: which weights `reproduce` tests: those of the "last" epoch, or of the epoch with the "best"
            validation.
        kwargs: those of Lightning's Trainer.
    """

    run_config: dict[str, Any] = {}  # noqa: RUF012 -- set for each run by main.py
    """The resolved configuration, for the result file."""

    def __init__(self, *args: Any, tested_weights: Literal["last", "best"] = "last", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tested_weights = tested_weights

    def reproduce(
        self,
        model: Experiment,
        datamodule: L.LightningDataModule,
        result: Path,
        epochs: int | None = None,
    ) -> None:
        """Train, test, and write the result file. An interrupted run goes on from its last checkpoint.

        Args:
            model: to be trained.
            datamodule: the data.
            result: the file to write, RESULTS/EXPERIMENT/GROUP/ROW/seedK.json.
            epochs: stop after this many epochs of the schedule that trainer.max_epochs defines.

        Raises:
            ValueError: epochs is less than 1, or result has another form.
        """
        if epochs is not None and epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        name = re.search(r"([^/]+)/([^/]+)/([^/]+)/seed(\d+)\.json$", result.as_posix())
        if not name:
            raise ValueError(f"result must be .../EXPERIMENT/GROUP/ROW/seedK.json, got {result}")
        experiment, group, row, seed = *name.groups()[:3], int(name[4])
        model.provenance = [provenance()]
        planned_epochs = self.max_epochs or 0
        self.fit_loop.max_epochs = min(epochs or planned_epochs, planned_epochs)
        checkpoints = self.checkpoint_callback
        assert isinstance(checkpoints, ModelCheckpoint)
        last = Path(checkpoints.dirpath or "") / "last.ckpt"
        model.run_name = f"{experiment}/{group}/{row} seed {seed}"
        hardware = model.provenance[0]["hardware"] | {"devices": self.world_size}
        model.provenance[0]["hardware"] = hardware
        self.print(
            f"{model.run_name}: {self.max_epochs} of {planned_epochs} epochs on {hardware['gpu'] or hardware['cpu']}, "
            + (f"resumed from {last}" if last.exists() else f"checkpoints and logs in {self.default_root_dir}")
        )
        self.fit(model, datamodule=datamodule, ckpt_path=last if last.exists() else None)

        curve, attempts = model.curve, model.provenance  # loading the best checkpoint brings back its own
        test_start = time.perf_counter()
        best = checkpoints.best_model_path if self.tested_weights == "best" else None
        [test_metrics] = self.test(model, datamodule=datamodule, ckpt_path=best)
        test_seconds = time.perf_counter() - test_start

        tested_epoch = min(curve, key=lambda entry: entry[checkpoints.monitor or ""]) if best else curve[-1]
        if not self.is_global_zero:
            return
        report = {
            "experiment": experiment,
            "group": group,
            "row": row,
            "seed": seed,
            "epochs": len(curve),
            "planned_epochs": planned_epochs,
            "tested_epoch": tested_epoch["epoch"],
            "parameters": sum(p.numel() for p in model.parameters()),
            "metrics": _finite({k: v for k, v in tested_epoch.items() if k != "epoch"} | dict(test_metrics)),
            "curve": [_finite(entry) for entry in curve],
            "config": _without_paths(self.run_config),
            "provenance": attempts[0]
            | {"wall_time_s": sum(entry["seconds"] for entry in curve) + test_seconds, "resumed": attempts[1:]},
        }
        write_atomically(result, json.dumps(report, indent=2) + "\n")
        self.print(f"wrote {result}")

    def print(self, *values: object) -> None:
        """Print on the first process only."""
        if self.is_global_zero:
            print(*values, flush=True)


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """JSON has no nan and no infinity: a diverged value is null."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without the folders of the machine it ran on."""
    folders = ("default_root_dir", "data_dir", "result")
    return {
        name: _without_paths(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in folders
    }


def provenance() -> dict[str, Any]:
    """What a result must say about where it came from: commit, time, hardware, versions."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent)
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {
            "cpu": _cpu_name(),
            "cores": os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is either there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".part{os.getpid()}")
    part.write_text(text)
    part.replace(path)
