"""What the ratings of film reviews can be predicted by without a network: `python -m training.baselines --help`.

The mean rating, and a ridge regression on which words a chunk has. A network that is no better than the first has
learned nothing; one that is no better than the second has not learned to read.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from datamodules import FilmReviews
from experiments import print_any_text
from experiments.files import write_atomically
from lightning_modules.metrics import rmse_by_review
from training.provenance import provenance

WORDS = range(4, 5003)  # ids of the 4,999 most frequent words, as measured for protocol section 2.1
PENALTIES = (10.0, 30.0, 100.0, 300.0, 1000.0)
VALIDATION_SHARE = 0.1


def word_presence(chunks: Dataset) -> Tensor:
    """Which of the most frequent words each chunk has, [N, 4999], 0 or 1."""
    ids = torch.as_tensor(chunks.with_format("torch")["words"][:])
    present = torch.zeros(len(ids), max(WORDS.stop, int(ids.max()) + 1), dtype=torch.bool)
    return present.scatter_(1, ids, True)[:, WORDS.start : WORDS.stop].double()


def ridge(x: Tensor, y: Tensor, penalties: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    """Weights [P] and intercept that minimise |y - x w - b|^2 + penalty |w|^2, for each penalty; x is [N, P], y [N]."""
    centre, mean = x.mean(dim=0), y.mean()
    x = x - centre
    gram, target = x.T @ x, x.T @ (y - mean)
    solutions = [
        torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype), target) for penalty in penalties
    ]
    return [(weights, mean - centre @ weights) for weights in solutions]


def measure(data_dir: Path, split_seed: int) -> dict[str, Any]:
    """Errors of both baselines on one split, in rating units.

    The penalty is chosen on the first tenth of the training reviews; then all of them are fitted.
    """
    held_out, data = (FilmReviews(data_dir, split_seed=split_seed, validation_share=s) for s in (VALIDATION_SHARE, 0.0))
    values = {}
    for name, module in (("held out", held_out), ("all", data)):
        module.prepare_data()
        module.setup()
        values[name] = {
            split: (word_presence(chunks), torch.tensor(chunks["rating"], dtype=torch.float64))
            for split, chunks in module.chunks.items()
        }

    def error(fitted: tuple[Tensor, Tensor], of: tuple[Tensor, Tensor]) -> float:
        (weights, intercept), (x, y) = fitted, of
        return float((x @ weights + intercept - y).square().mean().sqrt())

    candidates = ridge(*values["held out"]["train"], PENALTIES)
    errors = {
        penalty: error(fitted, values["held out"]["validation"])
        for penalty, fitted in zip(PENALTIES, candidates, strict=True)
    }
    penalty = min(errors, key=lambda one: errors[one])
    train, test = values["all"]["train"], values["all"]["test"]
    [fitted] = ridge(*train, [penalty])
    constant = torch.zeros_like(fitted[0]), train[1].mean()
    reviews = torch.tensor(data.chunks["test"]["review"])
    report: dict[str, Any] = {}
    for name, baseline in (("constant", constant), ("ridge", fitted)):
        prediction = test[0] @ baseline[0] + baseline[1]
        report[name] = {
            "train_rmse": error(baseline, train),
            "test_rmse": error(baseline, test),
            "test_rmse_review": float(rmse_by_review(prediction, test[1], reviews)),
        }
    report["ridge"] |= {"penalty": penalty, "valid_rmse": errors}
    return report


def main(arguments: list[str] | None = None) -> None:
    """Measure the baselines on each split and write them into a file."""
    parser = argparse.ArgumentParser(
        prog="python -m training.baselines",
        description="Errors of the mean rating and of a ridge regression on words, for film reviews.",
    )
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="where film_reviews is (%(default)s)")
    parser.add_argument("--split_seeds", type=int, nargs="+", default=[0, 1, 2], help="splits of the reviews")
    parser.add_argument("--output", type=Path, default=Path("results/sentiment/baselines.json"), help="(%(default)s)")
    options = parser.parse_args(arguments)
    splits = {}
    for seed in options.split_seeds:
        print(f"ridge regression on words, split {seed}: about a minute", flush=True)
        try:
            splits[str(seed)] = measure(options.data_dir, seed)
        except (ValueError, OSError) as error:
            sys.exit(str(error))
    report = {"splits": splits, "provenance": provenance(torch.device("cpu"), 1)}
    write_atomically(options.output, json.dumps(report, indent=2) + "\n")
    for seed, baselines in splits.items():
        for name, errors in baselines.items():
            print(f"split {seed}, {name}:", *(f"{k} {v:.4f}" for k, v in errors.items() if isinstance(v, float)))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    print_any_text()
    main()
