"""Averaging the probabilities of several models."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from reproduction.ensemble import ensemble_perplexities, load_predictions, main


def test_an_ensemble_averages_probabilities_word_by_word() -> None:
    probabilities = torch.tensor([[0.5, 0.1], [0.1, 0.3], [0.3, 0.2]], dtype=torch.float64)
    found = ensemble_perplexities(-probabilities.log())
    for count in (1, 2, 3):
        mean = probabilities[:count].mean(dim=0)
        assert found[count - 1] == pytest.approx(math.exp(-mean.log().mean().item()), rel=1e-12)


def test_equal_models_gain_nothing() -> None:
    surprisal = torch.rand(7, dtype=torch.float64)
    assert ensemble_perplexities(surprisal.expand(4, 7)) == pytest.approx([surprisal.mean().exp().item()] * 4)


@pytest.fixture
def predictions(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{seed}.pt" for seed in range(2)]
    for seed, file in enumerate(files):
        save(file, [{"approximation": torch.rand(n, 1), "mc": torch.rand(n, 1)} for n in (5, 5, 2)], seed=seed)
    return files


def save(file: Path, windows: list[dict[str, torch.Tensor]], **changes: Any) -> None:
    """Predictions as `Trainer.predict` writes them."""
    content = {"predictions": windows, "seed": 0, "epochs": 13, "mc_samples": 10, "provenance": {"commit": "0123"}}
    torch.save(content | changes, file)


def test_all_windows_of_all_kinds_are_read(predictions: list[Path]) -> None:
    surprisals = load_predictions(predictions[0])["predictions"]
    assert {kind: surprisal.shape for kind, surprisal in surprisals.items()} == {"approximation": (12,), "mc": (12,)}


def test_perplexities_are_printed_and_written(
    predictions: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*map(str, predictions), "--output", str(tmp_path / "ensemble.json")])
    written = json.loads((tmp_path / "ensemble.json").read_text())
    surprisals = [load_predictions(file)["predictions"]["mc"] for file in predictions]
    expected = ensemble_perplexities(torch.stack(surprisals))
    assert written["metrics"]["test_ppl_mc"] == expected
    assert (written["seeds"], written["epochs"], written["mc_samples"]) == ([0, 1], 13, 10)
    assert f"test_ppl_mc  1: {expected[0]:.2f}  2: {expected[1]:.2f}" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.tmp"))


def test_what_is_no_prediction_of_a_language_model_is_named(predictions: list[Path], tmp_path: Path) -> None:
    save(tmp_path / "ratings.pt", [{"approximation": torch.rand(5)}])
    torch.save([torch.rand(5, 1)], tmp_path / "old.pt")
    save(tmp_path / "short.pt", [{"approximation": torch.rand(5, 1)}])
    for name, message in (("ratings", "these are ratings"), ("old", "not the predictions"), ("gone", "No such file")):
        with pytest.raises(SystemExit, match=message):
            main([str(predictions[0]), str(tmp_path / f"{name}.pt")])
    with pytest.raises(SystemExit, match="different lengths: 5, 12 words"):
        main([str(predictions[0]), str(tmp_path / "short.pt")])


@pytest.mark.parametrize(("what", "value"), [("epochs", 12), ("mc_samples", 100)])
def test_models_that_do_not_belong_together_are_refused(predictions: list[Path], what: str, value: int) -> None:
    save(predictions[1], torch.load(predictions[1])["predictions"], **{what: value})
    with pytest.raises(SystemExit, match=rf"the models differ in {what}: \d+, {value}"):
        main([*map(str, predictions)])
