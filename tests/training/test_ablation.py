"""What is chosen at test time: means over sampled networks, and temperature."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.streams import StreamWindows
from lightning_modules import LanguageModel
from lightning_modules import language_model as model_module
from lightning_modules.recurrent_module import TEST, VALIDATION
from training import ablation as module
from training.ablation import test_time_choices as choices_of  # not a test
from training.checkpoints import checkpoints

DROPOUT = {"word_dropout": 0.3, "input_dropout": 0.4, "recurrent_dropout": 0.35, "output_dropout": 0.45}
EXACT = {"rtol": 1e-10, "atol": 1e-12}
Build = Callable[..., LanguageModel]


def sampled_logits(model: LanguageModel, stage: int, words: Tensor) -> Tensor:
    """Logits [T, K, V] of the K networks that are kept for a whole stream [T + 1], in one pass."""
    masks = model.sample_masks(model.mc_samples, None, model.generator(stage, 0, 0))._replace(words=None)
    with torch.no_grad():
        return model(words[:-1, None].expand(-1, model.mc_samples), None, masks)[0]


def surprisal(probabilities_TV: Tensor, words: Tensor) -> Tensor:
    return -probabilities_TV.gather(1, words[1:, None]).log().mean()


@pytest.mark.parametrize("options", [{}, {"cell": "gru"}, {"carry_state": True, "softmax_bias": False}])
def test_means_and_temperatures_are_those_of_whole_distributions(
    options: dict[str, Any], language_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "LOGIT_ROWS", 6)  # of 5 networks: a piece for each step
    model = language_model(mc_samples=5, **DROPOUT, **options).eval()
    words, temperatures = torch.randint(11, (24,)), [0.7, 1.0, 1.3]
    found = model.test_time_nll(StreamWindows(words[:, None], 5, keep_remainder=True), VALIDATION, temperatures)
    assert {way: tuple(nll.shape) for way, nll in found.items()} == {
        ("approximation", None): (3, 1),
        ("arithmetic", "stream"): (3, 3),
        ("geometric", "stream"): (3, 3),
    }
    with torch.no_grad():
        plain = model(words[:-1, None])[0][:, 0]
    logits_TKV = sampled_logits(model, VALIDATION, words)
    for i, temperature in enumerate(temperatures):
        expected = surprisal((plain / temperature).softmax(dim=-1), words)
        torch.testing.assert_close(found["approximation", None][i, 0], expected, **EXACT)
        p_TKV = (logits_TKV / temperature).softmax(dim=-1)
        for j, count in enumerate((1, 2, 5)):
            arithmetic = p_TKV[:, :count].mean(dim=1)
            geometric = p_TKV[:, :count].prod(dim=1) ** (1 / count)
            geometric /= geometric.sum(dim=1, keepdim=True)
            torch.testing.assert_close(found["arithmetic", "stream"][i, j], surprisal(arithmetic, words), **EXACT)
            torch.testing.assert_close(found["geometric", "stream"][i, j], surprisal(geometric, words), **EXACT)
    arithmetic, geometric = (found[mean, "stream"][1, 2].item() for mean in ("arithmetic", "geometric"))
    assert arithmetic != pytest.approx(geometric, rel=1e-7)


def test_of_one_network_both_means_are_the_same(language_model: Build, streams: Any) -> None:
    model, data = language_model(mc_samples=2, mc_masks="both", **DROPOUT), streams()
    data.setup()
    found = model.test_time_nll(StreamWindows(data.ids["test"][:, None], 5), TEST, [0.8, 1.0])
    for kept in ("stream", "window"):
        torch.testing.assert_close(found["arithmetic", kept][:, 0], found["geometric", kept][:, 0], **EXACT)
    assert found["arithmetic", "stream"][1, 0] != found["arithmetic", "window"][1, 0]


@pytest.mark.parametrize(
    "options", [{}, {"carry_state": False}, {"time_masks": "fresh"}, {"share_masks": True, "tie_weights": True}]
)
def test_at_temperature_1_the_test_has_the_same_perplexities(
    options: dict[str, Any], language_model: Build, streams: Any, trainer: Any
) -> None:
    rates = DROPOUT | dict.fromkeys(("input_dropout", "recurrent_dropout", "output_dropout"), 0.4)
    model = language_model(mc_samples=5, mc_masks="both", **rates, **options)
    torch.manual_seed(0)
    [metrics] = trainer().test(model, datamodule=streams(), verbose=False)
    data = streams()
    data.setup()
    torch.manual_seed(0)
    found = {(choice["mean"], choice["masks"], choice["samples"]): choice for choice in choices_of(model, data)}
    assert len(found) == 1 + 2 * 2 * 3
    assert found["approximation", None, 0]["test_ppl"] == pytest.approx(metrics["test_ppl"], rel=1e-6)
    for masks, name in (("stream", "test_ppl_mc"), ("window", "test_ppl_mc_window")):
        for count, metric in ((1, f"{name}_1"), (2, f"{name}_2"), (5, name)):
            assert found["arithmetic", masks, count]["test_ppl"] == pytest.approx(metrics[metric], rel=1e-6)


def test_the_temperature_is_the_best_on_validation_and_the_test_is_evaluated_at_it(
    language_model: Build, streams: Any
) -> None:
    model, data = language_model(mc_samples=2, init_scale=1.0, **DROPOUT), streams()
    data.setup()
    torch.manual_seed(0)
    choices = choices_of(model, data)
    torch.manual_seed(0)
    stages = {"validation": VALIDATION, "test": TEST}
    valid, test = (
        model.test_time_nll(StreamWindows(data.ids[split][:, None], 5, True), stage, module.TEMPERATURES)
        for split, stage in stages.items()
    )
    assert module.TEMPERATURES[0] == 0.7
    assert module.TEMPERATURES[-1] == 1.3
    for choice in choices:
        way, column = (choice["mean"], choice["masks"]), max(choice["samples"] - 1, 0)
        by_temperature = dict(zip(module.TEMPERATURES, valid[way][:, column].exp().tolist(), strict=True))
        assert choice["valid_ppl"] == pytest.approx(by_temperature[1.0], rel=1e-12)
        assert choice["valid_ppl_tempered"] == pytest.approx(min(by_temperature.values()), rel=1e-12)
        assert choice["valid_ppl_tempered"] == pytest.approx(by_temperature[choice["temperature"]], rel=1e-12)
        i = module.TEMPERATURES.index(choice["temperature"])
        assert choice["test_ppl_tempered"] == pytest.approx(test[way][i, column].exp().item(), rel=1e-12)
    assert {choice["temperature"] for choice in choices} != {1.0}, "an untrained network of large weights is too sure"


def test_the_temperature_is_validations_although_the_test_text_would_choose_another(
    language_model: Build, streams: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = language_model(), streams()
    data.setup()
    best = {VALIDATION: 0.9, TEST: 1.15}

    def surprisals(self: Any, windows: Any, stage: int, temperatures: list[float]) -> dict[Any, Tensor]:
        values = [[3.0 + (temperature - best[stage]) ** 2] for temperature in temperatures]
        return {("approximation", None): torch.tensor(values, dtype=torch.float64)}

    monkeypatch.setattr(LanguageModel, "test_time_nll", surprisals)
    [choice] = choices_of(model, data)
    assert choice["temperature"] == 0.9
    assert choice["valid_ppl_tempered"] == pytest.approx(math.exp(3.0))
    assert choice["test_ppl_tempered"] == pytest.approx(math.exp(3.0 + 0.25**2))
    assert choice["test_ppl"] == pytest.approx(math.exp(3.0 + 0.15**2))


def test_each_number_of_networks_has_its_own_temperature(
    language_model: Build, streams: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = language_model(mc_samples=5, **DROPOUT), streams()
    data.setup()
    best = {1: 0.7, 2: 1.05, 5: 1.3}  # by K

    def surprisals(self: Any, windows: Any, stage: int, temperatures: list[float]) -> dict[Any, Tensor]:
        values = [[3.0 + abs(temperature - best[count]) for count in best] for temperature in temperatures]
        return {("arithmetic", "stream"): torch.tensor(values, dtype=torch.float64)}

    monkeypatch.setattr(LanguageModel, "test_time_nll", surprisals)
    assert {choice["samples"]: choice["temperature"] for choice in choices_of(model, data)} == best
    assert module.TEMPERATURES == [0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3]


@pytest.mark.parametrize("value", [math.nan, math.inf, 800.0])
@pytest.mark.parametrize(("stage", "split"), [(VALIDATION, "validation"), (TEST, "test")])
def test_a_perplexity_that_is_no_number_or_too_large_is_refused(
    value: float, stage: int, split: str, language_model: Build, streams: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprisals(self: Any, windows: Any, at: int, temperatures: list[float]) -> dict[Any, Tensor]:
        return {("approximation", None): torch.full((len(temperatures), 1), value if at == stage else 3.0).double()}

    monkeypatch.setattr(LanguageModel, "test_time_nll", surprisals)
    model, data = language_model(), streams()
    data.setup()
    with pytest.raises(ValueError, match=f"{split} perplexity is not finite"):
        choices_of(model, data)


def test_without_sampled_networks_there_is_the_approximation_alone(language_model: Build, streams: Any) -> None:
    data = streams()
    data.setup()
    [choice] = choices_of(language_model(), data)
    assert (choice["mean"], choice["masks"], choice["samples"]) == ("approximation", None, 0)


def test_a_diverged_model_is_refused(language_model: Build, streams: Any) -> None:
    model, data = language_model(), streams()
    data.setup()
    with torch.no_grad():
        model.softmax.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="validation perplexity is not finite"):
        choices_of(model, data)


# --- of a finished run ------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path, streams: Any, trainer: Any, language_model: Build) -> Path:
    """The result of a run of two epochs, its checkpoints in tmp_path / "run"."""
    result = tmp_path / "results/ptb/small/mine/seed0.json"
    model = language_model(mc_samples=2, **DROPOUT)
    callbacks = checkpoints(tmp_path / "run/checkpoints", model.monitor)
    trainer(*callbacks, max_epochs=2).reproduce(model, streams(), result)
    return result


def test_an_ablation_of_a_finished_run_is_written_beside_its_result_and_names_the_run(
    finished: Path,
    tmp_path: Path,
    streams: Any,
    trainer: Any,
    language_model: Build,
    capsys: pytest.CaptureFixture[str],
) -> None:
    last = tmp_path / "run/checkpoints/last.ckpt"
    trainer().ablate(language_model(mc_samples=2, **DROPOUT), streams(), str(last), finished)
    file = finished.with_name("ablation_seed0.json")
    written, result = json.loads(file.read_text()), json.loads(finished.read_text())
    approximation = written["choices"][0]
    assert approximation["test_ppl"] == pytest.approx(result["metrics"]["test_ppl"], rel=1e-6)
    assert [choice["samples"] for choice in written["choices"]] == [0, 1, 2, 1, 2]
    assert written["tested_epoch"] == 2
    assert written["provenance"].keys() >= {"commit", "dirty", "date", "hardware", "wall_time_s"}
    assert written["provenance"]["run"][0]["date"] == result["provenance"]["date"]
    assert sorted(path.name for path in finished.parent.iterdir()) == ["ablation_seed0.json", "seed0.json"]
    assert f"wrote {file}" in capsys.readouterr().out


def test_an_ablation_of_other_weights_than_were_tested_is_refused(
    finished: Path, tmp_path: Path, streams: Any, trainer: Any, language_model: Build, regressor: Any
) -> None:
    last, model = str(tmp_path / "run/checkpoints/last.ckpt"), language_model(mc_samples=2, **DROPOUT)
    with pytest.raises(ValueError, match="for language models, not for a SentimentRegressor"):
        trainer().ablate(regressor(), streams(), last, finished)
    with pytest.raises(FileNotFoundError, match=r"seed1\.json is not there: .* run it first"):
        trainer().ablate(model, streams(), last, finished.with_name("seed1.json"))
    for change, message in (
        ({"tested_epoch": 1}, "after epoch 2 of a run .* was tested after epoch 1 of one"),
        ({"provenance": {"date": "2016-01-01"}}, "of one begun 2016-01-01: name the checkpoint"),
    ):
        result = json.loads(finished.read_text())
        result["provenance"] |= change.pop("provenance", {})  # type: ignore[operator]
        (finished.parent / "other").mkdir(exist_ok=True)
        other = finished.parent / "other/seed0.json"
        other.write_text(json.dumps(result | change))
        with pytest.raises(ValueError, match=message):
            trainer().ablate(language_model(mc_samples=2, **DROPOUT), streams(), last, other)
    assert not list(tmp_path.rglob("ablation*"))


def test_an_ablation_with_other_options_or_another_seed_than_the_runs_is_refused(
    finished: Path, tmp_path: Path, streams: Any, trainer: Any, language_model: Build
) -> None:
    last, model = str(tmp_path / "run/checkpoints/last.ckpt"), language_model(mc_samples=2, **DROPOUT)
    ablator = trainer()
    options = {"class_path": "lightning_modules.LanguageModel", "init_args": {"input_dropout": 0.4, "mc_samples": 2}}
    result = json.loads(finished.read_text())
    finished.write_text(json.dumps(result | {"config": {"model": options}}))
    ablator.run_config = {"model": options | {"init_args": {"input_dropout": 0.05, "mc_samples": 2}}}
    with pytest.raises(ValueError, match=r"other options \(input_dropout: 0\.4 in seed0\.json, 0\.05 here\): use the"):
        ablator.ablate(model, streams(), last, finished)
    ablator.run_config = {"model": options, "seed_everything": 3}
    with pytest.raises(ValueError, match="is for seed 0, but seed_everything is 3"):
        ablator.ablate(model, streams(), last, finished)
    assert not list(tmp_path.rglob("ablation*"))
    sampled = {"init_args": {"input_dropout": 0.4, "mc_samples": 5}}  # what is sampled is what an ablation is about
    ablator.run_config = {"model": options | sampled, "trainer": {"precision": "bf16-mixed"}}
    ablator.ablate(model, streams(), last, finished)
    assert list(tmp_path.rglob("ablation*"))
