"""Which runs are missing, and how they are started: here, several at once, or by Slurm."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments.runs import Run

SCRIPT = Path("cluster/run.sbatch")


@dataclass(frozen=True)
class Plan:
    """A run that may be started.

    Attributes:
        run: the run.
        result: its result file.
        arguments: of main.py.
        state: "missing"; "shortened", with fewer epochs than are asked for now; or "done".
        note: what is said about a result that exists, otherwise empty.
    """

    run: Run
    result: Path
    arguments: list[str]
    state: str
    note: str


def plan(run: Run, results: Path, runs: Path, arguments: list[str], epochs: int | None) -> Plan:
    """Find out whether a run is done.

    Args:
        run: the run.
        results: folder of result files.
        runs: folder of checkpoints and logs.
        arguments: of main.py.
        epochs: that are asked for; those of the schedule by default.
    """
    result = run.result(results)
    if not result.is_file():
        return Plan(run, result, arguments, "missing", "")
    try:
        report = json.loads(result.read_text(encoding="utf-8"))
        done, planned = int(report["epochs"]), int(report["planned_epochs"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise ValueError(f"{result} is damaged ({reason}): delete it and repeat the run") from error
    if done >= min(epochs or planned, planned):
        return Plan(run, result, arguments, "done", f"{result} already exists, skipping. Set RESULTS=DIR to rerun.")
    note = (
        f"{result} has {done} of {planned} epochs: resuming from its checkpoint in {runs}, or from the start if there "
        f"is none. EPOCHS={done} skips it."
    )
    return Plan(run, result, arguments, "shortened", note)


def start_here(plans: Sequence[Plan], jobs: int = 1) -> None:
    """Run main.py for each plan, `jobs` at a time.

    After a failure no further run is started, and those that are running end first.

    Args:
        plans: what to run, in this order.
        jobs: number of processes at once. Each gets its share of the cores unless OMP_NUM_THREADS is set.

    Raises:
        SystemExit: with the status of the first run that failed, or 128 plus the number of the signal.
    """
    environment = dict(os.environ)
    quiet = []
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
        quiet = ["--trainer.enable_progress_bar", "false"]  # several bars in one terminal cannot be read
    commands = {
        f"run {number} of {len(plans)}: {each.run}": ["main.py", each.arguments[0], *quiet, *each.arguments[1:]]
        for number, each in enumerate(plans, start=1)
    }
    if failed := run_python(commands, jobs, environment):
        names = ", ".join(f"{name.partition(': ')[2]} (status {status})" for name, status in failed.items())
        print(f"failed: {names}; the same command resumes", file=sys.stderr)
        sys.exit(next(iter(failed.values())))


def run_python(
    commands: dict[str, list[str]], jobs: int = 1, environment: dict[str, str] | None = None
) -> dict[str, int]:
    """Run Python with these arguments, `jobs` at a time, and start nothing further after a failure.

    SIGTERM is passed on; Ctrl-C reaches all processes of a terminal without that. Either way this process waits for the
    others, which may have something to save.

    Args:
        commands: arguments, by what is printed at the start, if that is not empty.
        jobs: number of processes at once.
        environment: of the processes; by default, that of this one.

    Returns:
        The status of each that failed, 128 plus its number for one that a signal ended.

    Raises:
        SystemExit: a signal came; the status is 128 plus its number.
    """
    waiting = list(commands.items())
    running: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
    failed: dict[str, int] = {}
    stopped = 0

    def stop(number: int, frame: Any) -> None:
        nonlocal stopped
        stopped = number
        if number == signal.SIGTERM:
            for _, process in running.values():
                process.terminate()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while running or (waiting and not failed and not stopped):
            while waiting and len(running) < jobs and not failed and not stopped:
                name, arguments = waiting.pop(0)
                if name:
                    print(name, flush=True)
                process = subprocess.Popen([sys.executable, *arguments], env=environment)
                running[process.pid] = name, process
                if stopped == signal.SIGTERM:  # it came before the process was known
                    process.terminate()
            pid, status = os.wait()
            if pid in running:
                name, process = running.pop(pid)
                process.returncode = os.waitstatus_to_exitcode(status)
                if process.returncode:
                    failed[name] = process.returncode if process.returncode > 0 else 128 - process.returncode
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if stopped:
        sys.exit(128 + stopped)
    return failed


class Job(NamedTuple):
    """A run in Slurm's queue: the id of its job, and whether it has begun."""

    id: str
    is_running: bool


def queue() -> dict[Path, Job]:
    """The user's jobs in Slurm's queue, by the result file that each will write; none where there is no Slurm.

    Raises:
        OSError: Slurm does not answer.
    """
    if shutil.which("squeue") is None:
        return {}
    jobs = {}
    for line in _output("squeue", "--me", "--array", "--noheader", "--format=%i\t%K\t%T\t%Z\t%o").splitlines():
        job, task, state, folder, command = line.split("\t", maxsplit=4)
        _, is_ours, arguments = command.partition(f"{SCRIPT.name} ")
        submitted = Path(folder, arguments, task)
        if is_ours and submitted.is_file():
            result = _result_of(submitted.read_text(encoding="utf-8").split("\0"))
        else:  # one run, submitted by hand
            result = _result_of(arguments.split()) if is_ours else None
        if result:
            jobs[Path(folder, result).resolve()] = Job(job, state in ("RUNNING", "COMPLETING"))
    return jobs


def submit(plans: Iterable[Plan], folder: Path, options: list[str]) -> None:
    """Submit to Slurm, as one array, the runs that are not in its queue.

    The arguments of each task are in a file of their own, so that nothing in them is a command. A lock on the folder
    keeps two submissions at the same time from submitting a run twice.

    Args:
        plans: what to run.
        folder: of submissions and logs.
        options: of sbatch.

    Raises:
        OSError: there is no sbatch, it refuses, or the folder cannot be written to.
    """
    if shutil.which("sbatch") is None:
        raise OSError('LAUNCH="slurm": there is no sbatch here; use a login node of a cluster, or leave LAUNCH out')
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        queued = queue()
        new = []
        for each in plans:
            if job := queued.get(each.result.resolve()):
                state = "running" if job.is_running else "queued"
                print(f"{each.result} is not submitted again: job {job.id} is {state}")
            else:
                new.append(each)
        if not new:
            return
        tasks = Path(tempfile.mkdtemp(prefix="submission", dir=folder))
        for index, each in enumerate(new):
            (tasks / str(index)).write_text("".join(f"{word}\0" for word in each.arguments), encoding="utf-8")
        array = [f"--array=0-{len(new) - 1}", f"--output={folder}/%A_%a.log"]
        try:
            job_id = _output("sbatch", "--parsable", *options, *array, str(SCRIPT), str(tasks)).split(";")[0].strip()
        except OSError:
            shutil.rmtree(tasks)
            raise
        print(f"job {job_id}: {len(new)} submitted; `make status` shows them, logs are in {folder}")


def _result_of(arguments: list[str]) -> str | None:
    """The value of --result."""
    found = re.search(r"(?:^|\0)--result[\0=]([^\0]+)", "\0".join(arguments))
    return found[1] if found else None


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr.strip() or f"{command[0]} failed with status {done.returncode}")
    return done.stdout
