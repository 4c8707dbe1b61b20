"""Ensembles of language models, whose probabilities are averaged: `python -m reproduction.ensemble --help`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def load_surprisals(file: Path) -> dict[str, Tensor]:
    """Surprisal in nats of every word, [N], by kind: what `main.py predict` wrote for one language model.

    Raises:
        ValueError: the file is not of that kind.
    """
    windows = torch.load(file, weights_only=True)
    if not isinstance(windows, list) or not all(isinstance(w, dict) and "approximation" in w for w in windows):
        raise ValueError(f"{file}: not the predictions of a language model; run `main.py predict` for it")
    if windows[0]["approximation"].dim() != 2:
        raise ValueError(f"{file}: these are ratings; ensembles are of language models")
    return {kind: torch.cat([window[kind] for window in windows]).flatten().double() for kind in windows[0]}


def ensemble_perplexities(surprisals_MN: Tensor) -> list[float]:
    """Perplexity of the first 1, 2, ..., M models, their probabilities averaged word by word.

    Args:
        surprisals_MN: of every word under each of the M models, in nats.
    """
    counts = torch.arange(1, len(surprisals_MN) + 1, dtype=surprisals_MN.dtype)
    log_probs = torch.logcumsumexp(-surprisals_MN, dim=0) - counts.log()[:, None]
    return (-log_probs.mean(dim=1)).exp().tolist()


def main(arguments: list[str] | None = None) -> None:
    """Print the perplexities of ensembles of 1, 2, ... models, or write them into a file."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.ensemble",
        description="Test perplexity of models whose probabilities are averaged (Zaremba et al., section 4.1; the "
        "paper's 68.7 of ten models, each by MC). First `main.py predict` for each of them.",
    )
    parser.add_argument("predictions", type=Path, nargs="+", help="predictions.pt of each model")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    try:
        models = [load_surprisals(file) for file in options.predictions]
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    kinds = [kind for kind in models[0] if all(kind in model for model in models)]
    lengths = {len(model["approximation"]) for model in models}
    if len(lengths) > 1:
        sys.exit(f"the predictions are of texts of different lengths: {', '.join(map(str, sorted(lengths)))} words")
    result: dict[str, Any] = {
        kind: ensemble_perplexities(torch.stack([model[kind] for model in models])) for kind in kinds
    }
    for kind, perplexities in result.items():
        print(kind, *(f"{count}: {ppl:.2f}" for count, ppl in enumerate(perplexities, start=1)), sep="  ")
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
