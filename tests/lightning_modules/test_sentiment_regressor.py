"""The regression of ratings."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_modules import SentimentRegressor

DROPOUT = {"word_dropout": 0.3, "input_dropout": 0.4, "recurrent_dropout": 0.35, "output_dropout": 0.45}
NAIVE = {"time_masks": "fresh", "gate_masks": "tied", "input_dropout": 0.5, "output_dropout": 0.5}


def all_of(loader: Any) -> tuple[torch.Tensor, torch.Tensor]:
    words, ratings = zip(*loader, strict=True)
    return torch.cat(words, dim=1), torch.cat(ratings)


def rmse(prediction: torch.Tensor, ratings: torch.Tensor) -> float:
    return math.sqrt(
        sum((p - r) ** 2 for p, r in zip(prediction.tolist(), ratings.tolist(), strict=True)) / len(ratings)
    )


def plain_output(model: SentimentRegressor, words: torch.Tensor) -> torch.Tensor:
    """The network's standardised output by torch.nn modules."""
    kind = nn.LSTM if isinstance(model.rnn, nn.LSTM) else nn.GRU
    rnn = kind(model.rnn.input_size, model.rnn.hidden_size)
    rnn.load_state_dict(model.rnn.state_dict())
    with torch.no_grad():
        hidden, _ = rnn(nn.functional.embedding(words, model.embedding.weight))
        return (hidden[-1] @ model.output.weight.T + model.output.bias).squeeze(-1)


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"word_dropout": 1.5}, "word_dropout.*1.5"),
        ({"output_dropout": -0.5}, "must lie in .* got -0.5"),
        ({"gate_masks": "knotted"}, "gate_masks .*'tied', 'untied'.*'knotted'"),
        ({"cell": "rnn"}, "cell.*'lstm'.*'gru'.*'rnn'"),
        ({"mc_samples": -1}, "mc_samples.*-1"),
    ],
)
def test_impossible_arguments_are_named_with_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SentimentRegressor(**{"vocab_size": 30} | changes)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("l2", [0.0, 0.01])
def test_loss_is_the_mean_squared_standardised_error_plus_the_penalty_on_all_parameters(
    l2: float, regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any, recorder: Any
) -> None:
    model, data = regressor(l2=l2), reviews(batch_size=20)
    data.setup()
    words, ratings = all_of(data.train_dataloader())
    standardised = (ratings - ratings.mean()) / ratings.std(correction=0)
    squares = {name: p.detach().square().sum().item() for name, p in model.named_parameters()}
    assert len(squares) == 7  # embedding, four of the recurrent layer, output weight and bias
    expected = (plain_output(model, words) - standardised).square().mean().item() + l2 * sum(squares.values())
    trainer(recorder, max_epochs=1).fit(model, datamodule=data)
    assert recorder.losses[0].item() == pytest.approx(expected, rel=1e-5)
    assert model.curve[0]["train_loss"] == pytest.approx(expected, rel=1e-5)


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
    "dropout", [{}, DROPOUT, DROPOUT | {"gate_masks": "tied"}, NAIVE], ids=["standard", "untied", "tied", "naive"]
)
def test_every_variant_trains_and_tests(
    cell: str, dropout: dict[str, Any], regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any
) -> None:
    model = regressor(cell=cell, mc_samples=2, **dropout)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run, data = trainer(max_epochs=1), reviews()
    run.fit(model, datamodule=data)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    [metrics] = run.test(model, datamodule=data, verbose=False)
    assert metrics.keys() == {"test_rmse", "constant_rmse", "test_rmse_mc", "mc_samples"}
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_twenty_examples_can_be_learned_by_heart(
    cell: str, regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any
) -> None:
    model = regressor(cell=cell, learning_rate=0.03)
    trainer(max_epochs=40).fit(model, datamodule=reviews(batch_size=20, train_eval_chunks=20))
    assert model.curve[0]["train_loss"] > 0.5
    assert model.curve[-1]["train_loss"] < 0.02
    assert model.curve[-1]["train_rmse"] < 0.25 * model.curve[0]["train_rmse"]


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
    # 13 test texts in batches of 5, 5 and 3: a mean of the batches' errors would differ.
    assert model.curve[-1]["test_rmse"] == pytest.approx(
        rmse(plain_output(model, test[0]) * std + mean, test[1]), rel=1e-5
    )
    assert model.curve[-1]["train_rmse"] == pytest.approx(
        rmse(plain_output(model, train[0]) * std + mean, train[1]), rel=1e-5
    )


def test_constant_rmse_is_that_of_the_mean_training_rating(
    regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any
) -> None:
    run, data, model = trainer(max_epochs=1), reviews(), regressor()
    run.fit(model, datamodule=data)
    [metrics] = run.test(model, datamodule=data, verbose=False)
    mean = sum(data.chunks["train"]["rating"]) / 20
    ratings = torch.tensor(data.chunks["test"]["rating"])
    assert metrics["constant_rmse"] == pytest.approx(rmse(torch.full((13,), mean), ratings), rel=1e-5)


def test_mc_error_is_that_of_the_mean_of_k_sampled_networks(
    regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any
) -> None:
    model, data, run = regressor(mc_samples=4, **DROPOUT), reviews(), trainer(max_epochs=1)
    run.fit(model, datamodule=data)
    samples: list[torch.Tensor] = []
    forward = model.forward

    def recording(words: torch.Tensor) -> torch.Tensor:
        prediction = forward(words)
        if model.rnn.dropout_is_live:
            samples.append(prediction)
        return prediction

    model.forward = recording  # type: ignore[method-assign]
    [metrics] = run.test(model, datamodule=data, verbose=False)
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
    [metrics] = run.test(model, datamodule=data, verbose=False)
    assert metrics["test_rmse_mc"] == pytest.approx(metrics["test_rmse"], rel=1e-6)


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
    assert not {"mc_samples", "backend"} & torch.load(tmp_path / "model.ckpt")["hyper_parameters"].keys()
    loaded = SentimentRegressor.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.target_std.item() == pytest.approx(data.rating_std)
    words, _ = all_of(data.test_dataloader())
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
    samples: list[torch.Tensor] = []
    sample = model.sample

    def recording(words: torch.Tensor, number: int) -> torch.Tensor:
        samples.append(sample(words, number))
        return samples[-1]

    model.sample = recording  # type: ignore[method-assign]
    predictions = trainer().predict(model, datamodule=data)
    words, _ = all_of(data.predict_dataloader())
    assert torch.equal(torch.cat([p["approximation"] for p in predictions]), model.eval()(words))
    for prediction, drawn in zip(predictions, samples, strict=True):
        assert drawn.shape[0] == 6
        torch.testing.assert_close(prediction["mean"], drawn.sum(dim=0) / 6)
        torch.testing.assert_close(prediction["std"], drawn.std(dim=0, correction=0))


def test_predictions_of_a_single_sampled_network_have_no_undefined_spread(
    regressor: Callable[..., SentimentRegressor], reviews: Any, trainer: Any
) -> None:
    predictions = trainer().predict(regressor(mc_samples=1, **DROPOUT), datamodule=reviews())
    assert not any(value.isnan().any() for prediction in predictions for value in prediction.values())
