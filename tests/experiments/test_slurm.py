"""What is submitted to Slurm; the jobs themselves are tested in `tests/cluster`."""

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import launch
from experiments.launch import Plan
from experiments.runs import Run

ROOT = Path(launch.__file__).parents[1]
NASTY = "a b'; touch x; $(touch y)\n"


def plans(*seeds: int, results: str = "results") -> list[Plan]:
    runs = [Run("ptb", "small", "moon", seed) for seed in seeds]
    return [
        Plan(run, path, ["reproduce", "--data.init_args.data_dir", NASTY, "--result", str(path)], "missing", "")
        for run in runs
        if (path := run.result(Path(results)))
    ]


def test_without_slurm_there_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match='LAUNCH="slurm": there is no sbatch here; use a login node'):
        launch.submit(plans(0), tmp_path, [])


def test_what_is_not_in_the_queue_is_submitted_as_one_array(
    slurm_with: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Path.cwd()
    seen = slurm_with(
        squeue=f"7\tN/A\tPENDING\t{here}\trun.sbatch reproduce --result results/ptb/small/moon/seed1.json", sbatch="8"
    )
    options = ["--partition=gpu", "--comment=two words", "--nodes=2"]
    launch.submit(plans(0, 1, 2), tmp_path / "my logs", options)
    *given, tasks = seen.read_text().splitlines()
    assert given == [
        *("--parsable", *options, "--array=0-1"),
        *(f"--output={tmp_path}/my logs/%A_%a.log", "cluster/run.sbatch"),
    ]
    assert [path.name for path in sorted(Path(tasks).iterdir())] == ["0", "1"]
    assert (Path(tasks) / "1").read_text().split("\0") == [*plans(2)[0].arguments, ""], "text, never a command"
    assert capsys.readouterr().out.splitlines() == [
        "results/ptb/small/moon/seed1.json is not submitted again: job 7 is queued",
        f"job 8: 2 submitted; `make status` shows them, logs are in {tmp_path}/my logs",
    ]


def test_the_queue_names_the_results_of_an_array_whatever_blanks_their_paths_have(
    slurm_with: Callable[..., Path], tmp_path: Path
) -> None:
    slurm_with(squeue="", sbatch="8")
    launch.submit(plans(0, 1, results="my results"), tmp_path / "my logs", [])
    [tasks] = (tmp_path / "my logs").glob("submission*")
    line = "8_{0}\t{0}\t{1}\t{2}\t{2}/cluster/run.sbatch {3}"
    slurm_with(squeue="\n".join(line.format(*task, tmp_path, tasks) for task in ((0, "RUNNING"), (1, "PENDING"))))
    assert launch.queue() == {
        tmp_path / "my results/ptb/small/moon/seed0.json": launch.Job("8_0", True),
        tmp_path / "my results/ptb/small/moon/seed1.json": launch.Job("8_1", False),
    }


def test_where_all_is_in_the_queue_nothing_is_submitted(slurm_with: Callable[..., Path], tmp_path: Path) -> None:
    command = "run.sbatch reproduce --result results/ptb/small/moon/seed0.json"
    seen = slurm_with(squeue=f"7\tN/A\tRUNNING\t{Path.cwd()}\t{command}", sbatch="8")
    launch.submit(plans(0), tmp_path, [])
    assert not seen.exists()


def test_a_refusal_of_sbatch_is_passed_on_and_leaves_no_submission(
    slurm_with: Callable[..., Path], tmp_path: Path
) -> None:
    slurm_with(squeue="", sbatch="invalid partition specified: gpu", status=1, failing="sbatch")
    with pytest.raises(OSError, match="invalid partition specified: gpu"):
        launch.submit(plans(0), tmp_path / "logs", [])
    assert not list((tmp_path / "logs").glob("submission*"))


def test_of_two_submissions_at_the_same_instant_the_second_sees_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    queued: dict[Path, launch.Job] = {}

    def slow(*command: str) -> str:
        time.sleep(0.3)  # in which the other looks into the queue, unless it waits
        queued[Path("results/ptb/small/moon/seed0.json").resolve()] = launch.Job("1", False)
        return "1"

    monkeypatch.setattr(launch.shutil, "which", lambda name: name)
    monkeypatch.setattr(launch, "queue", lambda: dict(queued))
    monkeypatch.setattr(launch, "_output", slow)
    threads = [threading.Thread(target=launch.submit, args=(plans(0), tmp_path, [])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = capsys.readouterr().out
    assert said.count("1 submitted") == said.count("is not submitted again") == 1


def test_a_job_without_a_folder_for_its_run_is_refused() -> None:
    run = ["reproduce", "--config", "ptb/small/zaremba"]
    done = subprocess.run(["bash", str(ROOT / "cluster/run.sbatch"), *run], env={}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: a run needs a folder, --trainer.default_root_dir ...; got: {' '.join(run)}\n"
