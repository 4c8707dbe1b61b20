"""What others built on the paper's language model: shared masks, tied weights, a projection, the augmented loss."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_modules import LanguageModel
from tests.random_data import curve_of
from variational_rnn import mc_dropout

EXACT = {"rtol": 1e-10, "atol": 1e-12}
SHARED = {"share_masks": True, "input_dropout": 0.4, "recurrent_dropout": 0.4, "output_dropout": 0.4}
AUGMENTED = {"augmented_loss": 0.65, "learn_expected": True}
ALL = SHARED | AUGMENTED | {"tie_weights": True, "softmax_bias": False, "projection_penalty": 0.1}

Build = Callable[..., LanguageModel]


@pytest.fixture
def window() -> tuple[Tensor, Tensor]:
    """Inputs and targets of 5 steps and 4 streams."""
    return torch.randint(11, (5, 4)), torch.randint(11, (5, 4))


def windows_of(data: Any) -> list[tuple[Tensor, Tensor]]:
    data.setup()
    return list(data.train_dataloader())


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden_size", [200, 650, 1500])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("projection_penalty", [None, 0.1])
def test_number_of_parameters_is_that_of_the_formula(
    hidden_size: int, tied: bool, bias: bool, projection_penalty: float | None
) -> None:
    options = {"tie_weights": tied, "softmax_bias": bias, "projection_penalty": projection_penalty}
    with torch.device("meta"):
        model = LanguageModel(10_000, hidden_size, **options)  # type: ignore[arg-type]
    words, layers = 10_000 * hidden_size, 2 * (8 * hidden_size**2 + 8 * hidden_size)
    expected = words * (1 if tied else 2) + layers + 10_000 * bias
    expected += 0 if projection_penalty is None else hidden_size**2 + hidden_size
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize(("hidden_size", "millions"), [(200, 2.65), (650, 13.28), (1250, 37.53), (1500, 51.03)])
def test_tied_networks_have_the_published_size(hidden_size: int, millions: float) -> None:
    with torch.device("meta"):
        model = LanguageModel(10_000, hidden_size, tie_weights=True)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share_masks": True, "input_dropout": 0.3}, "share_masks.*input_dropout=0.3, recurrent_dropout=0.0"),
        (SHARED | {"gate_masks": "untied"}, "share_masks.*'untied'"),
        (SHARED | {"time_masks": "fresh"}, "share_masks.*'fresh'"),
        ({"projection_penalty": -1.0}, "projection_penalty.*-1"),
        ({"augmented_loss": -0.5}, "augmented_loss.*-0.5"),
    ],
)
def test_impossible_arguments_are_named_with_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanguageModel(11, 6, **changes)


# --- one mask of each layer's h ---------------------------------------------------------------------------------------


def test_all_that_reads_the_h_of_a_layer_has_one_mask_of_it(language_model: Build) -> None:
    masks = language_model(num_layers=3, **SHARED).sample_masks(4)
    first, second, third = masks.rnn.layers
    assert masks.words is None
    assert torch.equal(second.input, first.recurrent)
    assert torch.equal(third.input, second.recurrent)
    assert torch.equal(masks.output, third.recurrent[:, 0])
    drawn = [first.input, first.recurrent, second.recurrent, third.recurrent]
    assert not any(torch.equal(one, other) for i, one in enumerate(drawn) for other in drawn[:i])
    for mask in drawn:
        assert mask.shape == (1, 1, 4, 6)
        assert set(mask.unique().tolist()) == {0.0, 1 / (1 - 0.4)}
        assert not torch.equal(mask[0, 0, 0], mask[0, 0, 1])  # sequences have masks of their own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_network_with_shared_masks_is_that_of_a_plain_loop(
    dtype: torch.dtype, language_model: Build, window: tuple[Tensor, Tensor]
) -> None:
    model = language_model(**SHARED).to(dtype)
    masks = model.sample_masks(4)
    z_x, *z_h = (mask[0, 0] for layer in masks.rnn.layers for mask in (layer.input, layer.recurrent))
    z_1, z_2 = z_h[0], z_h[2]
    weights = dict(model.rnn.named_parameters())
    state = [(torch.zeros(4, 6, dtype=dtype), torch.zeros(4, 6, dtype=dtype)) for _ in range(2)]
    expected = []
    for words in window[0]:
        below = model.embedding.weight[words] * z_x
        for layer, z in enumerate((z_1, z_2)):
            h, c = state[layer]
            w_ih, w_hh, b_ih, b_hh = (
                weights[f"{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            i, f, g, o = (below @ w_ih.t() + b_ih + (h * z) @ w_hh.t() + b_hh).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            state[layer] = h, c
            below = h * z
        expected.append(below @ model.softmax.weight.t() + model.softmax.bias)
    logits, _ = model(window[0], masks=masks)
    torch.testing.assert_close(logits, torch.stack(expected))


@pytest.mark.parametrize("training", [True, False])
def test_masks_that_are_not_given_are_drawn_shared(
    training: bool, language_model: Build, window: tuple[Tensor, Tensor]
) -> None:
    model = language_model(**SHARED).train(training)
    with mc_dropout(model):
        torch.manual_seed(3)
        logits, _ = model(window[0])
    torch.manual_seed(3)
    torch.testing.assert_close(logits, model(window[0], masks=model.sample_masks(4))[0], **EXACT)


def test_without_dropout_and_in_evaluation_nothing_is_dropped(
    language_model: Build, window: tuple[Tensor, Tensor]
) -> None:
    model, plain = language_model(**SHARED).eval(), language_model()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(window[0]), plain(window[0]), **EXACT)
    shared = language_model(share_masks=True)
    shared.load_state_dict(model.state_dict())
    torch.testing.assert_close(shared(window[0]), plain(window[0]), **EXACT)


# --- tied weights -----------------------------------------------------------------------------------------------------


def test_the_gradient_of_the_tied_matrix_is_the_sum_of_those_of_its_two_uses(
    language_model: Build, window: tuple[Tensor, Tensor]
) -> None:
    tied, untied = language_model(tie_weights=True), language_model()
    untied.load_state_dict(tied.state_dict())
    for model in (tied, untied):
        model.loss(*window)[0].backward()
    uses = untied.embedding.weight.grad, untied.softmax.weight.grad
    torch.testing.assert_close(tied.embedding.weight.grad, sum(uses), **EXACT)
    torch.testing.assert_close(tied.softmax.bias.grad, untied.softmax.bias.grad, **EXACT)


def test_training_clips_updates_and_decays_the_tied_matrix_once(
    language_model: Build, streams: Any, trainer: Any
) -> None:
    model, data = language_model(tie_weights=True, weight_decay=0.01, learning_rate=0.5), streams()
    before = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    inputs, targets = windows_of(data)[0]
    weights = before | {"softmax.weight": before["embedding.weight"]}
    logits, _ = torch.func.functional_call(model, weights, (inputs,))
    F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").div(4).backward()
    norm = torch.cat([p.grad.flatten() for p in before.values() if p.grad is not None]).norm()
    assert norm > 0.1
    trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0, gradient_clip_val=0.1).fit(model, datamodule=data)
    for name, parameter in model.named_parameters():
        gradient = before[name].grad
        assert gradient is not None
        expected = (before[name].detach() - 0.5 * gradient * 0.1 / (norm + 1e-6)) * 0.99
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-9)


def test_a_checkpoint_has_the_tied_matrix_once_and_comes_back_tied(
    language_model: Build, streams: Any, trainer: Any, tmp_path: Path
) -> None:
    sizes = {}
    for tied in (True, False):
        model = language_model(vocab_size=500, hidden_size=60, tie_weights=tied)
        callback = ModelCheckpoint(tmp_path / str(tied), save_last=True)
        trainer(callback, max_epochs=1).fit(model, datamodule=streams(vocab_size=500))
        sizes[tied] = (tmp_path / str(tied) / "last.ckpt").stat().st_size
        loaded = language_model(vocab_size=500, hidden_size=60, tie_weights=tied)
        trainer(max_epochs=2).fit(
            loaded, datamodule=streams(vocab_size=500), ckpt_path=tmp_path / str(tied) / "last.ckpt"
        )
        assert (loaded.softmax.weight is loaded.embedding.weight) is tied
        assert len(curve_of(loaded)) == 2
    assert sizes[False] - sizes[True] == pytest.approx(500 * 60 * 8, rel=0.05)  # plain SGD keeps nothing more


def test_weights_that_were_not_tied_are_not_tested_as_if_they_were(
    language_model: Build, streams: Any, trainer: Any, tmp_path: Path
) -> None:
    trainer(ModelCheckpoint(tmp_path, save_last=True), max_epochs=1).fit(language_model(), datamodule=streams())
    with pytest.raises(ValueError, match="tie_weights=False"):
        trainer().test(language_model(tie_weights=True), datamodule=streams(), ckpt_path=tmp_path / "last.ckpt")


def test_without_its_bias_the_softmax_layer_is_the_matrix_alone(
    language_model: Build, window: tuple[Tensor, Tensor]
) -> None:
    model = language_model(tie_weights=True, softmax_bias=False).eval()
    hidden, _ = model.rnn(model.embedding(window[0]))
    torch.testing.assert_close(model(window[0])[0], hidden @ model.embedding.weight.t(), **EXACT)
    assert "softmax.bias" not in model.state_dict()


# --- projection -------------------------------------------------------------------------------------------------------


def test_the_projection_comes_before_the_softmax_layer_and_its_penalty_to_the_loss(
    language_model: Build, window: tuple[Tensor, Tensor]
) -> None:
    model = language_model(projection_penalty=1 / (20 * 6.5))
    loss, nll, _ = model.loss(*window)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    hidden, _ = model.rnn(model.embedding(window[0]))
    P, b = model.projection.weight, model.projection.bias  # type: ignore[union-attr]
    logits = (hidden @ P.t() + b) @ model.softmax.weight.t() + model.softmax.bias
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), window[1].flatten(), reduction="sum") / 4
    expected = cross_entropy + 0.5 * sum(p**2 for p in P.flatten()) / (20 * 6.5)
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(nll.sum() / 4, cross_entropy.detach(), **EXACT)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, list(model.parameters())), **EXACT)


# --- the augmented loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("learn_expected", [False, True])
def test_the_augmented_loss_expects_words_that_are_like_the_target_in_the_embedding(
    tied: bool, learn_expected: bool, language_model: Build, window: tuple[Tensor, Tensor]
) -> None:
    model = language_model(augmented_loss=0.65, learn_expected=learn_expected, tie_weights=tied, softmax_bias=not tied)
    loss, nll, _ = model.loss(*window)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    logits = model(window[0])[0].flatten(0, 1)
    targets, matrix = window[1].flatten(), model.embedding.weight
    matrix = matrix if learn_expected else matrix.detach()
    expected = (matrix[targets] @ matrix.t() / 20).softmax(dim=1)
    divergence = (expected * (expected.log() - (logits / 20).log_softmax(dim=1))).sum()
    cross_entropy = F.cross_entropy(logits, targets, reduction="sum")
    by_the_letter = (cross_entropy + 0.65 * 20 * divergence) / 4
    torch.testing.assert_close(loss, by_the_letter, **EXACT)
    torch.testing.assert_close(nll.sum(), cross_entropy.detach(), **EXACT)
    torch.testing.assert_close(gradients, torch.autograd.grad(by_the_letter, list(model.parameters())), **EXACT)


def test_training_perplexity_is_without_what_is_added_to_the_loss(
    language_model: Build, streams: Any, trainer: Any, recorder: Any
) -> None:
    model, data = language_model(augmented_loss=0.65, projection_penalty=0.1, learning_rate=0.0), streams()
    trainer(recorder, max_epochs=1).fit(model, datamodule=data)
    state, nll = None, []
    for inputs, targets in windows_of(data):
        logits, state = model(inputs, state)
        nll.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    assert curve_of(model)[0]["train_ppl"] == pytest.approx(torch.stack(nll).mean().exp().item(), rel=1e-6)
    assert all(loss > 5 * part for loss, part in zip(recorder.losses, nll, strict=True))


# --- all of it --------------------------------------------------------------------------------------------------------


def test_a_run_from_before_there_were_these_options_goes_on_without_them(
    language_model: Build, streams: Any, trainer: Any, tmp_path: Path
) -> None:
    trainer(ModelCheckpoint(tmp_path, save_last=True), max_epochs=1).fit(language_model(), datamodule=streams())
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False)
    for name in (
        "share_masks",
        "tie_weights",
        "softmax_bias",
        "projection_penalty",
        "augmented_loss",
        "learn_expected",
    ):
        del checkpoint["hyper_parameters"][name]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    model = language_model()
    trainer(max_epochs=2).fit(model, datamodule=streams(), ckpt_path=tmp_path / "old.ckpt")
    assert len(curve_of(model)) == 2
    with pytest.raises(ValueError, match=r"augmented_loss: 0\.0 in the checkpoint, 0\.65 here"):
        trainer(max_epochs=2).fit(
            language_model(augmented_loss=0.65), datamodule=streams(), ckpt_path=tmp_path / "old.ckpt"
        )


def test_all_together_are_tested_by_mc_with_masks_that_are_shared(
    language_model: Build, streams: Any, trainer: Any
) -> None:
    model = language_model(**ALL, mc_samples=3)
    drawn = []

    def sample(*arguments: Any, **more: Any) -> Any:
        drawn.append(LanguageModel.sample_masks(model, *arguments, **more))
        return drawn[-1]

    model.sample_masks = sample  # type: ignore[method-assign]
    [metrics] = trainer().test(model, datamodule=streams(), verbose=False)
    [masks] = drawn
    first, second = masks.rnn.layers
    assert torch.equal(second.input, first.recurrent)
    assert metrics["test_ppl_mc"] != metrics["test_ppl"]
