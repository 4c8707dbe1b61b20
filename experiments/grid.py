"""The grids of `configs/sweeps`, as W&B sweeps or as plain runs."""

import argparse
import math
import os
import sys
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.results import load_results

SWEEPS = Path(__file__).parents[1] / "configs/sweeps"


def load(name: str) -> dict[str, Any]:
    """A sweep's configuration.

    Raises:
        ValueError: there is no such sweep; names those that are there.
    """
    names = sorted(file.stem for file in SWEEPS.glob("*.yaml"))
    if name not in names:
        raise ValueError(f"there is no sweep {name!r} in configs/sweeps; choose from: {', '.join(names)}")
    sweep: dict[str, Any] = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text(encoding="utf-8"))
    return sweep


def points(sweep: dict[str, Any]) -> dict[str, list[str]]:
    """Each point of the grid by its name, the values in the order of the parameters, with its options of main.py."""
    parameters = sweep["parameters"]
    values = product(*(parameter["values"] for parameter in parameters.values()))
    return {
        "_".join(map(str, point)): [f"--{name}={value}" for name, value in zip(parameters, point, strict=True)]
        for point in values
    }


def options(sweep: dict[str, Any], point: str) -> list[str]:
    """Options of main.py for a point: what is between the sweep's subcommand and its parameters, and these.

    Raises:
        ValueError: the grid has no such point.
    """
    grid = points(sweep)
    if point not in grid:
        raise ValueError(f"there is no point {point!r} in the grid; choose from: {', '.join(grid)}")
    fixed = [word for word in sweep["command"] if word.startswith("--") and "${" not in word]
    return fixed + grid[point]


def table(name: str, folder: Path) -> Table:
    """What the points that were run have reached, best first."""
    sweep = load(name)
    metric = sweep["metric"]["name"]
    runs = [run for run in load_results(folder) if (run.experiment, run.group) == ("sweeps", name)]
    lowest = {run.path: min(run.points(metric)[1], default=math.inf) for run in runs}
    shown = Table(
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title=f"{name}: {len({run.row for run in runs})} of {len(points(sweep))} points",
    )
    for parameter in sweep["parameters"]:
        names = [part.rpartition(".")[2] for part in parameter.split("+")]
        shown.add_column("\n".join(names), justify="right", no_wrap=True)
    for column in (f"lowest\n{metric}", "after\nepoch", "epochs", "seed"):
        shown.add_column(column, justify="right")
    for run in sorted(runs, key=lambda run: lowest[run.path]):
        epochs, values = run.points(metric)
        best = str(int(epochs[values.index(lowest[run.path])])) if values else "–"
        value = f"{lowest[run.path]:.5g}" if values else "diverged"
        shown.add_row(*run.row.split("_"), value, best, run.length, str(run.seed))
    return shown


def show(name: str, results: Path) -> None:
    """Print what the points have reached whose result files exist."""
    Console(markup=False).print(table(name, results))


def start_agent(name: str, options: list[str]) -> None:
    """Register a sweep with W&B and train its points by an agent here.

    Args:
        name: of the file in `configs/sweeps`.
        options: `--count N` for the first N points only.

    Raises:
        ValueError: there is no such sweep, or W&B refuses it.
    """
    parser = argparse.ArgumentParser(prog="make sweep ARGS=...", description="Train the points of a sweep.")
    parser.add_argument("--count", type=int, help="of points that the agent trains (default: all)")
    count = parser.parse_args(options).count
    sweep = load(name)
    from experiments import wandb_runs  # here, since it takes seconds to load

    here = str(Path(sys.executable).parent)  # the agent starts `python`
    os.environ["PATH"] = os.pathsep.join([here, os.environ["PATH"]])
    project = wandb_runs.PROJECT
    try:
        wandb_runs.wandb.agent(wandb_runs.wandb.sweep(sweep, project=project), project=project, count=count)
    except wandb_runs.wandb.errors.Error as error:
        raise ValueError(
            f"W&B: the sweep was not run ({error}). `.venv/bin/wandb login` logs in; "
            f"`make grid NAME={name}` needs no account."
        ) from error
