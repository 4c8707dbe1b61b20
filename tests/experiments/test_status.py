"""What `make status` says of runs."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from experiments import files, status

WriteResult = Callable[..., Path]
RUN = "ptb/small/moon/seed0"


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., Path]:
    """What a run leaves in its folder after some epochs and the batches of another."""

    def write(epochs: int, asked: int | None = None) -> Path:
        folder = tmp_path / "runs" / RUN
        (folder / "csv/version_0").mkdir(parents=True)
        ended = "".join(f"{epoch},,80.5,81.5\n{epoch},90.5,,\n" for epoch in range(1, epochs + 1))
        (folder / "csv/version_0/metrics.csv").write_text(
            f"epoch,train_ppl,valid_ppl,gradient_norm\n{ended}{epochs + 1},,,0.5\n"
        )
        (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": 13}, "epochs": asked}))
        return folder

    return write


@pytest.fixture
def shown(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines of the table, and the one below it."""

    def show(*names: str) -> list[str]:
        status.main([*names, "--results", str(folder), "--runs", str(tmp_path / "runs")])
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        return [line for line in lines if re.match(r"ptb/|\d", line)]

    return show


def test_a_run_of_which_nothing_is_there_is_not_run(shown: Callable[..., list[str]]) -> None:
    assert shown(RUN) == [f"{RUN} not run –", "1 not run"]


def test_a_result_is_done_with_the_epochs_that_it_has(
    shown: Callable[..., list[str]], write_result: WriteResult
) -> None:
    write_result("ptb", "small", "moon", epochs=3, planned_epochs=3)
    write_result("ptb", "v1", "moon", seed=2, epochs=2, planned_epochs=180)
    assert shown() == [f"{RUN} done 3 of 3", "ptb/v1/moon/seed2 done 2 of 180", "2 done"]
    assert shown(RUN, "ptb/v1/moon/seed0") == [f"{RUN} done 3 of 3", "ptb/v1/moon/seed0 not run –", "1 done, 1 not run"]


def test_a_run_that_holds_its_lock_is_running_and_when_it_ends_without_a_result_it_has_stopped(
    shown: Callable[..., list[str]], begin: Callable[..., Path]
) -> None:
    folder = begin(2)
    files.lock_run_folder(folder)
    assert shown() == [f"{RUN} running 2 of 13", "1 running"]
    files.LOCKS.pop(folder).close()
    assert shown() == [f"{RUN} stopped 2 of 13", "1 stopped"]


def test_an_epoch_that_was_validated_but_not_ended_is_not_counted_and_a_resumed_run_has_those_of_all_its_logs(
    shown: Callable[..., list[str]], begin: Callable[..., Path]
) -> None:
    folder = begin(2)
    (folder / "csv/version_1").mkdir()
    (folder / "csv/version_1/metrics.csv").write_text("epoch,train_ppl,valid_ppl\n3,,80.5\n3,90.5,\n4,,79.5\n")
    assert shown() == [f"{RUN} stopped 3 of 13", "1 stopped"]
    for version in range(2, 12):  # the tenth sorts before the second
        (folder / f"csv/version_{version}").mkdir()
        (folder / f"csv/version_{version}/metrics.csv").write_text(f"epoch,train_ppl\n{version + 2},90.5\n")
    assert shown() == [f"{RUN} stopped 13 of 13", "1 stopped"]


def test_a_result_that_was_tested_at_its_best_epoch_has_all_its_epochs(
    shown: Callable[..., list[str]], write_result: WriteResult
) -> None:
    write_result("ptb", "small", "moon", epochs=3, planned_epochs=3, tested_epoch=2)
    assert shown() == [f"{RUN} done 3 of 3", "1 done"]


def test_a_finished_run_that_is_continued_is_running(
    shown: Callable[..., list[str]], begin: Callable[..., Path], write_result: WriteResult
) -> None:
    write_result("ptb", "small", "moon", epochs=3, planned_epochs=13)
    folder = begin(4, asked=6)
    files.lock_run_folder(folder)
    assert shown() == [f"{RUN} running 4 of 6", "1 running"]
    files.LOCKS.pop(folder).close()


DAMAGES = {
    "config.yaml": [
        "",
        "trainer: {max_epochs",
        "trainer: 3",
        "[]",
        "trainer: {}",
        "trainer: {max_epochs: ten}",
        b"\xff",
    ],
    "csv/version_0/metrics.csv": [
        b"\x00\xff\xfe" * 9,
        "train_ppl\n3.5\n",
        "epoch,train_ppl\nthree,80.5\n",
        "a,b\n1,2,3\n",
    ],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name in DAMAGES for content in DAMAGES[name]])
def test_a_run_with_a_damaged_file_is_shown_as_damaged_and_the_others_as_they_are(
    name: str,
    content: str | bytes,
    shown: Callable[..., list[str]],
    begin: Callable[..., Path],
    write_result: WriteResult,
) -> None:
    write_result("ptb", "small", "zaremba")
    file = begin(2) / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    damaged, done, counts = shown()
    assert damaged.startswith(f"{RUN} damaged – {file} is damaged: ")
    assert (done, counts) == ("ptb/small/zaremba/seed0 done 3 of 3", "1 damaged, 1 done")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"epochs": 3}', "\x00", "[" * 100_000])
def test_a_damaged_result_is_shown_and_the_others_as_they_are(
    content: str, shown: Callable[..., list[str]], write_result: WriteResult
) -> None:
    write_result("ptb", "small", "zaremba")
    file = write_result("ptb", "small", "moon")
    file.write_text(content)
    damaged, done, counts = shown()
    assert damaged.startswith(f"{RUN} damaged – {file}: ")
    assert (done, counts) == ("ptb/small/zaremba/seed0 done 3 of 3", "1 damaged, 1 done")


def test_a_line_that_is_being_written_and_a_run_without_a_limit_are_no_damage(
    shown: Callable[..., list[str]], begin: Callable[..., Path]
) -> None:
    folder = begin(2)
    with (folder / "csv/version_0/metrics.csv").open("a") as file:
        file.write("1")  # of 12
    assert shown() == [f"{RUN} stopped 2 of 13", "1 stopped"]
    for limit in (None, -1):
        (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": limit}}))
        assert shown() == [f"{RUN} stopped –", "1 stopped"]


def test_names_with_brackets_are_shown_as_they_are(shown: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "runs/ptb/[small]/[/b]/seed0").mkdir(parents=True)
    assert shown("ptb/[red]/x/seed0") == ["ptb/[red]/x/seed0 not run –", "1 not run"]


def test_a_job_that_ended_without_a_result_has_failed_and_its_log_is_named(
    shown: Callable[..., list[str]], begin: Callable[..., Path]
) -> None:
    log = begin(1) / "slurm.log"
    log.touch()
    assert shown() == [f"{RUN} failed 1 of 13 {log}", "1 failed"]


def test_jobs_are_queued_or_running_by_slurms_queue_alone(
    shown: Callable[..., list[str]], begin: Callable[..., Path], folder: Path, slurm_with: Callable[..., Path]
) -> None:
    begin(1)
    slurm_with(
        squeue="\n".join(
            f"7_{task}\t{task}\t{state}\t{folder}\t/x/run.sbatch a --result ptb/small/moon/seed0.json "
            "b --result ptb/small/moon/seed1.json c --result elsewhere/../ptb/small/moon/seed2.json"
            for task, state in enumerate(("RUNNING", "PENDING", "REQUEUED"))
        )
        + f"\n8\tN/A\tRUNNING\t{folder}\t/x/run.sbatch a --result=ptb/small/moon/seed3.json"
        + f"\n9\tN/A\tRUNNING\t{folder}\t/x/another.sh --result=ptb/small/moon/seed4.json"
        + "\n10\tN/A\tRUNNING\t/other/folder\t/x/run.sbatch --result=ptb/small/moon/seed5.json"
    )
    assert shown() == [
        f"{RUN} running 1 of 13 job 7_0",
        "ptb/small/moon/seed1 queued – job 7_1",
        "ptb/small/moon/seed2 queued – job 7_2",
        "ptb/small/moon/seed3 running – job 8",
        "2 running, 2 queued",
    ]


def test_where_slurm_does_not_answer_the_rest_is_shown(
    tmp_path: Path, write_result: WriteResult, folder: Path, capsys: pytest.CaptureFixture[str], slurm_with: Callable
) -> None:
    write_result("ptb", "small", "moon")
    slurm_with(squeue="Unable to contact slurm controller", status=1)
    status.main(["--results", str(folder), "--runs", str(tmp_path / "runs")])
    printed = capsys.readouterr()
    assert "1 done" in printed.out
    assert printed.err == "what Slurm has in its queue is unknown: Unable to contact slurm controller\n"
    assert json.loads((folder / f"{RUN}.json").read_text())["epochs"] == 3
