"""Load result files: what a finished training run leaves at `<experiment>/<group>/<row>/seed<k>.json`."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Names of every row, in the order in which tables and legends show them.
LABELS = {
    "non_regularized": "Non-regularised",
    "moon": "Moon et al.",
    "moon_embedding": "Moon + emb dropout",
    "moon_loop": "Moon, scaled in the loop",
    "moon_fresh": "Moon, inputs dropped afresh",
    "zaremba": "Zaremba et al.",
    "variational_tied": "Variational (tied)",
    "variational_untied": "Variational (untied)",
    "standard": "No dropout",
    "naive": "Naive dropout",
    "variational": "Variational dropout",
    "standard_lstm": "Standard LSTM",
    "naive_lstm": "Naive LSTM",
    "variational_lstm": "Variational LSTM",
    "standard_gru": "Standard GRU",
    "naive_gru": "Naive GRU",
    "variational_gru": "Variational GRU",
}

PTB_ROWS = ["non_regularized", "moon", "moon_embedding", "zaremba", "variational_tied", "variational_untied"]
DEMO_ROWS = ["standard", "naive", "variational"]


LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches")
"""Options of the trainer that make a run less than it seems."""


@dataclass(frozen=True)
class Group:
    """A set of runs shown together: one table, one figure. `rows` are the runs that the reproduction plans."""

    title: str
    rows: list[str]


GROUPS: dict[str, dict[str, Group]] = {
    "ptb": {
        "small": Group("Penn Treebank, small (2 × 200 units)", PTB_ROWS),
        "v1": Group("Penn Treebank, v1 (first version of the paper, 2 × 200 units, constant learning rate)", PTB_ROWS),
        "medium": Group("Penn Treebank, medium (2 × 650 units)", PTB_ROWS),
        "medium_constant": Group(
            "Penn Treebank, medium with a constant learning rate (Figure 2)",
            ["non_regularized", "zaremba", "variational_untied"],
        ),
        "large": Group("Penn Treebank, large (2 × 1500 units)", PTB_ROWS),
        "gal1250": Group("Penn Treebank, 2 × 1250 units (the authors' public log)", ["variational_untied"]),
    },
    "sentiment": {
        "figure2": Group(
            "Film reviews, LSTM (Figure 3a–b; Figure 2 of the first version)", [f"{row}_lstm" for row in DEMO_ROWS]
        ),
        "figure10": Group(
            "Film reviews, GRU (Figure 3c; Figure 10 of the first version)", [f"{row}_gru" for row in DEMO_ROWS]
        ),
    },
    "demo": {
        "language_model": Group("Demo, language model", DEMO_ROWS),
        "sentiment": Group("Demo, sentiment regression", DEMO_ROWS),
    },
}


class ResultError(ValueError):
    """A result file cannot be used. The message names the file, what is wrong with it and what to do."""


@dataclass(frozen=True)
class Result:
    """One training run.

    `metrics` and the entries of `curve` hold only what was computed. Perplexities are per word, RMSE is in rating
    units (0 to 1), `words_per_s` counts training words per second of wall time.
    """

    path: Path
    experiment: str
    group: str
    row: str
    seed: int
    epochs: int
    planned_epochs: int
    tested_epoch: int
    parameters: int
    metrics: dict[str, float]
    curve: list[dict[str, float]]
    config: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def label(self) -> str:
        """The name of the row in tables and legends."""
        return LABELS.get(self.row, self.row)

    @property
    def shortened(self) -> bool:
        """Whether the run was given fewer epochs than the experiment plans."""
        return self.epochs < self.planned_epochs

    @property
    def length(self) -> str:
        """The number of epochs, e.g. "13", or "2 of 13 epochs" for a shortened run, and limits to parts of an epoch."""
        epochs = f"{self.epochs} of {self.planned_epochs} epochs" if self.shortened else str(self.epochs)
        trainer = self.config.get("trainer", {})
        limits = [f"{name}={trainer[name]}" for name in LIMITS if trainer.get(name) is not None]
        return ", ".join([epochs, *limits])

    def points(self, metric: str) -> tuple[list[float], list[float]]:
        """The epochs at which `metric` is in the curve, and its values there."""
        entries = [entry for entry in self.curve if metric in entry]
        return [entry["epoch"] for entry in entries], [entry[metric] for entry in entries]

    @property
    def mc_points(self) -> tuple[list[int], list[float]]:
        """Numbers of MC samples at which the test perplexity was measured, and its values there."""
        matches = {re.fullmatch(r"test_ppl_mc_(\d+)", name): value for name, value in self.metrics.items()}
        named = {int(match[1]): value for match, value in matches.items() if match}
        if "test_ppl_mc" in self.metrics:
            named[int(self.metrics["mc_samples"])] = self.metrics["test_ppl_mc"]
        counts = sorted(named)
        return counts, [named[count] for count in counts]


def load_results(folder: Path) -> list[Result]:
    """Every result below `folder`, rows in the order of the tables.

    Raises:
        ResultError: `folder` does not exist, or a file in it is unreadable, incomplete or in the wrong place.
    """
    if not folder.is_dir():
        raise ResultError(f"{folder}: no such folder; name the folder that holds the result files with --results")
    results = [_load(path, folder) for path in folder.rglob("seed*.json")]
    rows = list(LABELS)
    return sorted(
        results,
        key=lambda run: (
            run.experiment,
            run.group,
            rows.index(run.row) if run.row in rows else len(rows),
            run.row,
            run.seed,
        ),
    )


def ensembles_of(results: list[Result]) -> list[tuple[str, str, dict[str, Any]]]:
    """Size, row and content of every `ensemble.json` beside the results of a Penn Treebank row."""
    folders = dict.fromkeys(run.path.parent for run in results if run.experiment == "ptb")
    files = [folder / "ensemble.json" for folder in folders if (folder / "ensemble.json").is_file()]
    return [(file.parts[-3], file.parts[-2], json.loads(file.read_text(encoding="utf-8"))) for file in files]


def groups_with(experiment: str, results: list[Result]) -> dict[str, list[Result]]:
    """The results of each group of an experiment: planned groups first, then any other group that has results."""
    names = [*GROUPS[experiment], *(run.group for run in results if run.experiment == experiment)]
    return {name: [r for r in results if (r.experiment, r.group) == (experiment, name)] for name in names}


def title(experiment: str, group: str) -> str:
    """The heading of a group's table and figure."""
    return GROUPS[experiment][group].title if group in GROUPS[experiment] else f"{experiment}, {group}"


def _load(path: Path, folder: Path) -> Result:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _wrong(path, f"not valid JSON ({error})") from error
    _require(path, data, "the file", **_KINDS)
    _require(path, data["provenance"], "provenance", date=str, dirty=bool, wall_time_s=(int, float), hardware=dict)
    for entry in data["curve"]:
        _require(path, entry, "a curve entry", epoch=int)
    if not {"valid_ppl", "test_rmse"} & data["metrics"].keys():
        raise _wrong(path, "metrics has neither 'valid_ppl' nor 'test_rmse'")

    place = path.relative_to(folder).as_posix()
    expected = f"{data['experiment']}/{data['group']}/{data['row']}/seed{data['seed']}.json"
    if place != expected:
        raise ResultError(f"{path}: the file says it is {expected} but lies at {place}; move it or repeat the run")

    fields = {key: data[key] for key in _KINDS}
    fields["metrics"] = _computed(data["metrics"])
    fields["curve"] = [_computed(entry) for entry in data["curve"]]
    return Result(path=path, **fields)


_KINDS: dict[str, Any] = {
    "experiment": str,
    "group": str,
    "row": str,
    "seed": int,
    "epochs": int,
    "planned_epochs": int,
    "tested_epoch": int,
    "parameters": int,
    "metrics": dict,
    "curve": list,
    "config": dict,
    "provenance": dict,
}


def _require(path: Path, data: Any, where: str, **kinds: Any) -> None:
    if not isinstance(data, dict):
        raise _wrong(path, f"{where} is not a JSON object")
    for key, kind in kinds.items():
        if key not in data:
            raise _wrong(path, f"{where} has no {key!r}")
        if not isinstance(data[key], kind):
            raise _wrong(path, f"{key!r} has the wrong type: {data[key]!r}")


def _wrong(path: Path, what: str) -> ResultError:
    return ResultError(f"{path}: {what}; delete the file and repeat the run")


def _computed(values: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in values.items() if value is not None}
