"""Ensembles of language models, whose probabilities are averaged: `python -m inference.ensemble --help`."""

import argparse
import json
import sys
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from experiments import print_any_text
from experiments.files import write_atomically
from experiments.results import (
    MC,
    Result,
    ResultError,
    check_perplexity,
    comparable,
    load_results,
    options_that_matter,
    without_diverged,
)
from training.checkpoints import read_checkpoint

# What `main.py predict` calls its surprisals, and the perplexity that a test makes of them.
METRICS = {
    "approximation": "test_ppl",
    "mc": "test_ppl_mc",
    "mc_window": "test_ppl_mc_window",
    "validation": "valid_ppl",
}


def load_predictions(file: Path) -> dict[str, Any]:
    """What `main.py predict` wrote for one language model, its surprisals as one tensor [N] for each kind, in nats.

    The kinds are those of the test text, and `validation`, that text by the approximation.

    Raises:
        ValueError: the file is damaged, not of that kind, or does not name its run.
        OSError: it cannot be opened.
    """
    try:
        content = read_checkpoint(file)  # verifies its checksums
    except (UnpicklingError, ValueError) as error:
        raise ValueError(
            f"{file} is damaged, or holds something other than tensors and plain values, which is refused: "
            "delete it and run `main.py predict` again"
        ) from error
    test: Any = content.get("predictions")
    validation = content.get("validation", [])
    if not _are_windows(test) or (validation and not _are_windows(validation)):
        raise ValueError(f"{file}: not the predictions of a language model; run `main.py predict` for it")
    if test[0]["approximation"].dim() != 2:
        raise ValueError(f"{file}: these are ratings; ensembles are of language models")
    try:
        origin = {
            "begun": content["provenance"]["run"][0]["date"],
            "weights_sha256": content["provenance"]["weights_sha256"],
            "mc": {name: options_that_matter(content["config"]).get(name) for name in MC}
            | {"mc_samples": content["mc_samples"]},
            "epoch": content["epoch"],
            "seed": content["seed"],
        }
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} does not name its run (it has no {error}): delete it and run `main.py predict` again"
        ) from error
    surprisals = {kind: torch.cat([window[kind] for window in test]).flatten().double() for kind in test[0]}
    if validation:
        surprisals["validation"] = torch.cat([window["approximation"] for window in validation]).flatten().double()
    return content | origin | {"predictions": surprisals, "file": file}


def _are_windows(windows: Any) -> bool:
    """Whether these are predictions of at least one window: the same kinds for each window, one value for each word."""
    return (
        isinstance(windows, list)
        and bool(windows)
        and all(
            isinstance(window, dict)
            and "approximation" in window
            and window.keys() == windows[0].keys()
            and all(
                isinstance(surprisal, Tensor) and surprisal.shape == window["approximation"].shape
                for surprisal in window.values()
            )
            for window in windows
        )
    )


def check_run(model: dict[str, Any], run: Result) -> None:
    """Check that predictions were made by the weights that a finished run tested.

    Raises:
        ValueError: they belong to another run, epoch or checkpoint, or have another perplexity than the run's test.
    """
    file, weights = model["file"], model["weights_sha256"]
    of_test = run.provenance.get("weights_sha256", weights)  # older results lack it
    if (model["begun"], model["epoch"], weights) != (run.provenance["date"], run.tested_epoch, of_test):
        raise ValueError(
            f"{file} is of weights after epoch {model['epoch']} of a run begun {model['begun']}, but {run.path} tested "
            f"those after epoch {run.tested_epoch} of one begun {run.provenance['date']}, or other weights of the same "
            "epoch: delete the file and run `make ensemble` again"
        )
    advice = "an ensemble needs predictions of the whole test text: delete the file and run `make ensemble` again"
    here, of_run = options_that_matter(model["config"]), options_that_matter(run.config)
    as_tested = all(here.get(name) == of_run.get(name) for name in (*MC, "precision"))
    for kind, metric in METRICS.items():
        # Other samples or masks may be chosen for an ensemble. The validation text is one stream here, not in training.
        is_mc = kind.startswith("mc") and kind in model["predictions"] and metric in run.metrics
        if kind == "approximation" or (is_mc and as_tested):
            check_perplexity(file, model["predictions"][kind].mean().exp().item(), run, advice, metric)


def ensemble_perplexities(surprisals_MN: Tensor) -> list[float]:
    """Perplexity of the first 1, 2, ..., M models, their probabilities averaged word by word.

    Args:
        surprisals_MN: of every word under each of the M models, in nats.
    """
    counts = torch.arange(1, len(surprisals_MN) + 1, dtype=surprisals_MN.dtype)
    log_probs = torch.logcumsumexp(-surprisals_MN, dim=0) - counts.log()[:, None]
    return (-log_probs.mean(dim=1)).exp().tolist()


def finished_runs(folder: Path, seeds: list[int]) -> list[Result]:
    """The results of these seeds, in their order, from a row's folder of results.

    Raises:
        ResultError: one is not there or cannot be used, or they may not be averaged.
    """
    missing = [f"seed{seed}.json" for seed in seeds if not (folder / f"seed{seed}.json").is_file()]
    if missing:
        raise ResultError(
            f"{folder} has no {', '.join(missing)}: an ensemble is of finished runs; run these seeds first"
        )
    by_seed = {run.seed: run for run in load_results(folder.parents[2]) if run.path.parent == folder}
    runs = [by_seed[seed] for seed in seeds]
    if len(comparable(runs)) > 1:
        each = (f"{run.length} {run.mark}".strip() for run in runs)
        raise ResultError(f"{folder}: the seeds ran for different epochs, or with other settings: {', '.join(each)}")
    return runs


def main(arguments: list[str] | None = None) -> None:
    """Print the perplexities of ensembles of 1, 2, ... models, or write them into a file."""
    parser = argparse.ArgumentParser(
        prog="python -m inference.ensemble",
        description="Perplexity of models whose probabilities are averaged (Zaremba et al., section 4.1; the "
        "paper's 68.7 of ten models, each by MC). First `main.py predict` for each of them; `make ensemble` does both.",
    )
    parser.add_argument("predictions", type=Path, nargs="+", help="predictions.pt of each model")
    parser.add_argument("--output", type=Path, help="result file to write, ensemble.json beside those of the models")
    options = parser.parse_args(arguments)
    try:
        models = [load_predictions(file) for file in options.predictions]
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    for kind in METRICS:
        lengths = {len(model["predictions"][kind]) for model in models if kind in model["predictions"]}
        if len(lengths) > 1:
            sys.exit(f"the predictions are of texts of different lengths: {', '.join(map(str, sorted(lengths)))} words")
    seeds = [model["seed"] for model in models]
    if len(set(seeds)) < len(seeds):
        sys.exit(f"the seeds of the models are {', '.join(map(str, seeds))}: each must be another model")
    for name in MC:
        of_each = [model["mc"][name] for model in models]
        if len(set(of_each)) > 1:
            sys.exit(
                f"the models differ in {name}: {', '.join(map(str, of_each))}; delete the predictions that differ, and "
                "predict again"
            )
    epochs, diverged = "", []
    if options.output:
        try:
            runs = finished_runs(options.output.parent, seeds)
            diverged = [run.seed for run in runs if run not in without_diverged(runs)]
            for model, run in zip(models, runs, strict=True):
                if run.seed not in diverged:
                    check_run(model, run)
        except ValueError as error:
            sys.exit(str(error))
        epochs = runs[0].length
        if diverged:
            print(f"left out, since they diverged: seeds {', '.join(map(str, diverged))}")
            models = [model for model in models if model["seed"] not in diverged]
    metrics = {
        METRICS[kind]: ensemble_perplexities(torch.stack([model["predictions"][kind] for model in models]))
        for kind in METRICS
        if all(kind in model["predictions"] for model in models)
    }
    for metric, perplexities in metrics.items():
        print(metric, *(f"{count}: {ppl:.2f}" for count, ppl in enumerate(perplexities, start=1)), sep="  ")
    if options.output:
        report = {
            "seeds": [model["seed"] for model in models],
            "diverged": diverged,
            "epochs": epochs,
            "mc_samples": models[0]["mc_samples"],
            "metrics": metrics,
            "provenance": [model["provenance"] for model in models],
        }
        try:
            write_atomically(options.output, json.dumps(report, indent=2) + "\n")
        except OSError as error:
            sys.exit(str(error))
        print(f"wrote {options.output}")


if __name__ == "__main__":
    print_any_text()
    main()
