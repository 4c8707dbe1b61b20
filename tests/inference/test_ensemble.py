"""Averaging the probabilities of several models."""

import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.results import ensembles_of, load_results
from inference.ensemble import ensemble_perplexities, load_predictions, main
from tests.tiny import tiny_run


def test_an_ensemble_averages_probabilities_word_by_word() -> None:
    probabilities = torch.tensor([[0.5, 0.1], [0.1, 0.3], [0.3, 0.2]], dtype=torch.float64)
    found = ensemble_perplexities(-probabilities.log())
    for count in (1, 2, 3):
        mean = probabilities[:count].mean(dim=0)
        assert found[count - 1] == pytest.approx(math.exp(-mean.log().mean().item()), rel=1e-12)


def test_equal_models_gain_nothing() -> None:
    surprisal = torch.rand(7, dtype=torch.float64)
    assert ensemble_perplexities(surprisal.expand(4, 7)) == pytest.approx([surprisal.mean().exp().item()] * 4)


DATE = "2026-01-02T03:04:05"  # of the results that `write_result` writes


def save(file: Path, windows: list[dict[str, torch.Tensor]], **changes: Any) -> None:
    """Predictions as `Trainer.predict` writes them."""
    origin = {"commit": "0123", "dirty": False, "run": [{"date": DATE}], "weights_sha256": "aa"}
    content = {"predictions": windows, "seed": 0, "mc_samples": 10, "epoch": 3, "config": {}, "provenance": origin}
    torch.save(content | changes, file)


@pytest.fixture
def predictions(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{seed}.pt" for seed in range(2)]
    for seed, file in enumerate(files):
        save(file, [{"approximation": torch.rand(n, 1), "mc": torch.rand(n, 1)} for n in (5, 5, 2)], seed=seed)
    return files


@pytest.fixture
def write_results(predictions: list[Path], write_result: Callable[..., Path]) -> Callable[..., Path]:
    """Write the results of the runs that predicted; returns where their ensemble goes."""

    def write(**changes: Any) -> Path:
        for seed, file in enumerate(predictions):
            surprisals = load_predictions(file)["predictions"]["approximation"]
            metrics = {"valid_ppl": 90.0 + seed, "test_ppl": surprisals.mean().exp().item()}
            path = write_result("ptb", "small", "zaremba", seed=seed, **{"metrics": metrics} | changes)
        return path.with_name("ensemble.json")

    return write


def test_all_windows_of_all_kinds_are_read(predictions: list[Path]) -> None:
    surprisals = load_predictions(predictions[0])["predictions"]
    assert {kind: surprisal.shape for kind, surprisal in surprisals.items()} == {"approximation": (12,), "mc": (12,)}


def test_perplexities_are_printed_and_written_beside_the_results_of_the_models(
    predictions: list[Path], folder: Path, write_results: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    output = write_results()
    main([*map(str, predictions), "--output", str(output)])
    written = json.loads(output.read_text())
    surprisals = [load_predictions(file)["predictions"]["mc"] for file in predictions]
    expected = ensemble_perplexities(torch.stack(surprisals))
    assert written["metrics"]["test_ppl_mc"] == expected
    assert (written["seeds"], written["epochs"], written["mc_samples"], written["diverged"]) == ([0, 1], "3", 10, [])
    assert f"test_ppl_mc  1: {expected[0]:.2f}  2: {expected[1]:.2f}" in capsys.readouterr().out
    assert written["provenance"][1]["run"] == [{"date": DATE}]
    assert sorted(file.name for file in output.parent.iterdir()) == ["ensemble.json", "seed0.json", "seed1.json"]
    assert [ensemble for _, _, ensemble in ensembles_of(load_results(folder))] == [written]


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


def test_an_ensemble_of_shortened_runs_says_so(predictions: list[Path], write_results: Callable[..., Path]) -> None:
    for seed, file in enumerate(predictions):
        save(file, torch.load(file)["predictions"], seed=seed, epoch=2)
    output = write_results(epochs=2)
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
    predictions: list[Path],
    tmp_path: Path,
    write_result: Callable[..., Path],
    write_results: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tmp_path / "2.pt", [{"approximation": torch.full((12, 1), torch.nan)}], seed=2)
    write_result("ptb", "small", "zaremba", seed=2, metrics={"valid_ppl": None, "test_ppl": None})
    output = write_results()
    main([*map(str, predictions), str(tmp_path / "2.pt"), "--output", str(output)])
    assert "left out, since they diverged: seeds 2" in capsys.readouterr().out
    written = json.loads(output.read_text())
    assert (written["seeds"], written["diverged"], len(written["metrics"]["test_ppl"])) == ([0, 1], [2], 2)


# --- predictions that are not what they seem --------------------------------------------------------------------------


def test_a_bit_that_is_turned_over_anywhere_in_the_numbers_of_predictions_is_found(predictions: list[Path]) -> None:
    content = predictions[0].read_bytes()
    with zipfile.ZipFile(predictions[0]) as archive:
        numbers = [part for part in archive.infolist() if "/data/" in part.filename]
    for part in numbers:
        name_and_extra = int.from_bytes(content[part.header_offset + 26 : part.header_offset + 28], "little")
        name_and_extra += int.from_bytes(content[part.header_offset + 28 : part.header_offset + 30], "little")
        start = part.header_offset + 30 + name_and_extra
        for bit in range(8 * part.file_size):
            damaged = bytearray(content)
            damaged[start + bit // 8] ^= 1 << bit % 8
            predictions[0].write_bytes(damaged)
            with pytest.raises(ValueError, match=r"0\.pt is damaged"):
                load_predictions(predictions[0])


@pytest.mark.parametrize("kept", [0, 1, 100, -1, -100])
def test_predictions_that_are_empty_or_cut_end_with_one_message(kept: int, predictions: list[Path]) -> None:
    predictions[1].write_bytes(predictions[1].read_bytes()[:kept])
    with pytest.raises(SystemExit, match=r"^.*1\.pt is damaged, .* delete it and run `main\.py predict` again$"):
        main([*map(str, predictions)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 2}, "is of weights after epoch 2 of a run begun 2026-01-02T03:04:05, but .* after epoch 3 of one"),
        ({"provenance": {"run": [{"date": "2016-01-01"}], "weights_sha256": "aa"}}, "of a run begun 2016-01-01, but"),
        ({"provenance": {"run": [{"date": DATE}], "weights_sha256": "bb"}}, "or other weights of the same epoch"),
        (
            {"predictions": [{"approximation": torch.full((12, 1), 0.698)}]},
            r"the test_ppl of seed 1 alone is 2\.00973, but seed1\.json says",
        ),
    ],
)
def test_predictions_of_another_run_epoch_or_checkpoint_or_perplexity_make_no_ensemble(
    changes: dict[str, Any], message: str, predictions: list[Path], write_results: Callable[..., Path]
) -> None:
    output = write_results()
    for seed in range(2):
        result = json.loads(output.with_name(f"seed{seed}.json").read_text())
        result["provenance"]["weights_sha256"] = "aa"
        output.with_name(f"seed{seed}.json").write_text(json.dumps(result))
    main([*map(str, predictions), "--output", str(output)])
    before = output.read_bytes()
    save(predictions[1], **{"windows": torch.load(predictions[1])["predictions"], "seed": 1} | changes)
    with pytest.raises(SystemExit, match=rf"1\.pt\b.* {message}.* run `make ensemble` again"):
        main([*map(str, predictions), "--output", str(output)])
    assert output.read_bytes() == before


def test_predictions_of_a_part_of_the_text_make_no_ensemble(
    predictions: list[Path], write_results: Callable[..., Path]
) -> None:
    output = write_results()
    for seed, file in enumerate(predictions):
        save(file, torch.load(file)["predictions"][:2], seed=seed)
    with pytest.raises(SystemExit, match=r"0\.pt: the test_ppl of seed 0 alone is .*, but seed0\.json says"):
        main([*map(str, predictions), "--output", str(output)])


@pytest.mark.parametrize(
    "content",
    [
        {"provenance": {"commit": "0123"}},
        {"provenance": {"run": [], "weights_sha256": "aa"}},
        {"provenance": {"run": [{}], "weights_sha256": "aa"}},
        {"config": 3},
    ],
)
def test_predictions_that_name_no_run_are_refused(content: dict[str, Any], predictions: list[Path]) -> None:
    save(predictions[0], **{"windows": torch.load(predictions[0])["predictions"]} | content)
    with pytest.raises(SystemExit, match=r"0\.pt does not name its run .*: delete it and run `main\.py predict`"):
        main([*map(str, predictions)])


@pytest.mark.parametrize(
    "windows",
    [
        [],
        3,
        [{"mc": torch.rand(5, 1)}],
        [{"approximation": [0.5]}],
        [{"approximation": torch.rand(5, 1)}, {"approximation": torch.rand(5, 1), "mc": torch.rand(5, 1)}],
        [{"approximation": torch.rand(5, 1), "mc": torch.rand(4, 1)}],
    ],
)
def test_what_is_no_prediction_of_all_words_by_all_kinds_is_refused(windows: Any, predictions: list[Path]) -> None:
    save(predictions[0], windows)
    with pytest.raises(SystemExit, match=r"0\.pt: not the predictions of a language model"):
        main([*map(str, predictions)])


def test_what_is_no_prediction_of_a_language_model_is_named(predictions: list[Path], tmp_path: Path) -> None:
    save(tmp_path / "ratings.pt", [{"approximation": torch.rand(5)}])
    torch.save([torch.rand(5, 1)], tmp_path / "list.pt")
    save(tmp_path / "short.pt", [{"approximation": torch.rand(5, 1)}], seed=1)
    for name, message in (("ratings", "these are ratings"), ("list", "is damaged, or holds"), ("gone", "No such file")):
        with pytest.raises(SystemExit, match=message):
            main([str(predictions[0]), str(tmp_path / f"{name}.pt")])
    save(tmp_path / "foreign.pt", [{"approximation": torch.rand(5, 1)}], more=tmp_path)
    with pytest.raises(SystemExit, match=r"foreign\.pt is damaged, or holds something other than tensors"):
        main([str(predictions[0]), str(tmp_path / "foreign.pt")])
    with pytest.raises(SystemExit, match="different lengths: 5, 12 words"):
        main([str(predictions[0]), str(tmp_path / "short.pt")])


def test_samples_of_different_number_or_masks_and_a_model_taken_twice_are_refused(predictions: list[Path]) -> None:
    with pytest.raises(SystemExit, match="the seeds of the models are 0, 0"):
        main([str(predictions[0]), str(predictions[0])])
    windows = torch.load(predictions[1])["predictions"]
    save(predictions[1], windows, seed=1, mc_samples=100)
    with pytest.raises(SystemExit, match="the models differ in mc_samples: 10, 100; delete"):
        main([*map(str, predictions)])
    for seed, masks in enumerate(("stream", "window")):
        save(predictions[seed], windows, seed=seed, config={"model": {"init_args": {"mc_masks": masks}}})
    with pytest.raises(SystemExit, match="the models differ in mc_masks: stream, window; delete"):
        main([*map(str, predictions)])


def test_an_ensemble_that_cannot_be_written_ends_with_one_message(
    predictions: list[Path], write_results: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = write_results()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(SystemExit, match=r"ensemble\.json cannot be written .*No space left on device"):
        main([*map(str, predictions), "--output", str(output)])
    assert sorted(file.name for file in output.parent.iterdir()) == ["seed0.json", "seed1.json"]


def test_what_a_run_predicts_is_tied_to_its_result_and_averaged(
    call: Callable[..., Any], tiny_treebank: Path, tmp_path: Path
) -> None:
    results, files = [], []
    for seed in range(2):
        root = ("--trainer.default_root_dir", str(tmp_path / f"run{seed}"), "--seed_everything", str(seed))
        results.append(tmp_path / f"results/ptb/small/variational_tied/seed{seed}.json")
        trained = call("reproduce", *tiny_run(tmp_path, "--epochs", "2", "--result", str(results[-1])), *root)
        assert trained.status == 0, trained.err
        last = tmp_path / f"run{seed}/checkpoints/last.ckpt"
        predicted = call("predict", *tiny_run(tmp_path, "--ckpt_path", str(last)), *root)
        assert predicted.status == 0, predicted.err
        files.append(last.parents[1] / "predictions.pt")
    report = json.loads(results[0].read_text())
    content = torch.load(files[0], weights_only=True)
    assert (content["epoch"], content["seed"], content["mc_samples"]) == (2, 0, 3)
    assert content["provenance"]["weights_sha256"] == report["provenance"]["weights_sha256"]
    assert content["provenance"]["corpus"] == report["provenance"]["corpus"]
    assert content["provenance"]["run"][0]["date"] == report["provenance"]["date"]
    assert content["config"]["model"] == report["config"]["model"]

    output = results[0].with_name("ensemble.json")
    main([*map(str, files), "--output", str(output)])
    metrics = json.loads(output.read_text())["metrics"]
    assert metrics["test_ppl"][0] == pytest.approx(report["metrics"]["test_ppl"], rel=1e-6)
    assert metrics["test_ppl_mc"][0] == pytest.approx(report["metrics"]["test_ppl_mc"], rel=1e-6)

    torch.save(
        content | {"predictions": [w | {"mc": 0.1 * w["mc"]} for w in content["predictions"]]}, tmp_path / "up.pt"
    )
    with pytest.raises(SystemExit, match=r"up\.pt: the test_ppl_mc of seed 0 alone is .*, but seed0\.json says"):
        main([str(tmp_path / "up.pt"), str(files[1]), "--output", str(output)])

    best = call("predict", *tiny_run(tmp_path, "--ckpt_path", str(tmp_path / "run1/checkpoints/last.ckpt")))
    assert best.status == 0, best.err
    (tmp_path / "run/predictions.pt").replace(files[0])  # says that it is of seed 0, but is of the run of seed 1
    with pytest.raises(SystemExit, match=r"0/predictions\.pt is of weights after epoch 2 of a run begun"):
        main([*map(str, files), "--output", str(output)])


def test_ratings_are_predicted_on_one_device_or_a_part_of_them_would_be_written(
    call: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "texts.csv").write_text("text,rating\n" + "".join(f"a b c{i},{i}\n" for i in range(40)))
    data = ("--data", "datamodules.RatedText", "--data.init_args.source", str(tmp_path / "texts.csv"))
    configuration = ("--config", "demo/sentiment/variational")
    root = ("--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.logger", "false")
    trained = call("fit", *configuration, *data, *root, "--trainer.max_epochs", "1")
    assert trained.status == 0, trained.err
    last = ("--ckpt_path", str(tmp_path / "run/checkpoints/last.ckpt"))
    several = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu")
    refused = call("predict", *configuration, *data, *root, *last, *several)
    assert refused.status == 2
    assert "predict runs on one device, got 2 processes: use --trainer.devices 1" in refused.err
    assert not (tmp_path / "run/predictions.pt").exists()
    assert call("predict", *configuration, *data, *root, *last).status == 0
    assert sum(len(batch["approximation"]) for batch in torch.load(tmp_path / "run/predictions.pt")["predictions"]) > 0
