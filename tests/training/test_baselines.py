"""What needs no network."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from datasets import Dataset

from experiments.results import load_results
from reproduction.tables import sentiment_table
from training import baselines
from training.baselines import main, ridge, word_presence


def test_ridge_minimises_the_penalised_squared_error_for_each_penalty() -> None:
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    penalties = (3.0, 0.1, 50.0)
    for penalty, (weights, intercept) in zip(penalties, ridge(x, y, penalties), strict=True):
        weights.requires_grad_(True)
        intercept = intercept.detach().requires_grad_(True)
        loss = (y - x @ weights - intercept).square().sum() + penalty * weights.square().sum()
        for gradient in torch.autograd.grad(loss, (weights, intercept)):
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)


def test_presence_is_of_frequent_words_whatever_their_number_and_place() -> None:
    chunks = Dataset.from_dict({"words": [[0, 4, 4, 6], [1, 2, 5003, 5]]})
    present = word_presence(chunks)
    assert present.shape == (2, 4999)
    assert [row.nonzero().flatten().tolist() for row in present] == [[0, 2], [1]]


@pytest.fixture
def reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty chunks whose rating is how many of two words they have, and noise; in place of the film reviews."""

    class Few:
        def __init__(self, data_dir: Path, split_seed: int, validation_share: float) -> None:
            generator = torch.Generator().manual_seed(split_seed)
            words = torch.randint(4, 12, (60, 5), generator=generator)
            noise = 0.05 * torch.randn(60, generator=generator)
            ratings = (words == 4).any(dim=1) * 0.3 + (words == 5).any(dim=1) * 0.2 + noise
            parts = {"train": (0, 40), "test": (40, 60)}
            if validation_share:
                parts = {"validation": (0, 10), "train": (10, 40), "test": (40, 60)}
            self.chunks = {
                name: Dataset.from_dict(
                    {"words": words[a:b].tolist(), "rating": ratings[a:b].tolist(), "review": list(range(a, b))}
                )
                for name, (a, b) in parts.items()
            }

        def prepare_data(self) -> None: ...

        def setup(self) -> None: ...

    monkeypatch.setattr(baselines, "FilmReviews", Few)
    monkeypatch.setattr(baselines, "WORDS", range(4, 20))


def test_baselines_of_every_split_are_written_and_stand_in_the_tables(
    reviews: None, folder: Path, write_result: Callable[..., Path]
) -> None:
    main(["--split_seeds", "0", "2", "--output", str(folder / "sentiment/baselines.json")])
    report = json.loads((folder / "sentiment/baselines.json").read_text())
    assert report["provenance"].keys() >= {"commit", "date", "hardware"}
    for split in ("0", "2"):
        constant, found = report["splits"][split]["constant"], report["splits"][split]["ridge"]
        assert found["test_rmse"] < 0.7 * constant["test_rmse"]
        assert found["train_rmse"] < constant["train_rmse"]
        assert found["test_rmse_review"] == pytest.approx(found["test_rmse"])  # a chunk is a review here
        assert found["penalty"] == min(baselines.PENALTIES, key=lambda p, f=found: f["valid_rmse"][str(p)])
    write_result("sentiment", "fair_split2", "naive_lstm")
    results = load_results(folder)
    table = sentiment_table("sentiment", "fair_split2", results, folder)
    assert list(table["row"][:2]) == ["Constant predictor", "Ridge regression on words"]
    assert table["test"][1] == f"{report['splits']['2']['ridge']['test_rmse']:.4f}"
    assert "Ridge regression on words" not in set(sentiment_table("sentiment", "length_sweep", [], folder)["row"])


def features(words: list[list[int]]) -> numpy.ndarray:
    """Which of the words 4 to 19 each chunk has."""
    return numpy.array([[float(word in chunk) for word in range(4, 20)] for chunk in words])


def fitted(words: list[list[int]], ratings: list[float], penalty: float) -> Callable[[list[list[int]]], numpy.ndarray]:
    """Ridge regression as least squares with a row for each weight: what it predicts."""
    x, y = features(words), numpy.array(ratings)
    rows = numpy.vstack([x - x.mean(axis=0), penalty**0.5 * numpy.eye(16)])
    weights = numpy.linalg.lstsq(rows, numpy.append(y - y.mean(), numpy.zeros(16)), rcond=None)[0]
    return lambda others: (features(others) - x.mean(axis=0)) @ weights + y.mean()


def rmse(predicted: Any, ratings: Any) -> float:
    return float(numpy.sqrt(numpy.mean((numpy.asarray(predicted) - numpy.asarray(ratings)) ** 2)))


def test_the_penalty_is_that_of_the_held_out_reviews_and_the_errors_are_those_of_all_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Everything by brute force: two splits of 120 chunks, three of a review, whose ratings two words make."""
    served: dict[tuple[int, float], dict[str, Dataset]] = {}

    class Few:
        def __init__(self, data_dir: Path, split_seed: int, validation_share: float) -> None:
            source = random.Random(split_seed)
            words = [[source.randrange(4, 12) for _ in range(5)] for _ in range(120)]
            ratings = [0.3 * (4 in c) + 0.2 * (5 in c) + source.gauss(0.1 * (i < 90), 0.5) for i, c in enumerate(words)]
            parts = {"train": range(90), "test": range(90, 120)}
            if validation_share:
                parts |= {"validation": range(9), "train": range(9, 90)}
            self.chunks = served[split_seed, validation_share] = {
                name: Dataset.from_dict(
                    {
                        "words": [words[i] for i in part],
                        "rating": [ratings[i] for i in part],
                        "review": [i // 3 for i in part],
                    }
                )
                for name, part in parts.items()
            }

        def prepare_data(self) -> None: ...

        def setup(self) -> None: ...

    monkeypatch.setattr(baselines, "FilmReviews", Few)
    monkeypatch.setattr(baselines, "WORDS", range(4, 20))
    main(["--split_seeds", "7", "35", "--output", str(tmp_path / "baselines.json")])
    report = json.loads((tmp_path / "baselines.json").read_text())["splits"]
    assert {share for _, share in served} == {0.0, 0.1}, "the penalty is chosen on a tenth"
    for split in (7, 35):
        held_out, data = served[split, 0.1], served[split, 0.0]
        train, test = (data[name][:] for name in ("train", "test"))
        penalties = (10.0, 30.0, 100.0, 300.0, 1000.0)
        errors = {
            penalty: rmse(
                fitted(held_out["train"]["words"], held_out["train"]["rating"], penalty)(
                    held_out["validation"]["words"]
                ),
                held_out["validation"]["rating"],
            )
            for penalty in penalties
        }
        penalty = min(penalties, key=lambda one, of=errors: of[one])
        assert penalty in (100.0, 300.0), "training reviews, or the largest error, would choose 10"
        mean = sum(train["rating"]) / 90
        found = report[str(split)]
        assert found["ridge"]["penalty"] == penalty
        assert found["ridge"]["valid_rmse"] == pytest.approx({str(one): error for one, error in errors.items()})
        for name, predict in (
            ("ridge", fitted(train["words"], train["rating"], penalty)),
            ("constant", lambda words, mean=mean: numpy.full(len(words), mean)),
        ):
            by_review = [
                numpy.reshape(values, (10, 3)).mean(axis=1) for values in (predict(test["words"]), test["rating"])
            ]
            assert found[name]["train_rmse"] == pytest.approx(rmse(predict(train["words"]), train["rating"])), name
            assert found[name]["test_rmse"] == pytest.approx(rmse(predict(test["words"]), test["rating"])), name
            assert found[name]["test_rmse_review"] == pytest.approx(rmse(*by_review)), name


def test_presence_has_the_first_and_the_last_of_the_frequent_words_and_none_beside_them() -> None:
    chunks = Dataset.from_dict({"words": [[4, 0, 0], [5002, 3, 5003]]})
    assert [row.nonzero().flatten().tolist() for row in word_presence(chunks)] == [[0], [4998]]
