"""The regression of ratings."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from datamodules import RatedText
from lightning_modules import SentimentRegressor
from lightning_modules.keras import KerasGRU, KerasLSTM
from lightning_modules.sentiment_regressor import TAUS, Predictions, Ratings, coverage, fitted_tau, rmse_by_review
from tests.random_data import curve_of
from variational_rnn import VariationalGRU, VariationalLSTM, mc_dropout

DROPOUT = {"word_dropout": 0.3, "input_dropout": 0.4, "recurrent_dropout": 0.35, "output_dropout": 0.45}
NAIVE = {"time_masks": "fresh", "gate_masks": "tied", "input_dropout": 0.5, "output_dropout": 0.5}


AS_IN_2015 = {
    "gate_activation": "hard_sigmoid",
    "dropout_scale": "test",
    "word_mask_sharing": "batch",
    "recurrent_gain": 1.1,
    "penalty": "as_executed",
    "l2": 1e-3,
}
GRU_OF_2015 = AS_IN_2015 | {"cell": "gru", "candidate_activation": "sigmoid", "reset_gate": "before"}

Build = Callable[..., SentimentRegressor]


def all_of(loader: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    words, ratings, reviews = zip(*loader, strict=True)
    return torch.cat(words, dim=1), torch.cat(ratings), torch.cat(reviews)


def metrics_of(run: Any, model: SentimentRegressor, data: Any) -> dict[str, float]:
    """The metrics of the test, which Lightning lists for each loader."""
    return {name: value for part in run.test(model, datamodule=data, verbose=False) for name, value in part.items()}


def record_samples(model: SentimentRegressor) -> list[torch.Tensor]:
    """A list to which every call of `sample` adds what it drew, [K, B]."""
    samples: list[torch.Tensor] = []
    sample = model.sample

    def recording(words: torch.Tensor, number: int, *key: int, **place: Any) -> torch.Tensor:
        samples.append(sample(words, number, *key, **place))
        return samples[-1]

    model.sample = recording  # type: ignore[method-assign]
    return samples


def rmse(prediction: torch.Tensor, ratings: torch.Tensor) -> float:
    return math.sqrt(
        sum((p - r) ** 2 for p, r in zip(prediction.tolist(), ratings.tolist(), strict=True)) / len(ratings)
    )


def review_rmse(prediction: torch.Tensor, ratings: torch.Tensor, reviews: torch.Tensor) -> float:
    """Of each review the mean prediction beside its rating."""
    errors = []
    for review in set(reviews.tolist()):
        chunks = [i for i, of in enumerate(reviews.tolist()) if of == review]
        mean = sum(prediction[i].item() for i in chunks) / len(chunks)
        errors.append(mean - sum(ratings[i].item() for i in chunks) / len(chunks))
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def plain_output(model: SentimentRegressor, words: torch.Tensor) -> torch.Tensor:
    """The network's standardised output by torch.nn modules."""
    kind = nn.LSTM if isinstance(model.rnn, nn.LSTM) else nn.GRU
    rnn = kind(model.rnn.input_size, model.rnn.hidden_size)
    rnn.load_state_dict(model.rnn.state_dict())
    with torch.no_grad():
        hidden, _ = rnn(nn.functional.embedding(words, model.embedding.weight))
        return (hidden[-1] @ model.output.weight.T + model.output.bias).squeeze(-1)


def plain_prediction(model: SentimentRegressor, words: torch.Tensor) -> torch.Tensor:
    return plain_output(model, words) * model.target_std + model.target_mean


# --- initialisation ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["lstm", "gru"])
def published_size(request: pytest.FixtureRequest) -> SentimentRegressor:
    torch.manual_seed(0)
    return SentimentRegressor(2000, cell=request.param)


def gates(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return weight.split(128)


def test_recurrent_weights_of_every_gate_start_orthogonal(published_size: SentimentRegressor) -> None:
    blocks = gates(published_size.rnn.weight_hh_l0)
    assert len(blocks) == (4 if isinstance(published_size.rnn, nn.LSTM) else 3)
    for block in blocks:
        torch.testing.assert_close(block @ block.T, torch.eye(128), atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"cell": "lstm"}, {"cell": "gru"}, GRU_OF_2015], ids=["lstm", "gru", "2015"])
def test_recurrent_weights_start_orthogonal_times_the_gain(options: dict[str, Any], regressor: Build) -> None:
    model = regressor(hidden_size=20, **options | {"recurrent_gain": 1.1})
    for block in model.rnn.weight_hh_l0.split(20):
        torch.testing.assert_close(block @ block.T, 1.21 * torch.eye(20), atol=1e-5, rtol=0)


def test_input_weights_of_every_gate_start_glorot_uniform(published_size: SentimentRegressor) -> None:
    limit = 0.1531  # sqrt(6 / 256), protocol 2.2
    for block in gates(published_size.rnn.weight_ih_l0):
        assert block.abs().max() <= limit + 1e-4
        assert block.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.03)


def test_biases_start_at_zero_but_the_forget_gates_at_one(published_size: SentimentRegressor) -> None:
    total = [bias.unique().tolist() for bias in gates(published_size.rnn.bias_ih_l0 + published_size.rnn.bias_hh_l0)]
    # torch's order of gates: input, forget, candidate, output; GRU: reset, update, candidate.
    assert total == ([[0], [1], [0], [0]] if isinstance(published_size.rnn, nn.LSTM) else [[0], [0], [0]])
    assert published_size.output.bias.item() == 0


def test_embedding_and_output_start_as_published(published_size: SentimentRegressor) -> None:
    assert published_size.embedding.weight.abs().max() <= 0.05
    assert published_size.embedding.weight.std().item() == pytest.approx(0.05 / math.sqrt(3), rel=0.03)
    assert 0.15 < published_size.output.weight.abs().max() <= 0.2157  # sqrt(6 / 129)


@pytest.mark.parametrize("changes", [{}, AS_IN_2015])
def test_the_layers_of_2015_start_with_the_same_biases(changes: dict[str, Any], regressor: Build) -> None:
    lstm, gru = regressor(**changes), regressor(**changes | {"cell": "gru"})
    assert lstm.rnn.bias_ih_l0.tolist() == [0.0] * 5 + [1.0] * 5 + [0.0] * 10
    assert not any(bias.any() for bias in (lstm.rnn.bias_hh_l0, gru.rnn.bias_ih_l0, gru.rnn.bias_hh_l0))


@pytest.mark.parametrize(
    ("options", "layer"),
    [
        ({}, VariationalLSTM),
        ({"gate_activation": "hard_sigmoid"}, KerasLSTM),
        ({"dropout_scale": "test"}, KerasLSTM),
        ({"cell": "gru"}, VariationalGRU),
        ({"cell": "gru", "candidate_activation": "tanh", "reset_gate": "after"}, VariationalGRU),
        ({"cell": "gru", "gate_activation": "hard_sigmoid"}, KerasGRU),
        ({"cell": "gru", "dropout_scale": "test"}, KerasGRU),
        ({"cell": "gru", "candidate_activation": "sigmoid"}, KerasGRU),
        ({"cell": "gru", "reset_gate": "before"}, KerasGRU),
    ],
)
def test_only_what_the_librarys_layer_cannot_do_is_left_to_the_layers_of_2015(
    options: dict[str, Any], layer: type, regressor: Build
) -> None:
    rnn = regressor(**options).rnn
    assert type(rnn) is layer
    defaults = {"gate_activation": "sigmoid", "dropout_scale": "training"}
    if layer in (KerasLSTM, KerasGRU):
        expected = defaults | ({"candidate_activation": "tanh", "reset_gate": "after"} if layer is KerasGRU else {})
        assert {name: getattr(rnn, name) for name in expected} == expected | {
            name: value for name, value in options.items() if name != "cell"
        }


@pytest.mark.parametrize("options", [{}, AS_IN_2015, {"cell": "gru"}, GRU_OF_2015])
def test_the_recurrent_layer_has_the_dropout_it_was_told(options: dict[str, Any], regressor: Build) -> None:
    told = {"input_dropout": 0.4, "recurrent_dropout": 0.35, "gate_masks": "tied", "time_masks": "fresh"}
    model = regressor(**options | told | {"backend": "reference", "word_dropout": 0.3, "output_dropout": 0.45})
    assert {name: getattr(model.rnn, name) for name in told} == told
    assert model.rnn.backend == "reference"
    assert (model.embedding.word_dropout, model.output_dropout.p) == (0.3, 0.45)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"word_dropout": 1.5}, "word_dropout.*1.5"),
        ({"output_dropout": -0.5}, "must lie in .* got -0.5"),
        ({"gate_masks": "knotted"}, "gate_masks .*'tied', 'untied'.*'knotted'"),
        ({"cell": "rnn"}, "cell.*'lstm'.*'gru'.*'rnn'"),
        ({"mc_samples": -1}, "mc_samples.*-1"),
        ({"mc_every": -2}, "mc_every.*at least 0.*-2"),
        ({"mc_epoch_samples": 0}, "mc_epoch_samples.*at least 1.*0"),
        ({"time_masks": "old"}, "time_masks.*'constant', 'fresh'.*'old'"),
        ({"word_mask_sharing": "all"}, "mask_sharing.*'sequence', 'batch'.*'all'"),
        ({"dropout_scale": "always"}, "dropout_scale.*'training', 'test'.*'always'"),
        ({"gate_activation": "relu"}, "gate_activation.*'sigmoid', 'hard_sigmoid'.*'relu'"),
        ({"cell": "gru", "candidate_activation": "relu"}, "candidate_activation.*'tanh', 'sigmoid'.*'relu'"),
        ({"cell": "gru", "reset_gate": "never"}, "reset_gate.*'after', 'before'.*'never'"),
        ({"penalty": "some"}, "penalty.*'all', 'as_executed'.*'some'"),
        ({"monitor": "train_rmse"}, "monitor.*'test_rmse', 'valid_rmse'.*'train_rmse'"),
        ({"candidate_activation": "tanh"}, "candidate_activation and reset_gate are of a GRU"),
        ({"reset_gate": "after"}, "candidate_activation and reset_gate are of a GRU"),
        ({"mask_pads": True, "gate_activation": "hard_sigmoid"}, "mask_pads=True needs torch's recurrent layers"),
        ({"mask_pads": True, "dropout_scale": "test"}, "mask_pads=True needs torch's recurrent layers"),
        ({"mask_pads": True, "cell": "gru", "reset_gate": "before"}, "mask_pads=True needs torch's recurrent layers"),
        (
            {"mask_pads": True, "cell": "gru", "candidate_activation": "sigmoid"},
            "mask_pads=True needs torch's recurrent layers",
        ),
    ],
)
def test_impossible_arguments_are_named_with_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SentimentRegressor(**{"vocab_size": 30} | changes)


# --- dropout ----------------------------------------------------------------------------------------------------------


def masks_of(model: SentimentRegressor) -> dict[str, Any]:
    """Filled with the masks that the parts of a model draw."""
    drawn: dict[str, Any] = {}

    def record(name: str, part: Any) -> None:
        sample = part.sample_masks

        def recording(*args: Any, **kwargs: Any) -> Any:
            drawn[name] = sample(*args, **kwargs)
            return drawn[name]

        part.sample_masks = recording

    for name, part in (("word", model.embedding), ("rnn", model.rnn), ("output", model.output_dropout)):
        record(name, part)
    return drawn


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("word_mask_sharing", ["batch", "sequence"])
@pytest.mark.parametrize("dropout_scale", ["test", "training"])
def test_words_and_outputs_are_scaled_in_training_or_in_evaluation(
    cell: str, word_mask_sharing: str, dropout_scale: str, regressor: Build
) -> None:
    model = regressor(cell=cell, dropout_scale=dropout_scale, word_mask_sharing=word_mask_sharing, **DROPOUT)
    words = torch.randint(30, (6, 9))
    of_training, of_evaluation = ((1.0, 1.0), (0.7, 0.55)) if dropout_scale == "test" else ((1 / 0.7, 1 / 0.55), (1, 1))
    vectors = model.embedding.weight[words]

    def output(last: torch.Tensor) -> torch.Tensor:
        return (last @ model.output.weight.T + model.output.bias).squeeze(-1)

    drawn = masks_of(model)
    prediction = model(words).float()
    kept = (drawn["word"] != 0).expand(9, 30).gather(1, words.T).T[..., None]
    hidden, _ = model.rnn(vectors * kept * of_training[0], masks=drawn["rnn"])
    torch.testing.assert_close(prediction, output(hidden[-1] * (drawn["output"][0] != 0) * of_training[1]))
    assert 0 < kept.double().mean() < 1
    hidden, _ = model.eval().rnn(vectors * of_evaluation[0])
    torch.testing.assert_close(model(words).float(), output(hidden[-1] * of_evaluation[1]))


@pytest.mark.parametrize("options", [{}, AS_IN_2015, {"cell": "gru"}, GRU_OF_2015])
def test_dropout_scaled_in_the_test_is_inverted_dropout_of_a_network_with_smaller_weights(
    options: dict[str, Any], regressor: Build
) -> None:
    as_in_2015 = regressor(**options | DROPOUT | {"dropout_scale": "test"})
    inverted = regressor(**options | DROPOUT | {"dropout_scale": "training"})
    inverted.load_state_dict(as_in_2015.state_dict())
    with torch.no_grad():
        inverted.embedding.weight *= 1 - 0.3
        inverted.rnn.weight_ih_l0 *= 1 - 0.4
        inverted.rnn.weight_hh_l0 *= 1 - 0.35
        inverted.output.weight *= 1 - 0.45
    words, outputs = torch.randint(30, (6, 9)), []
    for model in (as_in_2015, inverted):
        torch.manual_seed(1)
        outputs.append((model(words), model.eval()(words)))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("options", [{}, AS_IN_2015, GRU_OF_2015, {"mask_pads": True}])
@pytest.mark.parametrize("slot", DROPOUT)
def test_a_sampled_network_is_one_of_training_whatever_is_dropped(
    slot: str, options: dict[str, Any], regressor: Build
) -> None:
    model = regressor(hidden_size=20, embedding_size=20, **options | {slot: 0.5})
    words = torch.randint(30, (6, 9))
    masks = [model.sample_masks(9, 6, model.generator(5, k)) for k in range(3)]
    in_training = torch.stack([model(words, drawn) for drawn in masks])
    samples = model.eval().sample(words, 3, 5)
    torch.testing.assert_close(samples, in_training)
    assert len(samples.unique(dim=0)) == 3


def dropped_types(model: SentimentRegressor, words: torch.Tensor) -> list[set[int]]:
    """The word types that a call drops from each text."""
    is_dropped = (model.embedding(words) == 0).all(dim=-1)
    return [set(text[of].tolist()) for text, of in zip(words.T, is_dropped.T, strict=True)]


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_may_share_the_dropped_word_types_and_draws_others_in_the_next_call(
    training: bool, regressor: Build
) -> None:
    words = torch.stack([torch.randperm(30) for _ in range(5)], dim=1)  # every text has every word, in another order
    for sharing, different in (("batch", 1), ("sequence", 5)):
        model = regressor(word_dropout=0.5, word_mask_sharing=sharing).train(training)
        with mc_dropout(model):
            calls = [dropped_types(model, words) for _ in range(2)]
        for dropped in calls:
            assert len(set(map(frozenset, dropped))) == different
            assert all(5 < len(types) < 25 for types in dropped)
        assert calls[0] != calls[1]


# --- pads -------------------------------------------------------------------------------------------------------------


def padded(texts: list[torch.Tensor], length: int) -> torch.Tensor:
    return torch.stack([torch.cat([torch.zeros(length - len(text)).long(), text]) for text in texts], dim=1)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("dropout", [{}, DROPOUT])
def test_a_network_that_skips_pads_predicts_what_torchs_layer_does_for_each_text_alone(
    cell: str, dropout: dict[str, Any], regressor: Build
) -> None:
    model = regressor(cell=cell, mask_pads=True, **dropout).eval()
    texts = [torch.randint(1, 30, (length,)) for length in (3, 7, 1, 5, 7)]
    texts[0][:2], texts[1][0] = torch.tensor([1, 2]), 1  # the start of a text and a rare word are no pads
    alone = torch.cat([plain_output(model, text[:, None]) for text in texts])
    for length in (7, 8, 20):
        torch.testing.assert_close(model(padded(texts, length)).float(), alone)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("skips", [True, False])
def test_the_number_of_pads_matters_only_to_a_network_that_reads_them(cell: str, skips: bool, regressor: Build) -> None:
    model = regressor(cell=cell, mask_pads=skips, **DROPOUT)
    nn.init.uniform_(model.embedding.weight, -2, 2)
    texts = [torch.randint(1, 30, (length,)) for length in (3, 6, 1)]
    with mc_dropout(model):
        for training in (True, False):
            predictions = []
            for length in (6, 8):
                torch.manual_seed(1)  # the same masks
                predictions.append(model.train(training)(padded(texts, length)))
            assert torch.allclose(*predictions) == skips
    for length in (6, 8):
        words = padded(texts, length)
        if not skips:
            torch.testing.assert_close(model.eval()(words).float(), plain_output(model, words))


def test_the_pads_vector_is_trained_only_by_a_network_that_reads_pads(regressor: Build) -> None:
    words = padded([torch.randint(1, 30, (length,)) for length in (3, 6, 1)], 6)
    for skips in (True, False):
        model = regressor(mask_pads=skips, **DROPOUT)
        model(words).sum().backward()
        assert bool(model.embedding.weight.grad[0].any()) != skips


def test_a_text_of_nothing_but_pads_is_read_as_one_pad(regressor: Build) -> None:
    model = regressor(mask_pads=True).eval()
    words = padded([torch.randint(1, 30, (4,)), torch.tensor([]).long()], 6)
    torch.testing.assert_close(model(words)[1:].float(), plain_output(model, torch.zeros(1, 1).long()))


def test_by_default_pads_are_read(regressor: Build) -> None:
    model, words = regressor().eval(), padded([torch.randint(1, 30, (2,))], 6)
    torch.testing.assert_close(model(words).float(), plain_output(model, words))
    assert not torch.allclose(model(words), model(words[4:]))


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("l2", [0.0, 0.01])
def test_loss_is_the_mean_squared_standardised_error_plus_the_penalty_on_all_parameters(
    l2: float, regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any, recorder: Any
) -> None:
    model, data = regressor(l2=l2), reviews(batch_size=20)
    data.setup()
    words, ratings, _ = all_of(data.train_dataloader())
    standardised = (ratings - ratings.mean()) / ratings.std(correction=0)
    squares = {name: p.detach().square().sum().item() for name, p in model.named_parameters()}
    assert len(squares) == 7  # embedding, four of the recurrent layer, output weight and bias
    expected = (plain_output(model, words) - standardised).square().mean().item() + l2 * sum(squares.values())
    trainer(recorder, max_epochs=1).fit(model, datamodule=data)
    assert recorder.losses[0].item() == pytest.approx(expected, rel=1e-5)
    assert curve_of(model)[0]["train_loss"] == pytest.approx(expected, rel=1e-5)
    assert curve_of(model)[0]["train_mse"] == pytest.approx(expected - l2 * sum(squares.values()), rel=1e-4)


def test_the_penalty_pulls_every_parameter(
    regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any, recorder: Any
) -> None:
    gradients = []
    for l2 in (0.0, 0.01):
        torch.manual_seed(0)
        model = regressor(l2=l2)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        recorder.gradients.clear()
        trainer(recorder, max_epochs=1).fit(model, datamodule=reviews(batch_size=20))
        gradients.append(recorder.gradients[0])
    for name, weight in before.items():
        torch.testing.assert_close(gradients[1][name] - gradients[0][name], 2 * 0.01 * weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "times"),
    [({"cell": "lstm"}, 4), (AS_IN_2015, 4), ({"cell": "gru"}, 3), (GRU_OF_2015, 3)],
    ids=["lstm", "lstm of 2015", "gru", "gru of 2015"],
)
def test_the_penalty_as_executed_is_on_embedding_and_output_and_so_many_times_on_the_last_gate(
    options: dict[str, Any], times: int, regressor: Build, reviews: Any, trainer: Any, recorder: Any
) -> None:
    gradients, losses = [], []
    for l2 in (0.0, 0.01):
        torch.manual_seed(0)
        model = regressor(**options | {"penalty": "as_executed", "l2": l2})
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.uniform_(parameter, -0.5, 0.5)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        recorder.gradients.clear()
        recorder.losses.clear()
        trainer(recorder, max_epochs=1).fit(model, datamodule=reviews(batch_size=20))
        gradients.append(recorder.gradients[0])
        losses.append(recorder.losses[0].item())
    expected = {name: torch.zeros_like(p) for name, p in before.items() if name in gradients[0]}
    squares = 0.0
    for name in ("embedding.weight", "output.weight", "output.bias"):
        expected[name] = 2 * 0.01 * before[name]
        squares += before[name].square().sum().item()
    for name in ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0"):
        last = before[name][-5:]  # torch's order: input, forget, candidate, output; reset, update, candidate
        expected[name][-5:] = 2 * 0.01 * times * last
        squares += times * last.square().sum().item()
    for name, pull in expected.items():
        torch.testing.assert_close(gradients[1][name] - gradients[0][name], pull, rtol=1e-4, atol=1e-6)
    assert losses[1] - losses[0] == pytest.approx(0.01 * squares, rel=1e-4)


@pytest.mark.parametrize("options", [{}, AS_IN_2015, GRU_OF_2015], ids=["modern", "lstm", "gru"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_training_equals_adamw_on_the_gradients_with_its_decay_of_all_parameters(
    weight_decay: float, options: dict[str, Any], regressor: Build, reviews: Any, trainer: Any, recorder: Any
) -> None:
    model = regressor(**options | {"learning_rate": 0.02, "weight_decay": weight_decay, "l2": 0.001})
    plain = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(list(plain.values()), lr=0.02, weight_decay=weight_decay)
    if not weight_decay:
        optimizer = torch.optim.Adam(list(plain.values()), lr=0.02)
    trainer(recorder, max_epochs=2).fit(model, datamodule=reviews(batch_size=10))
    assert len(recorder.gradients) == 4
    for gradients in recorder.gradients:
        for name, parameter in plain.items():
            parameter.grad = gradients.get(name)
        optimizer.step()
    assert gradients.keys() == plain.keys() - ({"rnn.bias_hh_l0"} if options else set())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), plain[name], rtol=1e-4, atol=1e-6)


def test_first_training_step_equals_plain_adam(
    regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any, recorder: Any
) -> None:
    model, data = regressor(learning_rate=0.01), reviews(batch_size=20)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer(recorder, max_epochs=1).fit(model, datamodule=data)
    for name, p in model.named_parameters():
        g = recorder.gradients[0][name]
        # The first step of Adam is lr * g / (|g| + eps).
        torch.testing.assert_close(p.detach(), before[name] - 0.01 * g / (g.abs() + 1e-8), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize(
    "dropout",
    [
        {},
        DROPOUT,
        DROPOUT | {"gate_masks": "tied"},
        NAIVE,
        DROPOUT | {"mask_pads": True},
        NAIVE | {"mask_pads": True},
        DROPOUT | AS_IN_2015,
        NAIVE | AS_IN_2015,
    ],
    ids=["standard", "untied", "tied", "naive", "pads skipped", "naive, pads skipped", "2015", "naive, 2015"],
)
def test_every_variant_trains_and_tests(
    cell: str, dropout: dict[str, Any], regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any
) -> None:
    if cell == "gru" and "gate_activation" in dropout:
        dropout = dropout | GRU_OF_2015
    model = regressor(mc_samples=2, **dropout | {"cell": cell})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run, data = trainer(max_epochs=1), reviews(pads=5)
    run.fit(model, datamodule=data)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    metrics = metrics_of(run, model, data)
    assert metrics.keys() == {
        "test_rmse", "test_rmse_review", "test_rmse_mc", "test_rmse_review_mc", "train_rmse_all", "constant_rmse",
        "mc_samples",
    }  # fmt: skip
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_twenty_examples_can_be_learned_by_heart(
    cell: str, regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any
) -> None:
    model = regressor(cell=cell, learning_rate=0.03)
    trainer(max_epochs=40).fit(model, datamodule=reviews(batch_size=20, train_eval_chunks=20))
    assert curve_of(model)[0]["train_loss"] > 0.5
    assert curve_of(model)[-1]["train_loss"] < 0.02
    assert curve_of(model)[-1]["train_rmse"] < 0.25 * curve_of(model)[0]["train_rmse"]


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_errors_of_the_curve_are_rmse_in_rating_units_with_dropout_off(
    regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any
) -> None:
    model, data = regressor(**DROPOUT), reviews()
    trainer(max_epochs=2).fit(model, datamodule=data)
    ratings = torch.tensor(data.chunks["train"]["rating"])
    mean, std = ratings.mean(), ratings.std(correction=0)
    test, train = (all_of(loader) for loader in data.val_dataloader())
    assert len(train[1]) == 6
    timings = {"epoch", "seconds", "words_per_s", "learning_rate", "gradient_norm"}
    assert curve_of(model)[-1].keys() - timings == {
        "train_loss",
        "train_mse",
        "test_rmse",
        "test_rmse_review",
        "train_rmse",
    }
    # 13 test texts in batches of 5, 5 and 3: a mean of the batches' errors would differ.
    assert curve_of(model)[-1]["test_rmse"] == pytest.approx(
        rmse(plain_output(model, test[0]) * std + mean, test[1]), rel=1e-5
    )
    assert curve_of(model)[-1]["train_rmse"] == pytest.approx(
        rmse(plain_output(model, train[0]) * std + mean, train[1]), rel=1e-5
    )


def test_constant_rmse_is_that_of_the_mean_training_rating(
    regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any
) -> None:
    run, data, model = trainer(max_epochs=1), reviews(), regressor()
    run.fit(model, datamodule=data)
    metrics = metrics_of(run, model, data)
    mean = sum(data.chunks["train"]["rating"]) / 20
    ratings = torch.tensor(data.chunks["test"]["rating"])
    assert metrics["constant_rmse"] == pytest.approx(rmse(torch.full((13,), mean), ratings), rel=1e-5)


@pytest.fixture
def measured(tmp_path: Path, trainer: Any) -> Callable[..., tuple[dict[str, float], Ratings]]:
    """Trains for an epoch on 40 texts rated `shift + scale * (0..4)`; returns the test's metrics and some ratings."""

    @cache
    def run(shift: float, scale: float, validation_share: float = 0.0) -> tuple[dict[str, float], Ratings]:
        lines = [f"film {i % 7} is number {i % 5},{shift + scale * (i % 5)!r}\n" for i in range(40)]
        (tmp_path / "rated.csv").write_text("text,rating\n" + "".join(lines))
        data = RatedText(tmp_path / "rated.csv", chunk_length=6, vocab_size=20, validation_share=validation_share)
        torch.manual_seed(0)
        model = SentimentRegressor(20, embedding_size=5, hidden_size=5, recurrent_dropout=0.3, mc_samples=2)
        fitting = trainer(max_epochs=3)
        fitting.fit(model, datamodule=data)
        return metrics_of(fitting, model, data), model.rate(["film 3 is number 4"], mc_samples=3)

    return run


@pytest.mark.parametrize(
    ("shift", "scale", "expected"), [(1.7e9, 1, 1.518), (1e9, 30, 45.55), (1e6, 0.1, 0.1518), (1e12, 1000, 1518)]
)
def test_ratings_far_from_zero_have_the_error_of_their_differences(
    shift: float, scale: float, expected: float, measured: Any
) -> None:
    metrics, _ = measured(shift, scale)
    assert metrics["constant_rmse"] == pytest.approx(expected, rel=5e-4)
    assert metrics["test_rmse"] == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_precision_that_would_round_the_ratings_is_refused_before_training(
    precision: str, regressor: Build, reviews: Any, trainer: Any
) -> None:
    run = trainer(max_epochs=1, precision=precision)
    for start in (run.fit, run.test):
        with pytest.raises(ValueError, match=f"trainer.precision={precision} would round ratings .* bf16-mixed"):
            start(regressor(), datamodule=reviews())


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(exponent=st.floats(-9, 12), centre=st.sampled_from([0, 1]) | st.floats(-1e8, 1e8))
@example(exponent=-9, centre=1e8)
@example(exponent=12, centre=-900)
def test_any_scaling_and_shift_of_ratings_scales_errors_alike_and_shifts_predictions(
    exponent: float, centre: float, measured: Any
) -> None:
    scale = 10**exponent
    shift = max(-9e14, min(centre * scale, 9e14))
    (of_scaled, scaled), (expected, rated) = measured(shift, scale, 0.25), measured(0, 1, 0.25)
    assert of_scaled.keys() == expected.keys()
    for name, value in expected.items():
        if "rmse" in name:
            assert of_scaled[name] / scale == pytest.approx(value, rel=1e-4), name
        elif name.startswith("tau"):
            assert of_scaled[name] * scale**2 == pytest.approx(value, rel=0.05), "a neighbour among the TAUS"
        elif name.startswith("test_log_likelihood"):
            assert of_scaled[name] + math.log(scale) == pytest.approx(value, abs=1e-2), name
    for value, of_scale in ((rated.mean, scaled.mean), (rated.approximation, scaled.approximation)):
        torch.testing.assert_close((of_scale - shift) / scale, value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scaled.std / scale, rated.std, rtol=1e-3, atol=1e-4)


def test_mc_error_is_that_of_the_mean_of_k_sampled_networks(
    regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any
) -> None:
    model, data, run = regressor(mc_samples=4, **DROPOUT), reviews(), trainer(max_epochs=1)
    run.fit(model, datamodule=data)
    samples: list[torch.Tensor] = []
    forward = model.forward

    def recording(words: torch.Tensor, *masks: Any) -> torch.Tensor:
        prediction = forward(words, *masks)
        if model.rnn.dropout_is_live:
            samples.append(prediction)
        return prediction

    model.forward = recording  # type: ignore[method-assign]
    metrics = metrics_of(run, model, data)
    assert [len(prediction) for prediction in samples] == [5] * 8 + [3] * 4
    assert len({tuple(prediction.tolist()) for prediction in samples}) == 12, "every pass must draw new networks"
    batches = [torch.stack(samples[start : start + 4]) for start in (0, 4, 8)]
    prediction = torch.cat(batches, dim=1).mean(dim=0)
    ratings = torch.tensor(data.chunks["test"]["rating"])
    assert metrics["test_rmse_mc"] == pytest.approx(rmse(prediction, ratings), rel=1e-5)
    assert metrics["test_rmse_mc"] != metrics["test_rmse"]


def test_mc_without_dropout_equals_the_dropout_approximation(
    regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any
) -> None:
    model = regressor(mc_samples=3)
    run, data = trainer(max_epochs=1), reviews()
    run.fit(model, datamodule=data)
    metrics = metrics_of(run, model, data)
    assert metrics["test_rmse_mc"] == pytest.approx(metrics["test_rmse"], rel=1e-6)
    assert metrics["test_rmse_review_mc"] == pytest.approx(metrics["test_rmse_review"], rel=1e-6)


def test_each_text_of_a_batch_is_read_by_its_own_sampled_network(
    regressor: Callable[..., SentimentRegressor],
) -> None:
    model = regressor(hidden_size=30, **DROPOUT).eval()
    same_text = torch.arange(1, 7)[:, None].expand(-1, 8)
    assert len(model.sample(same_text, 1)[0].unique()) == 8
    assert len(model(same_text).unique()) == 1


def test_standardisation_is_part_of_the_checkpoint(
    regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any, tmp_path: Any
) -> None:
    model, data = regressor(mc_samples=5, **DROPOUT), reviews()
    trainer(ModelCheckpoint(tmp_path, filename="model"), max_epochs=1).fit(model, datamodule=data)
    chosen_later = {"mc_samples", "mc_every", "mc_epoch_samples", "backend"}
    assert not chosen_later & torch.load(tmp_path / "model.ckpt")["hyper_parameters"].keys()
    loaded = SentimentRegressor.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.target_std.item() == pytest.approx(data.rating_std)
    words, *_ = all_of(data.predict_dataloader())
    assert torch.equal(loaded.eval()(words), model.eval()(words))


def test_test_of_a_loaded_model_needs_no_training_in_the_same_process(
    regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any, tmp_path: Any
) -> None:
    model, data = regressor(), reviews()
    run = trainer(ModelCheckpoint(tmp_path, filename="model"), max_epochs=1)
    run.fit(model, datamodule=data)
    expected = run.test(model, datamodule=data, verbose=False)
    torch.manual_seed(9)
    other = regressor()
    assert trainer().test(other, datamodule=reviews(), ckpt_path=tmp_path / "model.ckpt", verbose=False) == expected


def test_predictions_give_the_approximation_and_mean_and_spread_of_the_sampled_networks(
    regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any
) -> None:
    model, data = regressor(mc_samples=6, **DROPOUT), reviews()
    samples = record_samples(model)
    predictions = trainer().predict(model, datamodule=data)
    words, *_ = all_of(data.predict_dataloader())
    torch.testing.assert_close(torch.cat([p["approximation"] for p in predictions]), model.eval()(words))
    for prediction, drawn in zip(predictions, samples, strict=True):
        assert drawn.shape[0] == 6
        torch.testing.assert_close(prediction["mean"], drawn.sum(dim=0) / 6)
        torch.testing.assert_close(prediction["std"], drawn.std(dim=0, correction=0))


def test_predictions_of_a_single_sampled_network_have_no_undefined_spread(
    regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any
) -> None:
    predictions = trainer().predict(regressor(mc_samples=1, **DROPOUT), datamodule=reviews())
    assert not any(value.isnan().any() for prediction in predictions for value in prediction.values())


# --- errors by review and of all of training --------------------------------------------------------------------------


def test_error_by_review_is_that_of_the_mean_over_its_chunks_wherever_they_stand() -> None:
    reviews = torch.tensor([7, 3, 7, 90, 3, 7, 5, 90])
    ratings, predictions = (reviews * 0.37) % 1, torch.rand(8)
    assert rmse_by_review(predictions, ratings, reviews).item() == pytest.approx(
        review_rmse(predictions, ratings, reviews), rel=1e-5
    )
    assert rmse_by_review(predictions, ratings, torch.arange(8)).item() == pytest.approx(rmse(predictions, ratings))
    assert rmse_by_review(ratings, ratings, reviews).item() == pytest.approx(0, abs=1e-7)


def test_errors_by_review_in_curve_and_test_are_those_of_mean_predictions_over_batches(
    regressor: Build, reviews: Any, trainer: Any
) -> None:
    model, data, run = regressor(mc_samples=3, **DROPOUT), reviews(chunks_per_review=3), trainer(max_epochs=1)
    run.fit(model, datamodule=data)
    words, ratings, of = all_of(data.predict_dataloader())
    assert of.unique(return_counts=True)[1].tolist() == [1, 3, 3, 3, 3]
    expected = review_rmse(plain_prediction(model, words), ratings, of)
    samples = record_samples(model)
    metrics = metrics_of(run, model, data)
    assert curve_of(model)[0]["test_rmse_review"] == pytest.approx(expected, rel=1e-5)
    assert metrics["test_rmse_review"] == pytest.approx(expected, rel=1e-5)
    assert metrics["test_rmse_review"] != pytest.approx(metrics["test_rmse"], rel=1e-3)
    mean = torch.cat(samples, dim=1).mean(dim=0)
    assert metrics["test_rmse_review_mc"] == pytest.approx(review_rmse(mean, ratings, of), rel=1e-5)


def test_the_test_has_the_error_on_all_training_texts_with_dropout_off(
    regressor: Build, reviews: Any, trainer: Any
) -> None:
    model, data, run = regressor(mc_samples=2, **DROPOUT), reviews(), trainer(max_epochs=1)
    run.fit(model, datamodule=data)
    samples = record_samples(model)
    metrics = metrics_of(run, model, data)
    words, ratings = torch.tensor(data.chunks["train"]["words"]).T, torch.tensor(data.chunks["train"]["rating"])
    assert metrics["train_rmse_all"] == pytest.approx(rmse(plain_prediction(model, words), ratings), rel=1e-5)
    assert metrics["train_rmse_all"] != pytest.approx(curve_of(model)[0]["train_rmse"], rel=1e-3)
    assert sum(drawn.size(1) for drawn in samples) == 13, "training texts are not worth MC's time"


def test_without_samples_nothing_is_said_about_them(regressor: Build, reviews: Any, trainer: Any) -> None:
    model, data, run = regressor(**DROPOUT), reviews(validation=7), trainer(max_epochs=1)
    run.fit(model, datamodule=data)
    errors = {"test_rmse", "test_rmse_review", "train_rmse_all", "valid_rmse", "constant_rmse"}
    assert metrics_of(run, model, data).keys() == errors | PREDICTIVE


def test_a_second_test_or_epoch_forgets_the_predictions_of_the_first(
    regressor: Build, reviews: Any, trainer: Any
) -> None:
    model, data, run = regressor(mc_samples=2, **DROPOUT), reviews(validation=7), trainer(max_epochs=1)
    run.fit(model, datamodule=data)
    first = metrics_of(run, model, data)
    with torch.no_grad():
        model.output.bias += 1.0
    second = metrics_of(run, model, data)
    for loader, name in ((0, "test_rmse"), (1, "train_rmse_all"), (2, "valid_rmse")):
        words, ratings, _ = all_of(data.test_dataloader()[loader])
        assert second[name] == pytest.approx(rmse(plain_prediction(model, words), ratings), rel=1e-5)
    assert second["constant_rmse"] == first["constant_rmse"]


def test_predictions_are_kept_by_text_whatever_the_batches() -> None:
    kept, K = Predictions(), 3
    networks, ratings, reviews = torch.rand(K, 8), torch.rand(8), torch.arange(8)
    for batch in (slice(0, 5), slice(5, 6), slice(6, 8)):
        kept.update(networks[:, batch], ratings[batch], reviews[batch])
    for got, expected in zip(kept.compute(), (networks.T, ratings, reviews), strict=True):
        assert torch.equal(got, expected)
    kept.reset()
    kept.update(networks[0], ratings, reviews)
    assert torch.equal(kept.compute()[0], networks[:1].T)


# --- MC during training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mc_every", "epochs"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4]), (3, [3]), (7, [])])
def test_every_so_many_epochs_the_curve_has_mc_errors_and_the_other_epochs_have_none(
    mc_every: int, epochs: list[int], regressor: Build, reviews: Any, trainer: Any
) -> None:
    model = regressor(mc_every=mc_every, mc_epoch_samples=2, mc_samples=4, **DROPOUT)
    trainer(max_epochs=5).fit(model, datamodule=reviews(validation=7))
    for name in ("test_rmse_mc", "test_rmse_review_mc"):
        assert [entry["epoch"] for entry in curve_of(model) if name in entry] == epochs
    assert not any("valid_rmse_mc" in entry or "train_rmse_mc" in entry for entry in curve_of(model))


def test_mc_errors_of_the_curve_are_those_of_the_mean_of_so_many_networks(
    regressor: Build, reviews: Any, trainer: Any
) -> None:
    model = regressor(mc_every=2, mc_epoch_samples=3, mc_samples=7, **DROPOUT)
    data, samples = reviews(chunks_per_review=3, validation=7), record_samples(model)
    trainer(max_epochs=4).fit(model, datamodule=data)
    assert [tuple(drawn.shape) for drawn in samples] == [(3, 5), (3, 5), (3, 3)] * 2
    _, ratings, of = all_of(data.predict_dataloader())
    for entry, drawn in ((curve_of(model)[1], samples[:3]), (curve_of(model)[3], samples[3:])):
        mean = torch.cat(drawn, dim=1).mean(dim=0)
        assert entry["test_rmse_mc"] == pytest.approx(rmse(mean, ratings), rel=1e-5)
        assert entry["test_rmse_review_mc"] == pytest.approx(review_rmse(mean, ratings, of), rel=1e-5)
        assert entry["test_rmse_mc"] != entry["test_rmse"]


# --- a validation set -------------------------------------------------------------------------------------------------

PREDICTIVE = {"tau", "test_log_likelihood", "test_coverage_50", "test_coverage_90"}
OF_VALIDATION = {"valid_rmse", "valid_rmse_mc", *PREDICTIVE, *(f"{name}_mc" for name in PREDICTIVE)}


def test_only_with_a_validation_set_there_are_its_errors_and_a_predictive_distribution(
    regressor: Build, reviews: Any, trainer: Any
) -> None:
    for validation in (0, 7):
        model, data, run = regressor(mc_samples=2, **DROPOUT), reviews(validation=validation), trainer(max_epochs=1)
        run.fit(model, datamodule=data)
        metrics = metrics_of(run, model, data)
        assert metrics.keys() & OF_VALIDATION == (OF_VALIDATION if validation else set())
        assert curve_of(model)[0].keys() & OF_VALIDATION == ({"valid_rmse"} if validation else set())
        if validation:
            words, ratings, _ = all_of(data.val_dataloader()[2])
            assert len(ratings) == 7
            expected = rmse(plain_prediction(model, words), ratings)
            assert curve_of(model)[0]["valid_rmse"] == pytest.approx(expected, rel=1e-5)
            assert metrics["valid_rmse"] == pytest.approx(expected, rel=1e-5)


def log_likelihood(samples: torch.Tensor, ratings: torch.Tensor, tau: float) -> float:
    """Mean over the texts of the log density of K Gaussians mixed."""
    densities = [
        sum(NormalDist(y, tau**-0.5).pdf(rating) for y in networks) / len(networks)
        for networks, rating in zip(samples.T.tolist(), ratings.tolist(), strict=True)
    ]
    return sum(math.log(density) if density else -math.inf for density in densities) / len(densities)


def share_within(samples: torch.Tensor, ratings: torch.Tensor, tau: float, level: float) -> float:
    """Of the ratings, how many lie between the quantiles of K Gaussians mixed."""
    within = 0
    for networks, rating in zip(samples.T.tolist(), ratings.tolist(), strict=True):
        below = sum(NormalDist(y, tau**-0.5).cdf(rating) for y in networks) / len(networks)
        within += (1 - level) / 2 <= below <= (1 + level) / 2
    return within / len(ratings)


def test_tau_is_that_of_the_validation_set_and_likelihood_and_coverage_those_of_the_test_set(
    regressor: Build, reviews: Any, trainer: Any
) -> None:
    model, data, run = regressor(mc_samples=4, **DROPOUT), reviews(validation=7), trainer(max_epochs=1)
    run.fit(model, datamodule=data)
    nn.init.uniform_(model.output.weight, -2, 2)  # so that networks differ
    samples = record_samples(model)
    metrics = metrics_of(run, model, data)
    assert [drawn.size(1) for drawn in samples] == [5, 5, 3, 5, 2]
    test, validation = torch.cat(samples[:3], dim=1), torch.cat(samples[3:], dim=1)
    (words, ratings, _), _, (held_out_words, held_out, _) = map(all_of, data.test_dataloader())
    taus = [10 ** (i / 100) for i in range(-100, 501)]
    predictions = {
        "_mc": (test, validation),
        "": (plain_prediction(model, words)[None], plain_prediction(model, held_out_words)[None]),
    }
    for suffix, (test, validation) in predictions.items():
        best = max(taus, key=lambda tau: log_likelihood(validation, held_out, tau))
        assert 1 < best < 1e4
        assert metrics[f"tau{suffix}"] == pytest.approx(best, rel=0.05)
        assert best != pytest.approx(max(taus, key=lambda tau: log_likelihood(test, ratings, tau)), rel=0.05)
        likelihood = log_likelihood(test, ratings, metrics[f"tau{suffix}"])
        assert metrics[f"test_log_likelihood{suffix}"] == pytest.approx(likelihood, rel=1e-5)
        for percent in (50, 90):
            expected = share_within(test, ratings, metrics[f"tau{suffix}"], percent / 100)
            assert 0 < expected <= 1
            assert metrics[f"test_coverage_{percent}{suffix}"] == pytest.approx(expected)
    assert metrics["valid_rmse_mc"] == pytest.approx(rmse(predictions["_mc"][1].mean(dim=0), held_out), rel=1e-5)


def test_fitted_tau_is_the_likeliest_of_a_finer_search() -> None:
    for noise in (0.01, 0.1, 0.5):
        ratings = torch.rand(40)
        predictions = ratings + noise * torch.randn(3, 40)
        taus = [10 ** (i / 500) for i in range(-500, 2501)]
        best = max(taus, key=lambda tau: log_likelihood(predictions, ratings, tau))
        assert fitted_tau(predictions, ratings, 1.0) in TAUS.tolist()
        assert abs(math.log10(fitted_tau(predictions, ratings, 1.0) / best)) < 1 / 60, "the next of TAUS is 1 / 60 away"


def test_fitted_tau_of_a_single_network_is_the_inverse_of_its_mean_squared_error() -> None:
    ratings, predictions = torch.rand(50), torch.rand(1, 50)
    expected = 1 / (ratings - predictions[0]).square().mean().item()
    assert abs(math.log10(fitted_tau(predictions, ratings, 1.0) / expected)) < 0.5 / 60 + 1e-4


def test_fitted_tau_follows_the_units_of_the_ratings() -> None:
    ratings, predictions = torch.rand(50), torch.rand(3, 50)
    tau = fitted_tau(predictions, ratings, 0.3)
    assert fitted_tau(1000 * predictions, 1000 * ratings, 300.0) == pytest.approx(tau / 1000**2)


def test_noise_is_sought_from_3_to_3_thousandths_of_the_spread_of_ratings() -> None:
    assert TAUS[0].item() ** -0.5 == pytest.approx(3.16, abs=0.01)
    assert TAUS[-1].item() ** -0.5 == pytest.approx(0.00316, abs=1e-5)
    assert (TAUS.diff() > 0).all()
    assert (TAUS[1:] / TAUS[:-1]).max() < 1.04
    ratings = torch.rand(5)
    assert fitted_tau(ratings[None], ratings, 10.0) == TAUS[-1] / 100
    assert fitted_tau(ratings[None] + 100, ratings, 10.0) == TAUS[0] / 100


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_is_the_share_of_ratings_between_the_quantiles_of_what_the_networks_and_the_noise_would_give(
    level: float,
) -> None:
    tau, ratings = 40.0, torch.linspace(-0.5, 1.5, 200)
    predictions = torch.cat([torch.randn(3, 200) * 0.05 + 0.2, torch.randn(4, 200) * 0.3 + 0.9])
    simulated = predictions[torch.randint(7, (20_000,))] + tau**-0.5 * torch.randn(20_000, 200)
    low, high = (torch.quantile(simulated, share, dim=0) for share in ((1 - level) / 2, (1 + level) / 2))
    within = ((low <= ratings) & (ratings <= high)).double().mean().item()
    assert 0.2 < within < 0.8
    assert coverage(predictions, ratings, tau, level).item() == pytest.approx(within, abs=0.011)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_the_coverage_of_ratings_that_a_model_is_right_about_is_the_level(level: float) -> None:
    predictions = torch.randn(5, 20_000)
    ratings = predictions[torch.randint(5, (20_000,)), torch.arange(20_000)] + 0.3 * torch.randn(20_000)
    assert coverage(predictions, ratings, 1 / 0.09, level).item() == pytest.approx(level, abs=0.01)


def test_the_test_error_is_monitored_unless_another_is_chosen(regressor: Build) -> None:
    assert regressor().monitor == "test_rmse"
    assert regressor(monitor="valid_rmse").monitor == "valid_rmse"


@pytest.mark.parametrize("options", [{}, AS_IN_2015, GRU_OF_2015], ids=["modern", "lstm of 2015", "gru of 2015"])
def test_errors_are_those_of_the_parameters_precision_although_training_has_less(
    options: dict[str, Any], regressor: Build, reviews: Any, trainer: Any
) -> None:
    model, data, run = regressor(**DROPOUT | options), reviews(), trainer(max_epochs=1, precision="bf16-mixed")
    run.fit(model, datamodule=data)
    metrics = metrics_of(run, model, data)
    words, ratings, _ = all_of(data.predict_dataloader())
    with torch.no_grad():
        expected = rmse(model.eval()(words), ratings)
    assert metrics["test_rmse"] == pytest.approx(expected, rel=1e-6)
    assert curve_of(model)[0]["test_rmse"] == pytest.approx(expected, rel=1e-6)
