"""Load result files: what a finished training run leaves at `<experiment>/<group>/<row>/seed<k>.json`."""

import ast
import json
import math
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from experiments.catalogue import catalogue, groups_of, labelled, place_of, rows

PTB_WORDS = 929_589
"""Training words of Penn Treebank (protocol 1.1)."""

NUMBER = (int, float)

LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches")
"""Options of the trainer that make a run less than it seems."""

SAME_PERPLEXITY = 1e-4
"""Largest relative difference between two evaluations of the same weights, since processors round differently."""


TRAINER: dict[str, Any] = {
    "precision": "32-true",
    "tested_weights": "last",
    "gradient_clip_val": None,
    "gradient_clip_algorithm": "norm",
    "limit_train_batches": None,
}
"""Options of the trainer that matter, and their values where they are not given. The length of a run is apart."""

NO_MATTER = (
    *("data_dir", "eval_batch_size", "backend"),
    *("sliding_test", "train_eval_windows", "train_eval_chunks", "mc_every"),
)
"""Options of models and data that leave all figures alone, or only ask for more of them."""

MC = ("mc_samples", "mc_masks", "mc_word_dropout")
"""Options of the test, which MC figures depend on and no others."""


class ResultError(ValueError):
    """A result file cannot be used. The message names the file, what is wrong with it and what to do."""


@dataclass(frozen=True)
class Result:
    """One training run.

    `metrics` and the entries of `curve` hold only what was computed. Perplexities are per word, RMSE is in rating
    units (of film reviews 0 to 1), the metric `words_per_s` is of an epoch's training alone, validation left out.
    `is_language`: whether it is a language model or a regression. `mark`: what tells it from runs of the row with other
    settings, as `load_results` finds them; empty where there are none.
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
    is_language: bool
    mark: str = ""

    @property
    def label(self) -> str:
        """The name of the row in tables and legends, with the mark, e.g. "Zaremba et al. [bf16-mixed]"."""
        return labelled(self.row, self.mark)

    @property
    def shortened(self) -> bool:
        """Whether the run was given fewer epochs than the experiment plans."""
        return self.epochs < self.planned_epochs

    @property
    def trainer(self) -> dict[str, Any]:
        """The options of the trainer."""
        return self.config.get("trainer") or {}

    @property
    def length(self) -> str:
        """The number of epochs, e.g. "13", or "2 of 13 epochs" for a shortened run, and limits to parts of an epoch."""
        epochs = f"{self.epochs} of {self.planned_epochs} epochs" if self.shortened else str(self.epochs)
        limits = [f"{name}={self.trainer[name]}" for name in LIMITS if self.trainer.get(name) is not None]
        return ", ".join([epochs, *limits])

    def points(self, metric: str) -> tuple[list[float], list[float]]:
        """The epochs at which `metric` is in the curve, and its values there."""
        entries = [entry for entry in self.curve if metric in entry]
        return [entry["epoch"] for entry in entries], [entry[metric] for entry in entries]

    @property
    def settings(self) -> dict[str, Any]:
        """The options that all of its figures depend on."""
        return {name: value for name, value in options_that_matter(self.config).items() if name not in MC}

    def mc_settings(self, metric: str) -> dict[str, Any]:
        """What an MC metric depends on beside them."""
        options = options_that_matter(self.config)
        masks = "window" if metric.endswith("_window") or options.get("mc_masks") == "window" else "stream"
        drops = options.get("mc_word_dropout")
        return {
            "mc_samples": self.metrics.get("mc_samples"),
            "mc_masks": masks,
            "mc_word_dropout": masks == "window" if drops is None else drops,
        }

    @property
    def changes(self) -> dict[str, Any]:
        """Its settings, those of MC too, that are not those of the row's file in `configs`."""
        planned = configured(self.experiment, self.group, self.row)
        return {
            n: value for n, value in options_that_matter(self.config).items() if n in planned and planned[n] != value
        }

    @property
    def words_per_s(self) -> float | None:
        """Training words of an epoch per second that it took, validation included: the median of the epochs.

        None where the number of words is not known: it is for whole epochs of Penn Treebank.
        """
        options = options_that_matter(self.config)
        seconds = [entry["seconds"] for entry in self.curve if "seconds" in entry]
        is_whole = all(self.trainer.get(limit) is None for limit in LIMITS)
        if not seconds or not is_whole or options.get("data") != "datamodules.PennTreebank":
            return None
        streams, window = options["batch_size"], options["window"]
        return (PTB_WORDS // streams - 1) // window * window * streams / median(seconds)

    @property
    def mc_points(self) -> tuple[list[int], list[float]]:
        """Numbers of MC samples at which the test perplexity was measured, and its values there."""
        matches = {re.fullmatch(r"test_ppl_mc_(\d+)", name): value for name, value in self.metrics.items()}
        named = {int(match[1]): value for match, value in matches.items() if match}
        if "test_ppl_mc" in self.metrics:
            named[int(self.metrics["mc_samples"])] = self.metrics["test_ppl_mc"]
        counts = sorted(named)
        return counts, [named[count] for count in counts]


def options_that_matter(config: dict[str, Any]) -> dict[str, Any]:
    """The options of a run's configuration that matter, by name.

    An option that the file lacks, since it was made before there was such an option, has the default value: a new
    option leaves what was there before as it was.
    """
    trainer = config.get("trainer") or {}
    found = {name: trainer[name] for name in TRAINER if name in trainer}
    found = {name: TRAINER[name] if value is None else value for name, value in found.items()}
    if found.get("precision") in (32, "32"):
        found["precision"] = "32-true"
    for part in ("model", "data"):
        given = config.get(part) or {}
        if given.get("class_path"):
            found |= {part: given["class_path"]} | defaults(given["class_path"])
        found |= given.get("init_args") or {}
    implied = {"stream": False, "window": True}.get(found.get("mc_masks", ""))
    if implied is not None and found.get("mc_word_dropout") == implied:
        found["mc_word_dropout"] = None  # the default says the same
    return {name: value for name, value in found.items() if name not in NO_MATTER}


@cache
def defaults(class_path: str) -> dict[str, Any]:
    """The default values of a class of this repository, read in its source: to import a model takes seconds."""
    package, _, name = class_path.rpartition(".")
    for file in (Path(__file__).parents[1] / package).glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                [init] = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
                values = init.args.defaults
                options = init.args.args[len(init.args.args) - len(values) :]
                return {option.arg: ast.literal_eval(value) for option, value in zip(options, values, strict=True)}
    return {}


def configured(experiment: str, group: str, row: str) -> dict[str, Any]:
    """The options of a row of `configs` that matter; none without such a row."""
    known = rows().get(f"{experiment}/{group}/{row}")
    return options_that_matter(known.config | {"trainer": TRAINER | known.config["trainer"]}) if known else {}


def differing(several: list[dict[str, Any]]) -> list[str]:
    """Of each of several settings, in words, what is not the same in all of them."""
    names = [
        name
        for name in dict.fromkeys(name for one in several for name in one)
        if any(name not in one or one[name] != several[0].get(name) for one in several)
    ]
    return [in_words({name: one[name] for name in names if name in one}) for one in several]


def in_words(options: dict[str, Any]) -> str:
    """Settings, e.g. "K 100, MC masks stream, bf16-mixed"."""
    names = {"precision": "", "mc_samples": "K "}
    return ", ".join(
        names.get(name, name.replace("mc_", "MC ").replace("_", " ") + " ") + str(value)
        for name, value in options.items()
    )


def load_results(folder: Path) -> list[Result]:
    """Every result below `folder`, rows in the order of the tables.

    Raises:
        ResultError: `folder` does not exist, a file in it is unreadable, incomplete or in the wrong place, or a group
            has language models and regressions.
    """
    if not folder.is_dir():
        raise ResultError(
            f"{folder}: no such folder; name the one that holds the result files (--results; RESULTS=... for make)"
        )
    results = [_in_place(load_result(path), folder) for path in folder.rglob("seed*.json")]
    kinds: dict[tuple[str, str], Result] = {}
    for run in results:
        other = kinds.setdefault((run.experiment, run.group), run)
        if other.is_language != run.is_language:
            raise ResultError(f"{run.path} and {other.path} are of different tasks: give one of them another group")
    return sorted(_marked(results), key=lambda run: (run.experiment, run.group, place_of(run.row), run.row, run.seed))


def load_result(path: Path) -> Result:
    """The result in one file, wherever that lies.

    Raises:
        ResultError: the file is unreadable, incomplete or not of one run.
    """
    data = read_json(path)
    if isinstance(data, dict) and "experiment" not in data:
        raise ResultError(
            f"{path}: not the result of one run: that is EXPERIMENT/GROUP/ROW/seedK.json, as a run wrote it"
        )
    _require(path, data, "the file", **_KINDS)
    origin = data["provenance"]
    _require_origin(path, origin, "provenance")
    _require(
        path, origin, "provenance", {"corpus": dict, "versions": dict}, date=str, wall_time_s=NUMBER, hardware=dict
    )
    if not math.isfinite(origin["wall_time_s"]):
        raise _wrong(path, f"'wall_time_s' of provenance is {origin['wall_time_s']}")
    _require(path, origin["hardware"], "hardware", {"cpu": str, "cores": int, "gpu": str, "devices": int})
    if origin.get("corpus"):
        _require(path, origin["corpus"], "corpus", name=str, sha256=dict)
    _require_config(path, data["config"])
    for i, entry in enumerate(data["curve"]):
        _require(path, entry, f"curve[{i}]", epoch=int)
    kinds = {"valid_ppl", "test_rmse"} & data["metrics"].keys()
    if not kinds:
        raise _wrong(path, "metrics has neither 'valid_ppl' nor 'test_rmse'")

    fields = {key: data[key] for key in _KINDS}
    fields["metrics"] = _computed(path, data["metrics"], "metrics")
    fields["curve"] = [_computed(path, entry, f"curve[{i}]") for i, entry in enumerate(data["curve"])]
    return Result(path=path, is_language="valid_ppl" in kinds, **fields)


def comparable(runs: list[Result]) -> list[list[Result]]:
    """The runs of a row in sets that may be averaged, of equal length and settings.

    The longest comes first, and of equally long ones the one that is most as its file in `configs` says.
    """
    sets: dict[tuple[str, str], list[Result]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        sets.setdefault((run.length, run.mark), []).append(run)
    return sorted(
        sets.values(),
        key=lambda same: (-same[0].epochs, same[0].length, min(len(run.changes) for run in same)),
    )


def without_diverged(runs: list[Result]) -> list[Result]:
    """The runs of a row without the diverged ones, by the rule fixed in advance (protocol section 4, choice 10)."""
    scores = [run.metrics.get("valid_ppl", run.metrics.get("test_rmse", math.nan)) for run in runs]
    finite = [score for score in scores if math.isfinite(score)]
    limit = 2 * median(finite) if finite else math.nan
    return [run for run, score in zip(runs, scores, strict=True) if score <= limit]  # nan and inf fail this, too


def ensembles_of(results: list[Result]) -> list[tuple[str, str, dict[str, Any]]]:
    """Size, row and content of every `ensemble.json` beside the results of a Penn Treebank row.

    Raises:
        ResultError: such a file is unreadable or incomplete, or of other runs than the results beside it.
    """
    ensembles = []
    for folder in dict.fromkeys(run.path.parent for run in results if run.experiment == "ptb"):
        file = folder / "ensemble.json"
        if file.is_file():
            data = read_json(file)
            _require(file, data, "the file", seeds=list, epochs=str, mc_samples=int, metrics=dict, provenance=list)
            _check_members(file, data, {run.seed: run for run in results if run.path.parent == folder})
            ensembles.append((folder.parent.name, folder.name, data))
    return ensembles


def _check_members(file: Path, data: dict[str, Any], runs: dict[int, Result]) -> None:
    """Check that an ensemble is of the runs whose results lie beside it, as far as both name their runs."""
    again = "delete the file and run `make ensemble` again"
    if not data["seeds"] or len(data["seeds"]) != len(data["provenance"]):
        raise _wrong(file, "it does not have one provenance for each of its seeds")
    _require(file, {str(seed): seed for seed in data["seeds"]}, "seeds", **{str(seed): int for seed in data["seeds"]})
    for i, (seed, origin) in enumerate(zip(data["seeds"], data["provenance"], strict=True)):
        _require_origin(file, origin, f"provenance[{i}]")
        begun = origin["run"][0]["date"] if origin.get("run") else None  # older ensembles lack it
        if begun and seed in runs and begun != (date := runs[seed].provenance["date"]):
            raise ResultError(
                f"{file}: seed {seed} is of a run begun {begun}, but its result is of one begun {date}; {again}"
            )
    for metric, values in data["metrics"].items():
        if not isinstance(values, list) or len(values) != len(data["seeds"]):
            raise _wrong(file, f"{metric!r} does not have one value for each number of models")
        by_count = {str(count): value for count, value in enumerate(values, start=1)}
        _require(file, by_count, metric, **dict.fromkeys(by_count, NUMBER))
    alone = runs.get(data["seeds"][0])
    if alone and "test_ppl" in data["metrics"]:
        check_perplexity(file, data["metrics"]["test_ppl"][0], alone, again)


def check_perplexity(file: Path, found: float, run: Result, advice: str, metric: str = "test_ppl") -> None:
    """Check a test perplexity against the one in a run's result.

    Args:
        file: where it was found, for the message.
        found: the perplexity.
        run: the run that it belongs to.
        advice: ends the message.
        metric: the name of the perplexity; by default, that of the dropout approximation.

    Raises:
        ResultError: they differ.
    """
    tested = run.metrics.get(metric, math.nan)
    if not math.isclose(found, tested, rel_tol=SAME_PERPLEXITY):
        raise ResultError(
            f"{file}: the {metric} of seed {run.seed} alone is {found:.6g}, but {run.path.name} says "
            f"{tested:.6g}; {advice}"
        )


def ablation_file(run: Result) -> Path:
    """Where the test-time choices of a language model are, beside its result, if `make ablation` was run for it."""
    return run.path.with_name(f"ablation_{run.path.name}")


def ablations_of(results: list[Result]) -> list[tuple[Result, dict[str, Any]]]:
    """The Penn Treebank runs whose test-time choices were evaluated, and the content of their `ablation_seedK.json`.

    Raises:
        ResultError: such a file is unreadable or incomplete, or of other weights than were tested.
    """
    ablations = []
    for run in results:
        file = ablation_file(run)
        if run.experiment == "ptb" and file.is_file():
            data = read_json(file)
            _require(file, data, "the file", tested_epoch=int, choices=list, provenance=dict)
            for i, choice in enumerate(data["choices"]):
                numbers = dict.fromkeys(("test_ppl", "temperature", "test_ppl_tempered"), NUMBER)
                _require(file, choice, f"choices[{i}]", mean=str, masks=(str, type(None)), samples=int, **numbers)
            _require_origin(file, data["provenance"], "provenance")
            _require_config(file, data.get("config", {}))
            again = "delete the file and run `make ablation` again"
            date = run.provenance["date"]
            begun = data["provenance"]["run"][0]["date"] if data["provenance"].get("run") else date
            if (data["tested_epoch"], begun) != (run.tested_epoch, date):
                raise ResultError(
                    f"{file}: of the weights after epoch {data['tested_epoch']}, of a run begun {begun}, but "
                    f"{run.path.name} was tested after epoch {run.tested_epoch} of one begun {date}; {again}"
                )
            for choice in data["choices"]:
                if choice["mean"] == "approximation":
                    check_perplexity(file, choice["test_ppl"], run, again)
            ablations.append((run, data))
    return ablations


def groups_with(experiment: str, results: list[Result]) -> dict[str, list[Result]]:
    """The results of each group of an experiment: planned groups first, then any other group that has results.

    Where a group has any, those of the rows `beside` it are among them.
    """
    groups: dict[str, list[Result]] = {name: [] for name in groups_of(experiment)}
    for run in results:
        if run.experiment == experiment:
            groups.setdefault(run.group, []).append(run)
    for name, group in groups_of(experiment).items():
        if groups[name]:
            others = [
                replace(run, row=row)
                for row, source in group.beside.items()
                for run in groups[source[0]]
                if (run.group, run.row) == source
            ]
            groups[name] = sorted([*groups[name], *others], key=lambda run: (place_of(run.row), run.row, run.seed))
    return groups


def experiments_of(results: list[Result]) -> list[str]:
    """The experiments to show: those of the paper, the demo where it was run, and one's own; sweeps are `grid`'s."""
    run = {result.experiment for result in results}
    return [
        *(name for name in catalogue() if name != "demo" or name in run),
        *sorted(run - catalogue().keys() - {"sweeps"}),
    ]


def chosen_experiments(names: list[str] | None, results: list[Result]) -> list[str]:
    """The experiments of these names, or those to show.

    Raises:
        ResultError: one is neither planned nor has results; names those that are or have.
    """
    there = dict.fromkeys([*catalogue(), *experiments_of(results)])
    for name in names or ():
        if name not in there:
            raise ResultError(f"there is no experiment {name!r}; choose from: {', '.join(there)}")
    return names or experiments_of(results)


def title(experiment: str, group: str) -> str:
    """The heading of a group's table and figure."""
    planned = groups_of(experiment)
    return planned[group].title if group in planned else f"{experiment}, {group}"


def read_json(path: Path) -> Any:
    """The content of a result file.

    Raises:
        ResultError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"not valid JSON ({error})") from error


def _in_place(run: Result, folder: Path) -> Result:
    place = run.path.relative_to(folder).as_posix()
    expected = f"{run.experiment}/{run.group}/{run.row}/seed{run.seed}.json"
    if place != expected:
        raise ResultError(f"{run.path}: the file says it is {expected} but lies at {place}; move it or repeat the run")
    return run


def _marked(results: list[Result]) -> list[Result]:
    """With the marks of runs whose row has runs with other settings."""
    rows: dict[tuple[str, str, str], list[Result]] = {}
    for run in results:
        rows.setdefault((run.experiment, run.group, run.row), []).append(run)
    return [
        replace(run, mark=mark)
        for runs in rows.values()
        for run, mark in zip(runs, differing([run.settings for run in runs]), strict=True)
    ]


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


def _require(path: Path, data: Any, where: str, optional: dict[Any, Any] | None = None, /, **kinds: Any) -> None:
    """Check that a part of a file is a JSON object with values of these kinds; optional ones may be absent or null."""
    if not isinstance(data, dict):
        raise _wrong(path, f"{where} is not a JSON object")
    for key, kind in {**(optional or {}), **kinds}.items():
        if key in kinds and key not in data:
            raise _wrong(path, f"{where} has no {key!r}")
        is_right = isinstance(data.get(key), kind) or (key not in kinds and data.get(key) is None)
        if not is_right:
            raise _wrong(path, f"{key!r} of {where} has the wrong type: {repr(data[key])[:80]}")


def _require_origin(path: Path, origin: Any, where: str) -> None:
    _require(path, origin, where, {"commit": str, "run": list}, dirty=(bool, type(None)))
    for attempt in origin.get("run") or []:
        _require(path, attempt, f"run of {where}", date=str)


def _require_config(path: Path, config: Any) -> None:
    _require(path, config, "config", dict.fromkeys(("trainer", "model", "data"), dict))
    for part in ("model", "data"):
        if given := config.get(part):
            _require(path, given, f"{part} of config", {"class_path": str, "init_args": dict})


def _wrong(path: Path, what: str) -> ResultError:
    return ResultError(f"{path}: {what}; if a run wrote it, delete the file and repeat the run")


def _computed(path: Path, values: dict[str, Any], where: str) -> dict[str, float]:
    """The numbers; what was not computed is null."""
    _require(path, values, where, **dict.fromkeys(values, (*NUMBER, type(None))))
    return {key: value for key, value in values.items() if value is not None}
