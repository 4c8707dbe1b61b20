"""How runs are started here; what is submitted to Slurm is tested in test_slurm.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.launch import Plan, start_here
from experiments.runs import Run

ROOT = Path(__file__).resolve().parents[2]
MAIN = """
import os, signal, sys, time
name, *rest = sys.argv[1:]
words = [word for word in rest if not word.startswith("--") and word != "false"]
open(f"began_{words[0]}", "w").write(os.environ.get("OMP_NUM_THREADS", ""))
if "wait" in words:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for _ in range(300):
        time.sleep(.1)
if "together" in words:  # ends when the other has begun
    other = {"0": "1", "1": "0"}[words[0]]
    while not os.path.exists(f"began_{other}"):
        time.sleep(.01)
if "last" in words:
    while not os.path.exists("ended_0"):
        time.sleep(.01)
    time.sleep(1)
open(f"ended_{words[0]}", "w").write(" ".join(rest))
sys.exit(int(words[1]) if words[1].isdigit() else 0)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose main.py notes that it began and ended, and ends with the status that it is told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "main.py").write_text(MAIN)
    return tmp_path


def plans(*what: str) -> list[Plan]:
    runs = [Run("ptb", "small", "moon", seed) for seed in range(len(what))]
    return [
        Plan(run, run.result(Path()), ["reproduce", str(run.seed), word, "a b;$(c)"], "missing", "")
        for run, word in zip(runs, what, strict=True)
    ]


def test_runs_start_one_after_the_other_and_say_which_of_how_many_they_are(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start_here(plans("0", "0"))
    assert capfd.readouterr().out == "run 1 of 2: ptb/small/moon/seed0\nrun 2 of 2: ptb/small/moon/seed1\n"
    assert (folder / "ended_1").read_text() == "1 0 a b;$(c)", "an argument is not split, and no command"
    assert (folder / "began_0").read_text() == "", "a run alone has all cores"


def test_the_first_failure_ends_with_its_status_and_starts_nothing_further(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        start_here(plans("0", "3", "0"))
    assert end.value.code == 3
    assert not (folder / "began_2").exists()
    assert capfd.readouterr().err == "failed: ptb/small/moon/seed1 (status 3); the same command resumes\n"


def test_several_jobs_run_at_once_each_with_its_share_of_the_cores(folder: Path) -> None:
    start_here(plans("together", "together", "0"), jobs=2)
    share = str(max(1, (os.cpu_count() or 1) // 2))
    assert [(folder / f"began_{seed}").read_text() for seed in range(3)] == [share] * 3
    assert "--trainer.enable_progress_bar false" in (folder / "ended_2").read_text()


def test_a_failure_lets_the_runs_beside_it_end(folder: Path) -> None:
    with pytest.raises(SystemExit) as end:
        start_here(plans("7", "last", "0"), jobs=2)
    assert end.value.code == 7
    assert (folder / "ended_1").exists()
    assert not (folder / "began_2").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_runs_and_ends_with_its_number(folder: Path, number: signal.Signals) -> None:
    script = folder / "start.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\nfrom experiments.launch import Plan, start_here\nfrom experiments.runs import Run\n"
        "run = Run('a', 'b', 'c', 0)\n"
        "start_here([Plan(run, Path('x'), ['reproduce', str(k), 'wait'], 'missing', '') for k in range(3)], jobs=2)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], cwd=folder, start_new_session=True)
    while not ((folder / "began_0").exists() and (folder / "began_1").exists()):
        time.sleep(0.02)
    time.sleep(0.5)  # until the handlers are there
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    assert process.wait(timeout=20) == 128 + number
    assert not (folder / "began_2").exists()
    assert not (folder / "ended_0").exists()
