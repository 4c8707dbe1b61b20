"""What differs between two runs: `python -m reproduction.compare --help`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from experiments import print_any_text
from experiments.results import Result, ResultError, load_result

ABSENT = "–"


def find(name: str, folder: Path) -> Path:
    """The result file that is meant: `name` itself, or EXPERIMENT/GROUP/ROW/seedK below the folder of results.

    Raises:
        ResultError: there is none.
    """
    for path in (Path(name), folder / f"{name}.json"):
        if path.is_file():
            return path
    runs = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("seed*.json"))
    there = "\n  ".join(["", *runs]) if runs else " none"
    raise ResultError(f"{name}: neither a file nor a run below {folder}; the runs there:{there}")


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The dotted keys whose values differ, with both values as JSON."""
    a, b = _flat(a), _flat(b)
    lines = [(key, _json(a, key), _json(b, key)) for key in dict.fromkeys([*a, *b])]
    return [line for line in lines if line[1] != line[2]]


def provenance(run: Result) -> dict[str, Any]:
    """What a run was made with, as far as it is known: commit, texts, hardware, versions."""
    origin = run.provenance
    found = {
        "commit": (origin.get("commit") or "")[:7],
        "uncommitted changes": origin["dirty"],
        "corpus": origin.get("corpus"),
        "hardware": origin["hardware"],
        "versions": origin.get("versions"),
    }
    return {name: value for name, value in found.items() if value not in (None, "")}


def measures(a: Result, b: Result) -> list[tuple[str, str, str, str, str]]:
    """Each number that either run has: its name, both values, their difference, and that as a share of the first."""
    of_a, of_b = (
        {"parameters": run.parameters, **run.metrics, "wall_time_s": run.provenance["wall_time_s"]} for run in (a, b)
    )
    lines = []
    for name in dict.fromkeys([*of_a, *of_b]):
        first, second = of_a.get(name), of_b.get(name)
        difference = relative = ABSENT
        if first is not None and second is not None:
            difference = _number(second - first, sign="+")
            relative = f"{(second - first) / abs(first):+.2%}" if first else ABSENT
        lines.append((name, _number(first), _number(second), difference, relative))
    return lines


def _json(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else ABSENT


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _number(value: float | None, sign: str = "") -> str:
    if value is None:
        return ABSENT
    return f"{value:{sign},}" if isinstance(value, int) else f"{value:{sign}.6g}"


def show(console: Console, a: Result, b: Result) -> None:
    """Print the comparison; 80 columns are enough."""
    for name, run in (("A", a), ("B", b)):
        curve = f"a curve of {len(run.curve)} epochs, {run.planned_epochs} planned, tested after {run.tested_epoch}"
        console.print(f"{name}  {run.path}\n   {run.provenance['date'][:10]}, {curve}", soft_wrap=True)
    for title, lines in (
        ("Configuration", differences(a.config, b.config)),
        ("Provenance", differences(provenance(a), provenance(b))),
    ):
        console.print(f"\n{title}{'' if lines else ': no difference'}")
        if lines:
            _print_table(console, ("", "A", "B"), lines)
    console.print("\nMetrics")
    _print_table(console, ("", "A", "B", "B − A", "relative"), measures(a, b), justify="right")


def _print_table(console: Console, headings: tuple[str, ...], lines: list[Any], justify: Any = "left") -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify=justify if i else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    console.print(table)


def main(arguments: list[str] | None = None) -> None:
    """Print what differs between two runs."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.compare",
        description="What differs between two runs: configuration, provenance, metrics.",
    )
    for name in ("A", "B"):
        parser.add_argument(name, help="a result file, or EXPERIMENT/GROUP/ROW/seedK below the folder of results")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of result files (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        a, b = (load_result(find(name, options.results)) for name in (options.A, options.B))
    except ResultError as error:
        sys.exit(str(error))
    show(Console(markup=False, highlight=False), a, b)


if __name__ == "__main__":
    print_any_text()
    main()
