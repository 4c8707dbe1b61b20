"""Ensembles of language models, whose probabilities are averaged: `python -m reproduction.ensemble --help`."""

import argparse
import json
import sys
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from reproduction import print_any_text
from reproduction.results import Result, ResultError, alike, kept, load_results

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
        ValueError: the file is not of that kind.
    """
    try:
        content = torch.load(file, weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        raise ValueError(
            f"{file} is damaged, or holds something other than tensors and plain values, which is refused: "
            "run `main.py predict` anew"
        ) from error
    windows = content.get("predictions") if isinstance(content, dict) else None
    if not isinstance(windows, list) or not all(isinstance(w, dict) and "approximation" in w for w in windows):
        raise ValueError(f"{file}: not the predictions of a language model; run `main.py predict` for it")
    if windows[0]["approximation"].dim() != 2:
        raise ValueError(f"{file}: these are ratings; ensembles are of language models")
    surprisals = {kind: torch.cat([window[kind] for window in windows]).flatten().double() for kind in windows[0]}
    if validation := content.get("validation"):
        surprisals["validation"] = torch.cat([window["approximation"] for window in validation]).flatten().double()
    return content | {"predictions": surprisals}


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
    if len(alike(runs)) > 1:
        each = (f"{run.length} {run.mark}".strip() for run in runs)
        raise ResultError(f"{folder}: the seeds ran for different epochs, or with other settings: {', '.join(each)}")
    return runs


def main(arguments: list[str] | None = None) -> None:
    """Print the perplexities of ensembles of 1, 2, ... models, or write them into a file."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.ensemble",
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
    lengths = {len(model["predictions"]["approximation"]) for model in models}
    if len(lengths) > 1:
        sys.exit(f"the predictions are of texts of different lengths: {', '.join(map(str, sorted(lengths)))} words")
    seeds = [model["seed"] for model in models]
    if len(set(seeds)) < len(seeds):
        sys.exit(f"the seeds of the models are {', '.join(map(str, seeds))}: each must be another model")
    if len({model["mc_samples"] for model in models}) > 1:
        sys.exit(
            f"the models differ in mc_samples: {', '.join(str(model['mc_samples']) for model in models)}; "
            "delete the predictions of other numbers, and predict anew"
        )
    epochs, diverged = "", []
    if options.output:
        try:
            runs = finished_runs(options.output.parent, seeds)
        except ResultError as error:
            sys.exit(str(error))
        epochs = runs[0].length
        diverged = [run.seed for run in runs if run not in kept(runs)]
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
        temporary = options.output.with_name(options.output.name + ".tmp")
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        temporary.replace(options.output)
        print(f"wrote {options.output}")


if __name__ == "__main__":
    print_any_text()
    main()
