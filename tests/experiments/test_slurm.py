"""What is submitted to Slurm; the jobs themselves are tested in `tests/cluster`."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import slurm

RUNS = [f'reproduce --data.init_args.data_dir "a b" --result results/ptb/small/moon/seed{k}.json' for k in range(3)]


def test_without_slurm_there_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match='LAUNCH="slurm": there is no sbatch here; use a login node'):
        slurm.main(["--logs", str(tmp_path), "--runs", *RUNS])


def test_what_is_not_in_the_queue_is_submitted_as_one_array(
    slurm_with: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Path.cwd()
    seen = slurm_with(
        squeue=f"7\tN/A\tPENDING\t{here}\trun.sbatch --result results/ptb/small/moon/seed1.json", sbatch="8"
    )
    options = ["--partition=gpu", "--comment=two words", "--nodes=2"]
    slurm.main(["--logs", str(tmp_path / "logs"), "--runs", *RUNS, "--", *options])
    assert seen.read_text().splitlines() == [
        *("--parsable", *options, "--array=0-1"),
        *(f"--output={tmp_path}/logs/%A_%a.log", "cluster/run.sbatch", RUNS[0], RUNS[2]),
    ]
    assert (tmp_path / "logs").is_dir()  # or Slurm would end the jobs without a word
    assert capsys.readouterr().out.splitlines() == [
        "results/ptb/small/moon/seed1.json is not submitted again: job 7 is queued",
        f"job 8: 2 submitted; `make status` shows them, logs are in {tmp_path}/logs",
    ]


def test_where_all_is_in_the_queue_nothing_is_submitted(slurm_with: Callable[..., Path], tmp_path: Path) -> None:
    seen = slurm_with(squeue=f"7\tN/A\tRUNNING\t{Path.cwd()}\trun.sbatch {RUNS[0]}", sbatch="8")
    slurm.main(["--logs", str(tmp_path), "--runs", RUNS[0]])
    assert not seen.exists()


def test_a_refusal_of_sbatch_is_passed_on(slurm_with: Callable[..., Path], tmp_path: Path) -> None:
    slurm_with(squeue="", sbatch="invalid partition specified: gpu", status=1, failing="sbatch")
    with pytest.raises(SystemExit, match="invalid partition specified: gpu"):
        slurm.main(["--logs", str(tmp_path), "--runs", *RUNS])


def test_a_job_without_a_folder_for_its_run_is_refused() -> None:
    job = Path(slurm.__file__).parents[1] / "cluster/run.sbatch"
    run = "reproduce --config configs/ptb/small/zaremba.yaml"
    done = subprocess.run(["bash", str(job), run], env={}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: a run needs a folder, --trainer.default_root_dir ...; got: {run}\n"
