"""Training of the language model."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_modules import LanguageModel
from tests.random_data import curve_of

EXACT = {"rtol": 1e-10, "atol": 1e-12}


class Plain(nn.Module):
    """The same network of torch.nn modules."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        vocab_size, hidden_size = model.embedding.weight.shape
        kind = nn.LSTM if isinstance(model.rnn, nn.LSTM) else nn.GRU
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.rnn = kind(hidden_size, hidden_size, model.rnn.num_layers)
        self.softmax = nn.Linear(hidden_size, vocab_size)
        self.double().load_state_dict(model.state_dict())

    def forward(self, words: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        hidden, state = self.rnn(self.embedding(words), state)
        return self.softmax(hidden), state


def windows_of(data: Any) -> list[tuple[Tensor, Tensor]]:
    data.setup()
    return list(data.train_dataloader())


def detach(state: Any) -> Any:
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hidden_size", "published"), [(200, "4.65"), (650, "19.78"), (1250, "50.03"), (1500, "66.03")]
)
def test_the_network_has_the_published_number_of_parameters(hidden_size: int, published: str) -> None:
    with torch.device("meta"):
        model = LanguageModel(10_000, hidden_size)
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}" == published


def test_dropout_adds_no_parameters() -> None:
    names = LanguageModel(11, 6).state_dict().keys()
    dropped = LanguageModel(11, 6, word_dropout=0.5, input_dropout=0.5, recurrent_dropout=0.5, memory_dropout=0.5)
    assert dropped.state_dict().keys() == names


@pytest.mark.parametrize("scale", [0.1, 0.04])
def test_every_parameter_starts_uniform_within_init_scale(scale: float) -> None:
    for name, parameter in LanguageModel(300, 80, init_scale=scale).named_parameters():
        assert parameter.abs().max() <= scale, name
        # A uniform variable on [-s, s] has standard deviation s / sqrt(3); the smallest tensor has 300 entries.
        assert parameter.std().item() == pytest.approx(scale / math.sqrt(3), rel=0.15), name
        assert abs(parameter.mean().item()) < 0.15 * scale, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"word_dropout": 1.5}, "word_dropout.*1.5"),
        ({"input_dropout": 1.0}, "input_dropout.*1.0"),
        ({"recurrent_dropout": -0.1}, "recurrent_dropout.*-0.1"),
        ({"output_dropout": 2.0}, "must lie in .* got 2.0"),
        ({"memory_dropout": 0.3, "cell": "gru"}, "memory_dropout=0.3 .* gru"),
        ({"gate_masks": "knotted"}, "gate_masks .*'tied', 'untied'.*'knotted'"),
        ({"time_masks": "never"}, "time_masks .*'constant', 'fresh'.*'never'"),
        ({"word_masks": "letter"}, "word_masks .*'type'.*'token'.*'letter'"),
        ({"mc_word_dropout": True, "word_masks": "token", "mc_masks": "stream"}, "mc_masks='window'"),
        ({"epoch_start": "here"}, "epoch_start.*'zeros'.*'validation'.*'here'"),
        ({"cell": "rnn"}, "cell.*'lstm'.*'gru'.*'rnn'"),
        ({"mc_masks": "forever"}, "mc_masks.*'stream'.*'window'.*'both'.*'forever'"),
        ({"mc_samples": -1}, "mc_samples.*-1"),
    ],
)
def test_impossible_arguments_are_named_with_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanguageModel(**{"vocab_size": 11, "hidden_size": 6} | changes)


# --- loss, gradient, update -------------------------------------------------------------------------------------------


def test_loss_is_cross_entropy_summed_over_time_and_averaged_over_streams(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any, recorder: Any
) -> None:
    model, data = language_model(), streams()
    inputs, targets = windows_of(data)[0]
    log_probs = model(inputs)[0].detach().log_softmax(dim=-1)
    by_step = [
        sum(-log_probs[t, b, targets[t, b]].item() for b in range(4)) / 4
        for t in range(5)
    ]  # fmt: skip
    trainer(recorder, max_epochs=1, limit_train_batches=1).fit(model, datamodule=data)
    assert recorder.losses[0].item() == pytest.approx(sum(by_step), rel=1e-10)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gradient_without_dropout_equals_that_of_plain_modules(
    cell: str,
    backend: str,
    language_model: Callable[..., LanguageModel],
    streams: Any,
    trainer: Any,
    recorder: Any,
) -> None:
    model, data = language_model(cell=cell, backend=backend), streams()
    plain = Plain(model)
    inputs, targets = windows_of(data)[0]
    F.cross_entropy(plain(inputs)[0].flatten(0, 1), targets.flatten(), reduction="sum").div(4).backward()
    trainer(recorder, max_epochs=1, limit_train_batches=1).fit(model, datamodule=data)
    expected = {name: p.grad for name, p in plain.named_parameters()}
    assert recorder.gradients[0].keys() == expected.keys()
    torch.testing.assert_close(recorder.gradients[0], expected, **EXACT)


def train_plainly(
    plain: Plain,
    windows: list[tuple[Tensor, Tensor]],
    *,
    epochs: int,
    max_epoch: int,
    decay: float,
    weight_decay: float,
    max_norm: float,
    carry: bool,
) -> tuple[list[float], list[float], list[float]]:
    """Protocol 1.3 and 1.4 word for word; returns norms, learning rates by epoch, perplexities by epoch."""
    lr, norms, rates, perplexities = 1.0, [], [], []
    parameters = list(plain.parameters())
    for epoch in range(1, epochs + 1):
        rates.append(lr)
        state, losses = None, []
        for inputs, targets in windows:
            logits, state = plain(inputs, state if carry else None)
            state = detach(state)
            loss = sum(F.cross_entropy(logits[t], targets[t]) for t in range(len(inputs)))
            gradients = torch.autograd.grad(loss, parameters)
            norms.append(math.sqrt(sum(g.square().sum().item() for g in gradients)))
            losses.append(loss.item() / len(inputs))
            with torch.no_grad():
                for p, g in zip(parameters, gradients, strict=True):
                    if norms[-1] > max_norm:
                        g = g * (max_norm / norms[-1])
                    p -= lr * g
                    p -= weight_decay * p
        perplexities.append(math.exp(sum(losses) / len(losses)))
        if epoch > max_epoch:
            lr = lr / decay
    return norms, rates, perplexities


@pytest.mark.parametrize("carry", [True, False])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_training_without_dropout_equals_a_hand_written_loop(
    cell: str, carry: bool, language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    options = {"learning_rate_decay": 1.5, "constant_epochs": 1, "weight_decay": 0.01, "carry_state": carry}
    model, data = language_model(cell=cell, **options), streams()
    plain = Plain(model)
    norms, rates, perplexities = train_plainly(
        plain, windows_of(data), epochs=4, max_epoch=1, decay=1.5, weight_decay=0.01, max_norm=1.3, carry=carry
    )
    assert min(norms) < 1.3 < max(norms), "the loop must see both clipped and unclipped steps"
    trainer(max_epochs=4, gradient_clip_val=1.3).fit(model, datamodule=data)
    # torch's clipping divides by norm + 1e-6.
    torch.testing.assert_close(dict(model.state_dict()), dict(plain.state_dict()), rtol=1e-5, atol=1e-6)
    assert [entry["train_ppl"] for entry in curve_of(model)] == pytest.approx(perplexities, rel=1e-5)
    assert [entry["learning_rate"] for entry in curve_of(model)] == pytest.approx(rates)
    assert curve_of(model)[-1]["gradient_norm"] == pytest.approx(norms[-1], rel=1e-4)


@pytest.mark.parametrize(
    ("constant_epochs", "decay", "epochs", "last"),
    [(4, 2.0, 13, 0.0039), (6, 1.2, 39, 0.0029), (14, 1.15, 55, 0.0037), (10, 1.15, 55, 0.0021)],
)
def test_learning_rate_follows_the_published_schedules(
    constant_epochs: int, decay: float, epochs: int, last: float
) -> None:
    model = LanguageModel(11, 6, constant_epochs=constant_epochs, learning_rate_decay=decay)
    [optimizer], [schedule] = model.configure_optimizers()
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[: constant_epochs + 1] == [1.0] * (constant_epochs + 1)
    for epoch in range(constant_epochs + 2, epochs + 1):
        assert rates[epoch - 1] == pytest.approx(decay ** -(epoch - constant_epochs - 1), rel=1e-12)
    assert round(rates[-1], 4) == last


def test_curve_holds_the_learning_rate_that_each_epoch_was_trained_with(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any, recorder: Any
) -> None:
    model = language_model(constant_epochs=1, learning_rate_decay=2.0)
    trainer(recorder, max_epochs=4).fit(model, datamodule=streams())
    assert recorder.rates == [1.0, 1.0, 0.5, 0.25]
    assert [entry["learning_rate"] for entry in curve_of(model)] == recorder.rates


def test_training_perplexity_is_the_exponential_of_the_mean_of_the_epochs_window_losses(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any, recorder: Any
) -> None:
    model = language_model(input_dropout=0.5, word_dropout=0.3)
    trainer(recorder, max_epochs=2).fit(model, datamodule=streams())
    for epoch in range(2):
        per_word = torch.stack(recorder.losses[3 * epoch : 3 * epoch + 3]) / 5
        assert curve_of(model)[epoch]["train_ppl"] == pytest.approx(per_word.mean().exp().item(), rel=1e-6)


def test_bf16_mixed_trains_float32_parameters_in_lower_precision(streams: Any, trainer: Any, recorder: Any) -> None:
    runs = {}
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        # The reference rounds on every processor; the CPU kernels only where there are products of bf16.
        model = LanguageModel(11, 12, init_scale=0.5, input_dropout=0.3, recurrent_dropout=0.3, backend="reference")
        recorder.losses.clear()
        trainer(recorder, max_epochs=1, precision=precision).fit(model, datamodule=streams(4, 20, sizes=(483, 245, 23)))
        runs[precision] = torch.stack(recorder.losses)
        assert all(p.dtype == torch.float32 for p in model.parameters())
    full, mixed = runs.values()
    assert mixed.dtype == torch.float32
    assert not torch.equal(full, mixed)
    torch.testing.assert_close(mixed, full, rtol=0.01, atol=0)


@pytest.mark.parametrize("window", [5, 40])  # few rows and many take different ways through the softmax
def test_perplexity_is_evaluated_in_the_parameters_precision_whatever_they_are_trained_in(
    window: int, streams: Any, trainer: Any
) -> None:
    model = LanguageModel(11, 12, init_scale=0.5)
    perplexities = [
        trainer(precision=precision).test(model, datamodule=streams(window=window, sizes=(483, 61, 223)), verbose=False)
        for precision in ("32-true", "bf16-mixed")
    ]
    assert perplexities[0] == perplexities[1]


# --- state ------------------------------------------------------------------------------------------------------------


class Recording(LanguageModel):
    """Keeps what every forward pass is given and what it returns."""

    def _hidden(self, words: Tensor, state: Any, masks: Any) -> tuple[Tensor, Any]:
        hidden, new_state = super()._hidden(words, state, masks)
        if not hasattr(self, "passes"):
            self.passes: list[tuple[bool, Tensor, Any, Any]] = []
        self.passes.append((self.training, words, state, new_state))
        return hidden, new_state


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_each_window_starts_from_the_detached_state_of_the_one_before(
    dropout: float, streams: Any, trainer: Any
) -> None:
    model, data = Recording(11, 6, recurrent_dropout=dropout), streams()
    trainer(max_epochs=2).fit(model, datamodule=data)
    train = [entry[1:] for entry in model.passes if entry[0]]
    assert len(train) == 2 * 3
    expected_words = [inputs for inputs, _ in data.train_dataloader()]
    for (words, _, _), expected in zip(train, 2 * expected_words, strict=True):
        assert torch.equal(words, expected)
    for epoch in (train[:3], train[3:]):
        assert epoch[0][1] is None, "an epoch must start from zeros"
        for (_, _, final), (_, initial, _) in pairwise(epoch):
            assert all(torch.equal(a, b) for a, b in zip(initial, final, strict=True))
            assert not any(s.requires_grad for s in initial)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_an_epoch_may_start_from_the_final_state_of_validation_as_in_the_original_code(
    cell: str, streams: Any, trainer: Any
) -> None:
    model = Recording(11, 6, cell=cell, recurrent_dropout=0.4, epoch_start="validation")
    trainer(max_epochs=3).fit(model, datamodule=streams(train_eval_windows=1))
    assert model.passes[0][2] is None, "the first epoch must start from zeros"
    kinds = [training for training, *_ in model.passes]
    starts = [i for i in range(1, len(kinds)) if kinds[i] and not kinds[i - 1]]
    assert len(starts) == 2
    for start in starts:
        final = model.passes[start - 2][3]  # the evaluation of a training window comes between
        initial = model.passes[start][2]
        for one, other in zip(*(s if cell == "lstm" else (s,) for s in (initial, final)), strict=True):
            assert torch.equal(one, other)


def test_without_carry_state_every_window_starts_from_zeros(streams: Any, trainer: Any) -> None:
    model = Recording(11, 6, carry_state=False)
    run = trainer(max_epochs=2)
    run.fit(model, datamodule=streams())
    run.test(model, datamodule=streams(), verbose=False)
    assert {training for training, *_ in model.passes} == {True, False}
    assert all(state is None for _, _, state, _ in model.passes)


def test_validation_starts_from_zeros_and_leaves_the_training_state_alone(streams: Any, trainer: Any) -> None:
    model = Recording(11, 6)
    trainer(max_epochs=1, val_check_interval=2).fit(model, datamodule=streams())
    order = [training for training, *_ in model.passes]
    assert order[:5] == [True, True, False, False, True], "validation must come between training windows"
    assert model.passes[2][2] is None
    assert torch.equal(model.passes[4][2][0], model.passes[1][3][0])


# --- masks in training ------------------------------------------------------------------------------------------------


def record(module: nn.Module) -> list[Any]:
    """Keep all masks that a module draws from now on."""
    drawn: list[Any] = []
    sample = module.sample_masks

    def sample_masks(*args: Any, **kwargs: Any) -> Any:
        drawn.append(sample(*args, **kwargs))  # type: ignore[operator]
        return drawn[-1]

    module.sample_masks = sample_masks  # type: ignore[assignment]
    return drawn


@pytest.mark.parametrize("gate_masks", ["tied", "untied"])
def test_every_training_window_has_new_masks_and_every_stream_its_own(
    gate_masks: str, language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model = language_model(
        hidden_size=20,
        vocab_size=40,
        gate_masks=gate_masks,
        word_dropout=0.5,
        input_dropout=0.5,
        recurrent_dropout=0.5,
        output_dropout=0.5,
    )
    words, rnn, output = record(model.embedding), record(model.rnn), record(model.output_dropout)
    trainer(max_epochs=2, limit_val_batches=0).fit(model, datamodule=streams(vocab_size=40))
    slots = [words, output]
    for layer in range(2):
        slots += [[masks.layers[layer].input for masks in rnn], [masks.layers[layer].recurrent for masks in rnn]]
    for masks in slots:
        assert len(masks) == 6  # two epochs of three windows
        rows = torch.cat([mask.reshape(-1, 4, mask.shape[-1]).transpose(0, 1).flatten(1) for mask in masks])
        assert len(rows.unique(dim=0)) == 6 * 4


def test_naive_masks_are_fresh_at_every_step_of_a_training_window(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model = language_model(hidden_size=20, time_masks="fresh", input_dropout=0.5, output_dropout=0.5)
    rnn, output = record(model.rnn), record(model.output_dropout)
    trainer(max_epochs=1, limit_val_batches=0).fit(model, datamodule=streams())
    for masks in ([rnn[0].layers[0].input], [rnn[0].layers[1].input], [output[0].unsqueeze(1)]):
        steps = masks[0][:, 0]  # [T, B, H]
        assert steps.shape == (5, 4, 20)
        assert len(steps.flatten(0, 1).unique(dim=0)) == 5 * 4
    assert rnn[0].layers[0].recurrent is None


def test_no_masks_are_drawn_in_validation_and_in_the_dropout_approximation(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any
) -> None:
    model = language_model(word_dropout=0.5, input_dropout=0.5, recurrent_dropout=0.5, output_dropout=0.5)
    drawn = [record(module) for module in (model.embedding, model.rnn, model.output_dropout)]
    run, data = trainer(), streams()
    run.validate(model, datamodule=data, verbose=False)
    run.test(model, datamodule=data, verbose=False)
    assert drawn == [[], [], []]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_what_is_chosen_at_test_time_is_not_in_the_checkpoint(
    language_model: Callable[..., LanguageModel], streams: Any, trainer: Any, tmp_path: Any
) -> None:
    model = language_model(input_dropout=0.2, mc_samples=7, mc_masks="window", mc_word_dropout=True)
    checkpoints = ModelCheckpoint(tmp_path, filename="model")
    trainer(checkpoints, max_epochs=1).fit(model, datamodule=streams())
    saved = torch.load(tmp_path / "model.ckpt", weights_only=True)["hyper_parameters"]
    assert saved["input_dropout"] == 0.2
    assert saved["hidden_size"] == 6
    assert not {"mc_samples", "mc_masks", "mc_word_dropout", "backend"} & saved.keys()
    loaded = LanguageModel.load_from_checkpoint(tmp_path / "model.ckpt", mc_samples=3)
    assert (loaded.mc_samples, loaded.mc_masks, loaded.rnn.input_dropout) == (3, "stream", 0.2)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
