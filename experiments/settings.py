"""The options that the figures of a run depend on, and which of them are not those of its row in `configs`."""

import ast
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]

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


def settings(config: dict[str, Any]) -> dict[str, Any]:
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
    for file in (ROOT / package).glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                [init] = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
                values = init.args.defaults
                options = init.args.args[len(init.args.args) - len(values) :]
                return {option.arg: ast.literal_eval(value) for option, value in zip(options, values, strict=True)}
    return {}


def configured(experiment: str, group: str, row: str) -> dict[str, Any]:
    """The settings of a row's file in `configs`, which inherits from the folders above; none without such a file."""
    folders = (Path(), Path(experiment), Path(experiment, group))
    file = ROOT / "configs" / folders[-1] / f"{row}.yaml"
    if not file.is_file():
        return {}
    config: dict[str, Any] = {"trainer": TRAINER}
    for source in (*(ROOT / "configs" / folder / "common.yaml" for folder in folders), file):
        if source.is_file():
            config = _merged(config, yaml.safe_load(source.read_text(encoding="utf-8")))
    return settings(config)


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


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        name: _merged(below[name], value) if isinstance(value, dict) and isinstance(below.get(name), dict) else value
        for name, value in above.items()
    }
    return below | both
