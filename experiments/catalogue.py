"""The rows of every table and figure, read from `configs/EXPERIMENT/GROUP.yaml`, one file for each table or figure.

A file has a `title`, options that its rows share (`common`), and `rows`: each with a `label`, options of `model`,
`data` and `trainer`, and published figures. `like` takes over the options and rows of another file. `grid` spells out
every combination of some options of the model. A row with `from` is shown here and trained elsewhere.
`configs/EXPERIMENT/experiment.yaml` has what the tables of an experiment share, and their order.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from functools import cache
from graphlib import TopologicalSorter
from itertools import product
from pathlib import Path
from typing import Any

import yaml

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EXPERIMENTS = ("ptb", "sentiment", "demo")
PARTS = ("model", "data", "trainer")
KEYS = {
    "experiment": {"title", "tables", "classes", "common", "constant_predictor"},
    "group": {"title", "source", "extra", "like", "classes", "common", "rows", "grid", "ensembles", "further"},
    "row": {*PARTS, "label", "from", "published", "published_as", "default"},
}
PUBLISHED = {"valid", "test", "test_mc", "kwps"}


@dataclass(frozen=True)
class Row:
    """One line of a table, or one curve of a figure.

    Attributes:
        name: of its run without the seed, EXPERIMENT/GROUP/ROW: where it is trained.
        label: in tables and legends.
        config: the resolved configuration, sections `model`, `data` and `trainer`, as main.py takes it.
        published: figures by "valid", "test", "test_mc" (perplexities, a mean or [mean, standard deviation]) and "kwps"
            (thousands of words per second).
        is_default: whether it is run when no rows are named, and shown when it was not run.
    """

    name: str
    label: str
    config: dict[str, Any]
    published: dict[str, Any]
    is_default: bool = True


@dataclass(frozen=True)
class Group:
    """The rows of one table or figure, in their order.

    Attributes:
        name: EXPERIMENT/GROUP.
        title: above the table.
        sources: of the published figures.
        is_extra: whether it is left out of the tables until one of its rows was run.
        rows: by the name that they have here.
        ensembles: published figures of models whose probabilities are averaged.
        further: other published figures for the same setting.
    """

    name: str
    title: str
    sources: list[str]
    is_extra: bool
    rows: dict[str, Row]
    ensembles: list[dict[str, Any]]
    further: list[dict[str, Any]]

    @property
    def own(self) -> dict[str, Row]:
        """The rows that are trained here."""
        return {name: row for name, row in self.rows.items() if row.name == f"{self.name}/{name}"}

    @property
    def planned(self) -> list[str]:
        """The names of the rows that are run when none are named."""
        return [name for name, row in self.own.items() if row.is_default]

    @property
    def beside(self) -> dict[str, tuple[str, str]]:
        """Rows of other groups that are shown here: name here, and group and row where they are trained."""
        others = {name: row.name.split("/") for name, row in self.rows.items() if name not in self.own}
        return {name: (group, row) for name, (_, group, row) in others.items()}


@dataclass(frozen=True)
class Experiment:
    """A corpus and its tables: `title`, `groups` in their order, and RMSE of the constant predictor if published."""

    title: str
    groups: dict[str, Group]
    constant_predictor: dict[str, float] = field(default_factory=dict)


@cache
def catalogue() -> dict[str, Experiment]:
    """All experiments, by name.

    Raises:
        ValueError: a file is wrong; names it and what is wrong.
    """
    found = {}
    for name in EXPERIMENTS:
        shared = _read(CONFIGS / name / "experiment.yaml", "experiment")
        files = {
            file.stem: _read(file, "group")
            for file in sorted((CONFIGS / name).glob("*.yaml"))
            if file.stem != "experiment"
        }
        _check_like(CONFIGS / name, files)
        groups = {group: _group(name, group, files, shared) for group in dict.fromkeys([*shared["tables"], *files])}
        found[name] = Experiment(shared["title"], groups, shared.get("constant_predictor", {}))
    for group in (group for experiment in found.values() for group in experiment.groups.values()):
        for name, row in group.rows.items():
            experiment_name, _, place = row.name.partition("/")
            table, _, source = place.partition("/")
            of = found[experiment_name].groups.get(table) if experiment_name in found else None
            if not of or source not in of.own:
                raise ValueError(
                    f"{CONFIGS / group.name}.yaml: row {name} is from {row.name}, but there is no such row"
                )
    return found


def groups_of(experiment: str) -> dict[str, Group]:
    """The groups of an experiment; none of one that is not in `configs`."""
    known = catalogue().get(experiment)
    return known.groups if known else {}


def rows() -> dict[str, Row]:
    """Every row by its name, EXPERIMENT/GROUP/ROW."""
    groups = [group for experiment in catalogue().values() for group in experiment.groups.values()]
    return {row.name: row for group in groups for row in group.own.values()}


def find_row(name: str) -> Row:
    """The row EXPERIMENT/GROUP/ROW.

    Raises:
        ValueError: there is none of this name; names those that are like it, or all of its group.
    """
    known = rows()
    if name not in known:
        of_group = [row for row in known if row.startswith(f"{name.rpartition('/')[0]}/")]
        near = difflib.get_close_matches(name, known) or of_group
        groups = [group.name for experiment in catalogue().values() for group in experiment.groups.values()]
        choice = f"choose from: {', '.join(near)}" if near else f"rows are of {', '.join(groups)}"
        raise ValueError(f"there is no row {name!r} in configs; {choice}")
    return known[name]


def merged_config(row: str) -> str:
    """The configuration of a row, EXPERIMENT/GROUP/ROW, as YAML for main.py.

    Raises:
        ValueError: there is no such row.
    """
    return yaml.safe_dump(find_row(row).config, sort_keys=False)


def labelled(row: str, mark: str = "", experiment: str = "", group: str = "") -> str:
    """The name of a row in tables and legends: that of its group, of another group's row of this name, or its own.

    Args:
        row: its name.
        mark: what tells some of its runs from others.
        experiment: of the group.
        group: that the row is of.
    """
    known = groups_of(experiment).get(group)
    label = known.rows[row].label if known and row in known.rows else _labels().get(row, row)
    return f"{label} [{mark}]" if mark else label


def place_of(row: str) -> int:
    """Where a row stands in tables and legends; rows that are not in `configs` come last."""
    return _places().get(row, len(_places()))


@cache
def _labels() -> dict[str, str]:
    groups = [group for experiment in catalogue().values() for group in experiment.groups.values()]
    return {name: row.label for group in reversed(groups) for name, row in group.rows.items()}


@cache
def _places() -> dict[str, int]:
    """The order of all rows that agrees with the order in each group."""
    order: TopologicalSorter[str] = TopologicalSorter()
    for experiment in catalogue().values():
        for group in experiment.groups.values():
            names = list(group.rows)
            for before, name in zip([None, *names], names, strict=False):
                order.add(name, *([before] if before else []))
    return {name: i for i, name in enumerate(order.static_order())}


def _read(file: Path, kind: str) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        _check_keys(file, yaml.compose(text, Loader=LOADER))
        content = yaml.load(text, Loader=LOADER)
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    _check(file, "the file", content, KEYS[kind], {"title"})
    for section in {"common", "rows", "grid", "classes"} & content.keys():
        if not isinstance(content[section], dict):
            raise ValueError(f"{file}: {section} must be a mapping, got {content[section]!r}")
    for name, row in content.get("rows", {}).items():
        _check(file, f"row {name}", row, KEYS["row"], {"label"})
        _check(file, f"published of row {name}", row.get("published", {}), PUBLISHED, set())
        for figure, value in row.get("published", {}).items():
            numbers = value if isinstance(value, list) else [value]
            if not all(type(number) in (int, float) for number in numbers) or len(numbers) not in (1, 2):
                raise ValueError(
                    f"{file}: {figure} of row {name} is {value!r}; write a number, or [mean, standard deviation]"
                )
        if row.get("published_as", name) not in content["rows"]:
            raise ValueError(f"{file}: row {name} is published_as {row['published_as']}, which is no row of this file")
    if missing := {"name", "label"} - content.get("grid", {"name": "", "label": ""}).keys():
        raise ValueError(f"{file}: grid needs {', '.join(sorted(missing))}")
    return content


def _check_keys(file: Path, node: yaml.Node | None) -> None:
    """Refuse a key that is written twice: YAML would silently keep the last one."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if isinstance(key, str) and keys.count(key) > 1:
                raise ValueError(f"{file}: {key} is written twice; give one of them another name")
        for _, value in node.value:
            _check_keys(file, value)


def _check(file: Path, where: str, content: Any, allowed: set[str], required: set[str]) -> None:
    given = content.keys() if isinstance(content, dict) else set()
    if missing := sorted(required - given):
        raise ValueError(f"{file}: {where} needs {', '.join(missing)}")
    if unknown := sorted(given - allowed):
        raise ValueError(f"{file}: {where} has {', '.join(unknown)}; allowed are: {', '.join(sorted(allowed))}")


def _check_like(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Refuse a file that is `like` none, or like itself, directly or by others."""
    for name in files:
        chain = [name]
        while (other := files[chain[-1]].get("like")) is not None:
            if other not in files or other in chain:
                what = "itself" if other in chain else f"{other}, but there is no {other}.yaml beside it"
                raise ValueError(f"{folder / chain[-1]}.yaml is like {what}")
            chain.append(other)


def _group(experiment: str, name: str, files: dict[str, dict[str, Any]], shared: dict[str, Any]) -> Group:
    if name not in files:
        raise ValueError(
            f"{CONFIGS / experiment / 'experiment.yaml'} lists {name}, but there is no {name}.yaml beside it"
        )
    file = files[name]
    common, contents = _inherited(name, files)
    classes = shared.get("classes", {}) | file.get("classes", {})
    grid = _grid(file.get("grid"))
    rows = {}
    for row, content in (grid | contents).items():
        options = merged(merged(shared["common"], common), {part: content[part] for part in PARTS if part in content})
        published = contents[content.get("published_as", row)].get("published", {}) if row in contents else {}
        rows[row] = Row(
            name=f"{experiment}/{content.get('from', f'{name}/{row}')}",
            label=content["label"],
            config={
                part: {"class_path": classes[part], "init_args": options[part]} if part in classes else options[part]
                for part in PARTS
            },
            published=published,
            is_default=content.get("default", True),
        )
    sources = file.get("source", [])
    return Group(
        name=f"{experiment}/{name}",
        title=file["title"],
        sources=[sources] if isinstance(sources, str) else sources,
        is_extra=file.get("extra", False),
        rows=rows,
        ensembles=file.get("ensembles", []),
        further=file.get("further", []),
    )


def _inherited(name: str, files: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that the rows of a file share, and its rows, with those of the file that it is `like`."""
    file = files[name]
    common, rows = _inherited(file["like"], files) if "like" in file else ({}, {})
    return merged(common, file.get("common", {})), rows | file.get("rows", {})


def _grid(grid: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """A row for each combination of the values, the last option varying fastest."""
    if not grid:
        return {}
    options = {option: values for option, values in grid.items() if option not in ("name", "label")}
    points = [dict(zip(options, values, strict=True)) for values in product(*options.values())]
    return {grid["name"].format(**point): {"label": grid["label"].format(**point), "model": point} for point in points}


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Options, sections merged, those of `above` before those of `below`."""
    both = {
        name: merged(below[name], value) if isinstance(value, dict) and isinstance(below.get(name), dict) else value
        for name, value in above.items()
    }
    return below | both
