"""Our jobs under a real Slurm of two nodes on this machine."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cluster.conftest import TINY, Slurm, same

pytestmark = pytest.mark.slow


def make(slurm: Slurm, folder: Path, *arguments: str) -> str:
    return slurm("make", "--no-print-directory", "reproduce-ptb", "LAUNCH=slurm", f"RESULTS={folder}", *arguments)


def status(slurm: Slurm, folder: Path) -> dict[str, str]:
    """State and the rest of the line, by run, of those that are there."""
    shown = slurm("make", "--no-print-directory", "status", f"RESULTS={folder}")
    return dict(re.findall(r"^ +(ptb/\S+) +(\S.*?) *$", shown, flags=re.MULTILINE))


def test_a_job_on_two_nodes_has_the_result_of_one_process(slurm: Slurm, tmp_path: Path, one_process: Any) -> None:
    arguments = ("SIZE=small", "ROWS=variational_tied", "EPOCHS=2", "NODES=2", f"ARGS={TINY}", "SLURM=--time=5")
    assert "1 submitted" in make(slurm, tmp_path, *arguments)
    file = tmp_path / "ptb/small/variational_tied/seed0.json"
    slurm.wait(lambda: file.exists() and not slurm.states(), 300, tmp_path / "runs/slurm")
    report = json.loads(file.read_text())
    assert report["provenance"]["hardware"]["devices"] == 2
    same(report, one_process(*TINY.split(), "--epochs", "2"))
    assert "All runs are there" in make(slurm, tmp_path, *arguments)
    assert re.fullmatch("done +2 of 13", status(slurm, tmp_path)["ptb/small/variational_tied/seed0"])


def test_an_array_fills_the_table_and_what_is_queued_is_not_submitted_twice(slurm: Slurm, tmp_path: Path) -> None:
    arguments = ("SIZE=small", "ROWS=moon zaremba", "EPOCHS=1", f"ARGS={TINY}", "SLURM=--time=5")
    slurm("scontrol", "update", "PartitionName=all", "State=DOWN")  # so that all of them wait
    try:
        assert "2 submitted" in make(slurm, tmp_path, *arguments)
        more = make(slurm, tmp_path, *arguments, "SEEDS=0 1")
        assert more.count("is not submitted again") == 2
        assert "2 submitted" in more
        assert "submitted;" not in make(slurm, tmp_path, *arguments, "SEEDS=0 1")
        waiting = status(slurm, tmp_path)
        assert len(waiting) == 4
        assert all(line.startswith("queued") for line in waiting.values())
    finally:
        slurm("scontrol", "update", "PartitionName=all", "State=UP")
    slurm.wait(lambda: "RUNNING" in slurm.states(), 30, tmp_path / "runs/slurm")
    assert any(line.startswith("running") for line in status(slurm, tmp_path).values())
    slurm.wait(lambda: not slurm.states(), 300, tmp_path / "runs/slurm")
    assert all(line.startswith("done") for line in status(slurm, tmp_path).values())
    files = sorted(tmp_path.glob("ptb/small/*/seed*.json"))
    assert [str(file.relative_to(tmp_path / "ptb/small")) for file in files] == [
        f"{row}/seed{seed}.json" for row in ("moon", "zaremba") for seed in (0, 1)
    ]
    assert len({json.loads(file.read_text())["metrics"]["test_ppl"] for file in files}) == 4
    table = slurm(sys.executable, "-m", "reproduction.table", "--results", str(tmp_path), "--experiment", "ptb")
    assert re.search(r"Moon et al\..*±", table)


def test_a_run_that_fails_is_shown_with_its_log(slurm: Slurm, tmp_path: Path) -> None:
    arguments = ("SIZE=small", "ROWS=moon", "SLURM=--time=5", f"ARGS={TINY} --model.init_args.hidden_size -1")
    make(slurm, tmp_path, *arguments)
    slurm.wait(lambda: not slurm.states(), 60, tmp_path / "runs/slurm")
    [line] = status(slurm, tmp_path).values()
    assert line.startswith("failed")
    log = tmp_path / "runs/ptb/small/moon/seed0/slurm.log"
    assert line.endswith(str(log))
    assert "error: " in log.read_text()
    assert "1 submitted" in make(slurm, tmp_path, *arguments)  # again
    slurm("scancel", "--me", "--full")
    slurm.wait(lambda: not slurm.states(), 30, tmp_path)


def test_a_job_that_is_signalled_in_mid_epoch_goes_on_there_and_ends_as_if_it_had_not_been(
    slurm: Slurm, tmp_path: Path, one_process: Any
) -> None:
    tiny = f"{TINY} --data.init_args.words 20000"  # so that an epoch takes seconds
    make(
        slurm, tmp_path, "SIZE=small", "ROWS=variational_tied", "EPOCHS=2", "NODES=2", f"ARGS={tiny}", "SLURM=--time=5"
    )
    logs, folder = tmp_path / "runs/slurm", tmp_path / "runs/ptb/small/variational_tied/seed0"
    file = tmp_path / "ptb/small/variational_tied/seed0.json"
    slurm.wait((folder / "checkpoints/last.ckpt").exists, 300, logs)  # of the first epoch
    [job] = slurm("squeue", "--noheader", "--format=%A").split()
    slurm("scancel", "--signal=USR1", job)
    slurm.wait(lambda: slurm.states() == ["PENDING"], 60, logs)
    loops = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["loops"]["fit_loop"]
    assert loops["epoch_progress"]["current"]["completed"] == 1
    assert 0 < loops["epoch_loop.batch_progress"]["current"]["completed"] < 1999
    slurm.wait(lambda: file.exists() and not slurm.states(), 300, logs)
    report = json.loads(file.read_text())
    assert len(report["provenance"]["resumed"]) == 1
    same(report, one_process(*tiny.split(), "--epochs", "2"))


def test_a_job_that_makes_no_progress_is_not_requeued_for_ever(slurm: Slurm, tmp_path: Path) -> None:
    starting = f"{TINY} --data tests.cluster.slow_start.RandomText"
    make(slurm, tmp_path, "SIZE=small", "ROWS=moon", "EPOCHS=1", f"ARGS={starting}", "SLURM=--time=5")
    logs = tmp_path / "runs/slurm"

    def is_gone() -> bool:
        # The job may end just now, which scancel would complain of.
        subprocess.run(["scancel", "--signal=USR1", "--me"], env=slurm.environment, capture_output=True)
        return not slurm.states()

    slurm.wait(is_gone, 30, logs)
    [log] = logs.glob("*.log")
    assert "the time limit came before anything was saved" in log.read_text()
