"""Validation, test and Monte Carlo test of the language model."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.text import Perplexity

from lightning_modules import LanguageModel, NetworkMasks
from lightning_modules import language_model as module
from tests.random_data import curve_of

DROPOUT = {"word_dropout": 0.3, "input_dropout": 0.4, "recurrent_dropout": 0.35, "output_dropout": 0.45}
# reference_numbers.json, lua_valid_log_factor
LUA_VALID_LOG_FACTOR = {35: 0.9967453213995118, 20: 0.9981014374830486}


def plain_log_probs(model: LanguageModel, words: Tensor) -> Tensor:
    """ln p of every next word of streams [T + 1, B], [T, B], in one pass from zeros by torch.nn modules."""
    kind = nn.LSTM if isinstance(model.rnn, nn.LSTM) else nn.GRU
    hidden_size = model.rnn.hidden_size
    rnn = kind(hidden_size, hidden_size, model.rnn.num_layers).double()
    rnn.load_state_dict(model.rnn.state_dict())
    with torch.no_grad():
        hidden, _ = rnn(F.embedding(words[:-1], model.embedding.weight))
        log_probs = F.linear(hidden, model.softmax.weight, model.softmax.bias).log_softmax(dim=-1)
    return log_probs.gather(-1, words[1:, :, None]).squeeze(-1)


def columns(ids: Tensor, num_streams: int, rows: int) -> Tensor:
    """Protocol 1.1: `rows` rows of `num_streams` columns, the i-th from token i * n / B, rounded half up."""
    starts = [math.floor(i * len(ids) / num_streams + 0.5) for i in range(num_streams)]
    return torch.stack([ids[start : start + rows] for start in starts], dim=1)


# --- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_valid_ppl_is_that_of_the_columns_in_one_pass_with_dropout_off(
    cell: str, language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model, data = language_model(cell=cell, **DROPOUT), streams()
    [metrics] = trainer().validate(model, datamodule=data, verbose=False)
    # 61 tokens in 4 columns of 15: 14 predictions, two windows of 5, the last 4 are never used.
    nll = -plain_log_probs(model, columns(data.ids["validation"], 4, 11))
    assert metrics["valid_ppl"] == pytest.approx(nll.mean().exp().item(), rel=1e-6)
    # What the Lua code prints: the sum over whole windows, divided by 14 / 5.
    window_losses = nll.mean(dim=1).view(2, 5).mean(dim=1)
    assert metrics["valid_ppl_lua"] == pytest.approx(math.exp(window_losses.sum().item() / (14 / 5)), rel=1e-6)
    assert metrics["valid_ppl_lua"] < metrics["valid_ppl"]


@pytest.mark.parametrize("window", [35, 20])
def test_printed_validation_perplexity_of_penn_treebank_sized_text_has_the_published_factor(
    window: int, streams: Any, trainer: Any
) -> None:
    model = LanguageModel(11, 2, num_layers=1)
    data = streams(batch_size=20, window=window, sizes=(1000, 73_760, 30))
    [metrics] = trainer().validate(model, datamodule=data, verbose=False)
    factor = math.log(metrics["valid_ppl_lua"]) / math.log(metrics["valid_ppl"])
    assert factor == pytest.approx(LUA_VALID_LOG_FACTOR[window], rel=1e-6)


def test_both_validation_perplexities_agree_where_no_prediction_is_left_over(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    [metrics] = trainer().validate(language_model(), datamodule=streams(sizes=(83, 64, 23)), verbose=False)
    assert metrics["valid_ppl_lua"] == pytest.approx(metrics["valid_ppl"], rel=1e-6)


def test_validation_does_not_add_up_over_epochs(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model, run, data = language_model(), trainer(), streams()
    first, second = (run.validate(model, datamodule=data, verbose=False) for _ in range(2))
    assert first == second


def test_valid_ppl_agrees_with_torchmetrics(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model, data = language_model().eval(), streams()
    [metrics] = trainer().validate(model, datamodule=data, verbose=False)
    perplexity, state = Perplexity(), None
    with torch.no_grad():
        for inputs, targets in data.val_dataloader()[0]:
            logits, state = model(inputs, state)
            perplexity.update(logits.transpose(0, 1), targets.T)
    assert metrics["valid_ppl"] == pytest.approx(perplexity.compute().item(), rel=1e-5)


def test_train_eval_ppl_is_of_the_first_training_windows_with_dropout_off(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model, data = language_model(**DROPOUT), streams(train_eval_windows=2)
    [metrics] = [{k: v for part in trainer().validate(model, datamodule=data, verbose=False) for k, v in part.items()}]
    train = -plain_log_probs(model, columns(data.ids["train"], 4, 11))
    valid = -plain_log_probs(model, columns(data.ids["validation"], 4, 11))
    assert metrics["train_eval_ppl"] == pytest.approx(train.mean().exp().item(), rel=1e-6)
    assert metrics["valid_ppl"] == pytest.approx(valid.mean().exp().item(), rel=1e-6)


def test_train_eval_ppl_is_absent_unless_the_data_serve_it(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    [metrics] = trainer().validate(language_model(), datamodule=streams(), verbose=False)
    assert metrics.keys() == {"valid_ppl", "valid_ppl_lua"}


def test_train_eval_ppl_is_in_the_curve_of_every_epoch(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model = language_model(**DROPOUT)
    trainer(max_epochs=2).fit(model, datamodule=streams(train_eval_windows=2))
    values = [entry["train_eval_ppl"] for entry in curve_of(model)]
    assert values[0] != values[1]
    last = -plain_log_probs(model, columns(streams_ids(streams, "train"), 4, 11))
    assert values[1] == pytest.approx(last.mean().exp().item(), rel=1e-6)


def streams_ids(streams: Any, split: str) -> Tensor:
    data = streams()
    data.setup()
    return data.ids[split]


# --- test, dropout approximation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("num_tokens", [23, 21, 3])
def test_test_ppl_is_that_of_the_whole_stream_in_one_pass(
    num_tokens: int, cell: str, language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model, data = language_model(cell=cell, **DROPOUT), streams(sizes=(83, 61, num_tokens))
    [metrics] = trainer().test(model, datamodule=data, verbose=False)
    nll = -plain_log_probs(model, data.ids["test"][:, None])
    assert len(nll) == num_tokens - 1
    assert metrics == {"test_ppl": pytest.approx(nll.mean().exp().item(), rel=1e-6)}


def test_a_window_size_does_not_change_the_test_perplexity(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model = language_model()
    values = [
        trainer().test(model, datamodule=streams(window=window), verbose=False)[0]["test_ppl"] for window in (2, 5, 15)
    ]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_without_carry_state_every_test_window_starts_from_zeros(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model, data = language_model(carry_state=False), streams()
    [metrics] = trainer().test(model, datamodule=data, verbose=False)
    ids = data.ids["test"][:, None]
    nll = -torch.cat([plain_log_probs(model, ids[start : start + 6]) for start in range(0, 22, 5)])
    assert len(nll) == 22
    assert metrics["test_ppl"] == pytest.approx(nll.mean().exp().item(), rel=1e-6)


@pytest.mark.parametrize("carry_state", [True, False])
def test_test_ppl_sliding_predicts_each_word_from_the_window_before_it_alone(
    carry_state: bool, language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model, data = language_model(carry_state=carry_state, **DROPOUT), streams(sliding_test=True)
    metrics = {k: v for part in trainer().test(model, datamodule=data, verbose=False) for k, v in part.items()}
    ids = data.ids["test"][:, None]
    nll = -torch.cat([plain_log_probs(model, ids[start : start + 6])[-1] for start in range(23 - 5)])
    assert metrics["test_ppl_sliding"] == pytest.approx(nll.mean().exp().item(), rel=1e-6)
    [plain] = trainer().test(model, datamodule=streams(), verbose=False)
    assert metrics["test_ppl"] == plain["test_ppl"]
    assert plain.keys() == {"test_ppl"}


def test_prediction_is_the_surprisal_of_every_word_of_the_test_and_of_the_validation_stream(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model, data = language_model(**DROPOUT), streams()
    for split, predictions in zip(("test", "validation"), trainer().predict(model, datamodule=data), strict=True):
        surprisal = torch.cat([prediction["approximation"] for prediction in predictions])
        torch.testing.assert_close(surprisal, -plain_log_probs(model, data.ids[split][:, None]), rtol=1e-9, atol=1e-9)


def test_prediction_by_mc_is_that_of_the_test(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model = language_model(mc_samples=3, mc_masks="both", **DROPOUT)
    torch.manual_seed(0)
    [metrics] = trainer().test(model, datamodule=streams(), verbose=False)
    torch.manual_seed(0)
    predictions, validation = trainer().predict(model, datamodule=streams())
    assert all(prediction.keys() == {"approximation"} for prediction in validation)
    for name, metric in (("approximation", "test_ppl"), ("mc", "test_ppl_mc"), ("mc_window", "test_ppl_mc_window")):
        surprisal = torch.cat([prediction[name] for prediction in predictions])
        assert surprisal.shape == (22, 1)
        assert surprisal.double().mean().exp().item() == pytest.approx(metrics[metric], rel=1e-6)


def test_prediction_without_carry_state_starts_every_window_from_zeros_like_the_test(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model, data = language_model(carry_state=False), streams()
    [metrics] = trainer().test(model, datamodule=data, verbose=False)
    predictions, _ = trainer().predict(model, datamodule=data)
    surprisal = torch.cat([prediction["approximation"] for prediction in predictions])
    assert surprisal.mean().exp().item() == pytest.approx(metrics["test_ppl"], rel=1e-6)


# --- Monte Carlo ------------------------------------------------------------------------------------------------------


def record_masks(model: LanguageModel) -> list[NetworkMasks]:
    """Keep all networks that the model samples from now on."""
    drawn: list[NetworkMasks] = []
    sample = model.sample_masks

    def sample_masks(*args: Any, **kwargs: Any) -> NetworkMasks:
        drawn.append(sample(*args, **kwargs))
        return drawn[-1]

    model.sample_masks = sample_masks  # type: ignore[method-assign]
    return drawn


def sampled_log_probs(
    model: LanguageModel, masks: NetworkMasks, k: int, words: Tensor, words_too: bool, state: Any = None
) -> tuple[Tensor, Any]:
    """ln p of every next word of one stream [T + 1] under the k-th sampled LSTM: rows of its weights are zeroed.

    Each of the 8 matrices of a layer is multiplied by its mask along its inputs; a plain torch.nn.LSTM does the rest.
    """
    size, layers = model.rnn.hidden_size, model.rnn.num_layers
    lstm = nn.LSTM(size, size, layers).double()
    weights = {name: value.clone() for name, value in model.rnn.state_dict().items()}
    for layer, drawn in enumerate(masks.rnn.layers):
        for name, mask in (("ih", drawn.input), ("hh", drawn.recurrent)):
            assert mask is not None
            assert mask.size(0) == 1
            by_gate = mask[0, :, k].expand(4, -1)  # [G, H]
            weights[f"weight_{name}_l{layer}"].view(4, size, size).mul_(by_gate[:, None, :])
    lstm.load_state_dict(weights)
    table = model.embedding.weight.detach()
    if words_too:
        assert masks.words is not None
        table = table * masks.words[k][:, None]
    assert masks.output is not None
    with torch.no_grad():
        hidden, state = lstm(table[words[:-1]], state)
        log_probs = F.linear(hidden, model.softmax.weight * masks.output[0, k], model.softmax.bias).log_softmax(-1)
    return log_probs.gather(-1, words[1:, None]).squeeze(-1), state


def perplexity_of_averaged_probabilities(log_probs_KT: list[Tensor]) -> float:
    mean_probability = torch.stack(log_probs_KT).exp().mean(dim=0)
    return math.exp(-mean_probability.log().mean().item())


@pytest.mark.parametrize(
    ("samples", "counts"), [(0, []), (1, [1]), (2, [1, 2]), (10, [1, 2, 5, 10]), (60, [1, 2, 5, 10, 20, 50, 60])]
)
def test_perplexity_is_measured_at_a_series_of_numbers_of_samples(samples: int, counts: list[int]) -> None:
    assert LanguageModel(11, 6, mc_samples=samples).mc_counts == counts


@pytest.mark.parametrize("gate_masks", ["tied", "untied"])
@pytest.mark.parametrize("mc_word_dropout", [False, True])
def test_mc_averages_the_probabilities_of_networks_that_are_kept_for_the_whole_stream(
    gate_masks: str, mc_word_dropout: bool, language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model = language_model(gate_masks=gate_masks, mc_samples=6, mc_word_dropout=mc_word_dropout, **DROPOUT)
    data, drawn = streams(), record_masks(model)
    [metrics] = trainer().test(model, datamodule=data, verbose=False)
    assert len(drawn) == 1
    words = data.ids["test"]
    # One pass from zeros for each sample: if samples shared a state or masks, this would differ.
    log_probs = [sampled_log_probs(model, drawn[0], k, words, mc_word_dropout)[0] for k in range(6)]
    assert metrics["test_ppl_mc"] == pytest.approx(perplexity_of_averaged_probabilities(log_probs), rel=1e-6)
    assert metrics["mc_samples"] == 6
    for count in (1, 2, 5):  # those of the first samples only
        expected = perplexity_of_averaged_probabilities(log_probs[:count])
        assert metrics[f"test_ppl_mc_{count}"] == pytest.approx(expected, rel=1e-6)
    mean_of_logs = math.exp(-torch.stack(log_probs).mean().item())
    assert mean_of_logs > metrics["test_ppl_mc"] * 1.001, "averaged logs would not be told from averaged probabilities"


@pytest.mark.parametrize("carry_state", [True, False])
def test_mc_window_masks_are_drawn_anew_for_each_window_while_the_state_is_carried_on_if_asked(
    carry_state: bool, language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model = language_model(mc_samples=3, mc_masks="window", carry_state=carry_state, **DROPOUT)
    data, drawn = streams(), record_masks(model)
    [metrics] = trainer().test(model, datamodule=data, verbose=False)
    words = data.ids["test"]
    assert len(drawn) == 5
    outputs = torch.cat([masks.output[0] for masks in drawn])  # type: ignore[index]
    assert len(outputs.unique(dim=0)) > 3
    log_probs = []
    for k in range(3):
        state, parts = None, []
        for window, masks in enumerate(drawn):
            part, state = sampled_log_probs(model, masks, k, words[5 * window : 5 * window + 6], True, state)
            parts.append(part)
            state = state if carry_state else None
        log_probs.append(torch.cat(parts))
    assert metrics["test_ppl_mc"] == pytest.approx(perplexity_of_averaged_probabilities(log_probs), rel=1e-6)


def test_both_evaluates_the_masks_of_the_original_code_and_those_of_the_theory(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model = language_model(mc_samples=3, mc_masks="both", **DROPOUT)
    data, drawn = streams(), record_masks(model)
    [metrics] = trainer().test(model, datamodule=data, verbose=False)
    words, (first, *per_window) = (
        data.ids["test"],
        drawn,
    )  # the stream's networks are drawn in front of the first window
    assert len(per_window) == 5
    stream = [sampled_log_probs(model, first, k, words, False)[0] for k in range(3)]
    assert metrics["test_ppl_mc"] == pytest.approx(perplexity_of_averaged_probabilities(stream), rel=1e-6)
    log_probs = []
    for k in range(3):
        state, parts = None, []
        for window, masks in enumerate(per_window):
            part, state = sampled_log_probs(model, masks, k, words[5 * window : 5 * window + 6], True, state)
            parts.append(part)
        log_probs.append(torch.cat(parts))
    assert metrics["test_ppl_mc_window"] == pytest.approx(perplexity_of_averaged_probabilities(log_probs), rel=1e-6)
    assert {"test_ppl_mc_1", "test_ppl_mc_2", "test_ppl_mc_window_1", "test_ppl_mc_window_2"} <= metrics.keys()


def test_words_are_not_dropped_in_mc_unless_asked(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model = language_model(word_dropout=0.9, mc_samples=4)
    [metrics] = trainer().test(model, datamodule=streams(), verbose=False)
    assert metrics["test_ppl_mc"] == pytest.approx(metrics["test_ppl"], rel=1e-6)
    model.mc_word_dropout = True
    [metrics] = trainer().test(model, datamodule=streams(), verbose=False)
    assert metrics["test_ppl_mc"] != pytest.approx(metrics["test_ppl"], rel=1e-4)


@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_mc_without_dropout_equals_the_dropout_approximation(
    samples: int, cell: str, language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model = language_model(cell=cell, mc_samples=samples)
    [metrics] = trainer().test(model, datamodule=streams(), verbose=False)
    assert metrics["test_ppl_mc"] == pytest.approx(metrics["test_ppl"], rel=1e-6)


@pytest.mark.parametrize("mc_masks", ["stream", "window"])
def test_naive_mc_masks_are_fresh_at_every_step_of_the_stream(
    mc_masks: str, language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    options = {"hidden_size": 20, "time_masks": "fresh", "input_dropout": 0.5, "output_dropout": 0.5}
    model = language_model(mc_samples=3, mc_masks=mc_masks, **options)
    drawn = record_masks(model)
    [metrics] = trainer().test(model, datamodule=streams(), verbose=False)
    for masks in (
        [sample.rnn.layers[0].input[:, 0] for sample in drawn],  # type: ignore[index]
        [sample.rnn.layers[1].input[:, 0] for sample in drawn],  # type: ignore[index]
        [sample.output for sample in drawn],
    ):
        steps = torch.cat(masks)  # type: ignore[arg-type]
        assert steps.shape == (22, 3, 20)
        assert len(steps.flatten(0, 1).unique(dim=0)) == 22 * 3
    assert metrics["test_ppl_mc"] != metrics["test_ppl"]


def test_moon_masks_are_sampled_in_mc(language_model: Callable[..., LanguageModel], streams: Any, trainer: Any) -> None:
    model = language_model(memory_dropout=0.5, mc_samples=4)
    drawn = record_masks(model)
    [metrics] = trainer().test(model, datamodule=streams(), verbose=False)
    assert drawn[0].rnn.layers[0].memory.shape == (4, 6)  # type: ignore[union-attr]
    assert metrics["test_ppl_mc"] != pytest.approx(metrics["test_ppl"], rel=1e-4)


def test_token_word_masks_of_mc_are_drawn_for_every_window_of_any_length(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model = language_model(word_dropout=0.5, word_masks="token", mc_masks="window", mc_word_dropout=True, mc_samples=2)
    drawn = record_masks(model)
    trainer().test(model, datamodule=streams(), verbose=False)
    assert [tuple(masks.words.shape) for masks in drawn] == [(5, 2)] * 4 + [(2, 2)]  # type: ignore[union-attr]


def test_mc_in_pieces_of_logits_equals_mc_at_once(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = []
    for rows in (4096, 4):
        monkeypatch.setattr(module, "LOGIT_ROWS", rows)
        torch.manual_seed(3)
        model = language_model(mc_samples=7, **DROPOUT)
        values.append(trainer().test(model, datamodule=streams(), verbose=False))
    assert values[0][0] == pytest.approx(values[1][0], rel=1e-6)


def test_a_test_starts_from_zeros_and_draws_the_networks_of_its_seed(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model(mc_samples=2, **DROPOUT)
    run, data, drawn = trainer(), streams(), record_masks(model)
    reports = []
    for seed in ("4", "4", "5"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        reports += run.test(model, datamodule=data, verbose=False)
    assert len(drawn) == 3
    assert len({report["test_ppl"] for report in reports}) == 1
    first, same, other = (report["test_ppl_mc"] for report in reports)
    assert first == same != other


def test_a_second_test_forgets_all_of_the_first(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "4")
    options = {"mc_samples": 5, "mc_masks": "both", **DROPOUT}
    used, fresh = language_model(**options), language_model(**options)
    trainer().test(used, datamodule=streams(sliding_test=True), verbose=False)
    used.load_state_dict(fresh.state_dict())
    tested = [trainer().test(one, datamodule=streams(sliding_test=True), verbose=False) for one in (used, fresh)]
    assert tested[0] == tested[1]


def test_the_networks_of_the_first_window_are_not_those_of_the_stream(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model = language_model(mc_samples=3, mc_masks="both", **DROPOUT)
    drawn = record_masks(model)
    trainer().test(model, datamodule=streams(), verbose=False)
    stream, window, *_ = drawn
    assert not torch.equal(stream.output, window.output)  # type: ignore[arg-type]
