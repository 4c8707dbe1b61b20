"""Averaging the probabilities of several models."""

import json
import math
from collections.abc import Callable
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
    content = {"predictions": windows, "seed": 0, "mc_samples": 10, "provenance": {"commit": "0123"}}
    torch.save(content | changes, file)


def test_all_windows_of_all_kinds_are_read(predictions: list[Path]) -> None:
    surprisals = load_predictions(predictions[0])["predictions"]
    assert {kind: surprisal.shape for kind, surprisal in surprisals.items()} == {"approximation": (12,), "mc": (12,)}


def test_perplexities_are_printed_and_written_beside_the_results_of_the_models(
    predictions: list[Path], folder: Path, write_result: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        output = write_result("ptb", "small", "zaremba", seed=seed).with_name("ensemble.json")
    main([*map(str, predictions), "--output", str(output)])
    written = json.loads(output.read_text())
    surprisals = [load_predictions(file)["predictions"]["mc"] for file in predictions]
    expected = ensemble_perplexities(torch.stack(surprisals))
    assert written["metrics"]["test_ppl_mc"] == expected
    assert (written["seeds"], written["epochs"], written["mc_samples"], written["diverged"]) == ([0, 1], "3", 10, [])
    assert f"test_ppl_mc  1: {expected[0]:.2f}  2: {expected[1]:.2f}" in capsys.readouterr().out
    assert not list(folder.rglob("*.tmp"))


def test_the_validation_text_is_averaged_apart_where_all_have_it(
    predictions: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    windows = [[{"approximation": torch.rand(n, 1)} for n in (4, 3)] for _ in predictions]
    for seed, file in enumerate(predictions):
        save(file, torch.load(file)["predictions"], seed=seed, validation=windows[seed])
    main([*map(str, predictions)])
    expected = ensemble_perplexities(
        torch.stack([torch.cat([window["approximation"] for window in its]).flatten() for its in windows])
    )
    assert f"valid_ppl  1: {expected[0]:.2f}  2: {expected[1]:.2f}" in capsys.readouterr().out
    save(predictions[0], torch.load(predictions[0])["predictions"])
    main([*map(str, predictions)])
    assert "valid_ppl" not in capsys.readouterr().out


def test_an_ensemble_of_shortened_runs_says_so(predictions: list[Path], write_result: Callable[..., Path]) -> None:
    for seed in range(2):
        output = write_result("ptb", "small", "zaremba", seed=seed, epochs=2).with_name("ensemble.json")
    main([*map(str, predictions), "--output", str(output)])
    assert json.loads(output.read_text())["epochs"] == "2 of 3 epochs"


def test_models_of_different_length_or_settings_or_without_a_result_make_no_ensemble(
    predictions: list[Path], write_result: Callable[..., Path]
) -> None:
    output = write_result("ptb", "small", "zaremba", seed=0).with_name("ensemble.json")
    arguments = [*map(str, predictions), "--output", str(output)]
    with pytest.raises(SystemExit, match=r"small/zaremba has no seed1\.json: .* run these seeds first"):
        main(arguments)
    for changes, said in (
        ({"epochs": 2}, "3, 2 of 3 epochs"),
        ({"config": {"trainer": {"precision": "bf16-mixed"}}}, r"3, 3 bf16-mixed"),
    ):
        write_result("ptb", "small", "zaremba", seed=1, **changes)
        with pytest.raises(SystemExit, match=f"the seeds ran for different epochs, or with other settings: {said}$"):
            main(arguments)
    assert not output.exists()


def test_surprisals_are_averaged_in_double_precision(tmp_path: Path) -> None:
    surprisals = 20 * torch.rand(2, 500)
    for seed in (0, 1):
        save(tmp_path / f"{seed}.pt", [{"approximation": surprisals[seed, :, None]}], seed=seed)
    loaded = [load_predictions(tmp_path / f"{seed}.pt")["predictions"]["approximation"] for seed in (0, 1)]
    logs = [math.log((math.exp(-a) + math.exp(-b)) / 2) for a, b in surprisals.T.tolist()]
    expected = [math.exp(math.fsum(surprisals[0].tolist()) / 500), math.exp(-math.fsum(logs) / 500)]
    assert ensemble_perplexities(torch.stack(loaded)) == pytest.approx(expected, rel=1e-12)


def test_an_ensemble_names_what_each_of_its_models_was_predicted_by_and_asks_nothing_of_other_seeds(
    predictions: list[Path], write_result: Callable[..., Path]
) -> None:
    write_result("ptb", "small", "zaremba", seed=2, epochs=2, config={"trainer": {"precision": "bf16-mixed"}})
    for seed, file in enumerate(predictions):
        content = torch.load(file, weights_only=True)
        content["provenance"]["commit"] = f"{seed}"
        torch.save(content, file)
        test_ppl = load_predictions(file)["predictions"]["approximation"].mean().exp().item()
        metrics = {"valid_ppl": 90.0, "test_ppl": test_ppl}
        output = write_result("ptb", "small", "zaremba", seed=seed, metrics=metrics).with_name("ensemble.json")
    main([*map(str, reversed(predictions)), "--output", str(output)])
    written = json.loads(output.read_text())
    assert (written["seeds"], written["epochs"]) == ([1, 0], "3")
    assert [origin["commit"] for origin in written["provenance"]] == ["1", "0"]
    alone = load_predictions(predictions[1])["predictions"]["approximation"].mean().exp().item()
    assert written["metrics"]["test_ppl"][0] == pytest.approx(alone), "in the order in which they are given"


def test_a_diverged_model_is_left_out_by_the_rule_of_the_tables(
    predictions: list[Path], tmp_path: Path, write_result: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "2.pt", [{"approximation": torch.full((12, 1), torch.nan)}], seed=2)
    for seed, valid in enumerate((90.0, 91.0, None)):
        metrics = {"valid_ppl": valid, "test_ppl": 85.0}
        output = write_result("ptb", "small", "zaremba", seed=seed, metrics=metrics).with_name("ensemble.json")
    main([*map(str, predictions), str(tmp_path / "2.pt"), "--output", str(output)])
    assert "left out, since they diverged: seeds 2" in capsys.readouterr().out
    written = json.loads(output.read_text())
    assert (written["seeds"], written["diverged"], len(written["metrics"]["test_ppl"])) == ([0, 1], [2], 2)


def test_what_is_no_prediction_of_a_language_model_is_named(predictions: list[Path], tmp_path: Path) -> None:
    save(tmp_path / "ratings.pt", [{"approximation": torch.rand(5)}])
    torch.save([torch.rand(5, 1)], tmp_path / "old.pt")
    save(tmp_path / "short.pt", [{"approximation": torch.rand(5, 1)}], seed=1)
    for name, message in (("ratings", "these are ratings"), ("old", "not the predictions"), ("gone", "No such file")):
        with pytest.raises(SystemExit, match=message):
            main([str(predictions[0]), str(tmp_path / f"{name}.pt")])
    torch.save({"predictions": [tmp_path]}, tmp_path / "foreign.pt")
    (tmp_path / "cut.pt").write_bytes(predictions[1].read_bytes()[:-100])
    for name in ("foreign", "cut"):
        with pytest.raises(SystemExit, match=rf"{name}\.pt is damaged, or holds something other than tensors"):
            main([str(predictions[0]), str(tmp_path / f"{name}.pt")])
    with pytest.raises(SystemExit, match="different lengths: 5, 12 words"):
        main([str(predictions[0]), str(tmp_path / "short.pt")])


def test_samples_of_different_number_and_a_model_taken_twice_are_refused(predictions: list[Path]) -> None:
    with pytest.raises(SystemExit, match="the seeds of the models are 0, 0"):
        main([str(predictions[0]), str(predictions[0])])
    save(predictions[1], torch.load(predictions[1])["predictions"], seed=1, mc_samples=100)
    with pytest.raises(SystemExit, match="the models differ in mc_samples: 10, 100; delete"):
        main([*map(str, predictions)])
