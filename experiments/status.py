"""Which runs are done, running, queued, failed or missing."""

import csv
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.files import is_running
from experiments.launch import Job, queue
from experiments.results import load_result


class Status(NamedTuple):
    """State of a run, the epochs that it has made and is to make, and its job or log."""

    state: str
    epochs: int = 0
    planned_epochs: int = 0
    where: str = ""


def status(result: Path, folder: Path, job: Job | None) -> Status:
    """State of one run; "damaged", with the reason, if its result, configuration or log cannot be read.

    Args:
        result: its result file.
        folder: of its checkpoints and logs.
        job: its job in Slurm's queue, if there is one.
    """
    try:
        run = load_result(result) if result.is_file() else None
        made = _epochs(folder)
    except (ValueError, OSError) as error:
        return Status("damaged", where=f"job {job.id}; {error}" if job else str(error))
    log = folder / "slurm.log"
    if job is not None:
        return Status("running" if job.is_running else "queued", *made, f"job {job.id}")
    if run and not run.shortened:
        return Status("done", run.epochs, run.planned_epochs)
    if folder.is_dir() and is_running(folder):
        return Status("running", *made)
    if run:
        return Status("done", run.epochs, run.planned_epochs)
    if log.exists():
        return Status("failed", *made, str(log))
    return Status("stopped" if folder.is_dir() else "not run", *made)


def _epochs(folder: Path) -> tuple[int, int]:
    """Numbers of finished and of planned epochs, from the CSV logs and the configuration of a run.

    Raises:
        ValueError: a file is damaged; names it.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        return 0, 0
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        planned = max(0, config["trainer"]["max_epochs"] or 0)  # -1 and null are no limit
        planned = min(config.get("epochs") or planned, planned)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{file} is damaged: {_in_a_line(error)}") from error
    return max([0, *map(_ended_epochs, folder.glob("csv/*/metrics.csv"))]), planned


def _ended_epochs(log: Path) -> int:
    """The last finished epoch in a CSV log.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        *lines, _ = log.read_text(encoding="utf-8").split("\n")  # the last line may be half written
        rows = list(csv.DictReader(lines, strict=True))
        return max([0, *(int(row["epoch"]) for row in rows if any(row[n] for n in row if n.startswith("train_")))])
    except (ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
        raise ValueError(f"{log} is damaged: {_in_a_line(error)}") from error


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())


def _jobs_below(results: Path) -> dict[Path, Job]:
    """Those that write result files there; none, with a warning, where Slurm does not answer."""
    try:
        return {result: job for result, job in queue().items() if result.is_relative_to(results)}
    except OSError as error:
        print(f"what Slurm has in its queue is unknown: {error}", file=sys.stderr)
        return {}


def table(names: list[str], results: Path, runs: Path) -> Table:
    """Status of these runs or, where none are named, of all that have a result file, a folder or a job."""
    jobs = _jobs_below(results.resolve())
    found = set(names) or {
        *(path.relative_to(results).with_suffix("").as_posix() for path in results.glob("*/*/*/seed*.json")),
        *(path.relative_to(runs).as_posix() for path in runs.glob("*/*/*/seed*")),
        *(path.relative_to(results.resolve()).with_suffix("").as_posix() for path in jobs),
    }
    shown = Table(box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for column in ("run", "state", "epochs"):
        shown.add_column(column, no_wrap=True)
    shown.add_column("job or log", overflow="fold")
    counts: Counter[str] = Counter()
    for name in sorted(found):
        result = results / f"{name}.json"
        run = status(result, runs / name, jobs.get(result.resolve()))
        counts[run.state] += 1
        epochs = f"{run.epochs} of {run.planned_epochs}" if run.planned_epochs else "–"
        shown.add_row(name, run.state, epochs, run.where)
    shown.caption = ", ".join(f"{number} {state}" for state, number in counts.items())
    return shown


def show(names: list[str], results: Path, runs: Path) -> None:
    """Print the status of these runs or, where none are named, of all that have a result file, a folder or a job."""
    Console(markup=False).print(table(names, results, runs))
