"""What needs no network."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from reproduction import baselines
from reproduction.baselines import main, ridge, word_presence
from reproduction.results import load_results
from reproduction.table import sentiment_table


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
