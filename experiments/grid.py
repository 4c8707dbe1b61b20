"""The grids of `configs/sweeps`, as W&B sweeps or as plain runs: `python -m experiments.grid --help`."""

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

from experiments import print_any_text
from experiments.results import ResultError, load_results

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


def main(arguments: list[str] | None = None) -> None:
    """List the points of a grid, print the options of one, show what they reached, or run them by a W&B agent."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.grid", description="The points of a sweep of configs/sweeps."
    )
    parser.add_argument("name", help="file in configs/sweeps, without .yaml")
    parser.add_argument("point", nargs="?", help="print the options of main.py for this point")
    parser.add_argument("--results", type=Path, help="show what the points have reached whose result files are there")
    parser.add_argument("--agent", action="store_true", help="register the sweep with W&B and run its points")
    parser.add_argument("--count", type=int, help="of points that the agent runs (default: all)")
    chosen = parser.parse_args(arguments)
    try:
        sweep = load(chosen.name)
        if chosen.agent:
            import wandb  # here, since it takes longer to load than a list to print

            from experiments.wandb_runs import PROJECT

            here = str(Path(sys.executable).parent)  # the agent starts `python`
            os.environ["PATH"] = os.pathsep.join([here, os.environ["PATH"]])
            try:
                wandb.agent(wandb.sweep(sweep, project=PROJECT), project=PROJECT, count=chosen.count)
            except wandb.errors.Error as error:
                sys.exit(
                    f"W&B: the sweep was not run ({error}). `.venv/bin/wandb login` logs in; "
                    f"`make grid NAME={chosen.name}` needs no account."
                )
        elif chosen.results:
            Console(markup=False).print(table(chosen.name, chosen.results))
        elif chosen.point:
            print(*options(sweep, chosen.point))
        else:
            print(*points(sweep), sep="\n")
    except (ValueError, ResultError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    print_any_text()
    main()
