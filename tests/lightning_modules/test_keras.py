"""The recurrent layers of Keras 0.1.2: what they compute is the equations of protocol 2.2, written out here."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules.keras import KerasGRU, KerasLSTM
from variational_rnn import LayerMasks, RNNMasks, VariationalGRU, VariationalLSTM, functional, mc_dropout
from variational_rnn.kernels import build

T, B, H, INPUTS = 6, 4, 3, 5
DROPOUT = {"input_dropout": 0.4, "recurrent_dropout": 0.3}
MODERN_LSTM = {"gate_activation": "sigmoid", "dropout_scale": "training"}
MODERN_GRU = MODERN_LSTM | {"candidate_activation": "tanh", "reset_gate": "after"}

any_layer = pytest.mark.parametrize("layer", [KerasLSTM, KerasGRU])
any_masks = pytest.mark.parametrize("time_masks", ["constant", "fresh"])
any_gates = pytest.mark.parametrize("gate_masks", ["tied", "untied"])

Factor = Callable[[Tensor, int, int], Tensor]
"""What a step and a gate read of x or h, which is [B, features]."""


def hard_sigmoid(x: Tensor) -> Tensor:
    return (0.2 * x + 0.5).clip(0, 1)


def gates_of(layer: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """W, U and b of each gate, in torch's order: i, f, g, o of an LSTM; r, z, n of a GRU."""
    weight_ih, weight_hh, bias, _ = layer.all_weights[0]
    return tuple(list(parameter.split(layer.hidden_size)) for parameter in (weight_ih, weight_hh, bias))  # type: ignore[return-value]


def plain_lstm(layer: KerasLSTM, x: Tensor, of_x: Factor, of_h: Factor, gate: Any = hard_sigmoid) -> tuple[Tensor, ...]:
    """Outputs [T, B, H], and the last h and c."""
    W, U, b = gates_of(layer)
    h = c = torch.zeros(x.size(1), layer.hidden_size, dtype=x.dtype)
    outputs = []
    for t, x_t in enumerate(x):
        i, f, g, o = (of_x(x_t, t, a) @ W[a].T + of_h(h, t, a) @ U[a].T + b[a] for a in range(4))
        c = gate(f) * c + gate(i) * torch.tanh(g)
        h = gate(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs), h[None], c[None]


def plain_gru(layer: KerasGRU, x: Tensor, of_x: Factor, of_h: Factor, gate: Any = hard_sigmoid) -> tuple[Tensor, ...]:
    """Outputs [T, B, H], and the last h."""
    W, U, b = gates_of(layer)
    activation = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}[layer.candidate_activation]
    h = torch.zeros(x.size(1), layer.hidden_size, dtype=x.dtype)
    outputs = []
    for t, x_t in enumerate(x):
        r, z = (gate(of_x(x_t, t, a) @ W[a].T + of_h(h, t, a) @ U[a].T + b[a]) for a in range(2))
        recurrent = r * (of_h(h, t, 2) @ U[2].T) if layer.reset_gate == "after" else of_h(r * h, t, 2) @ U[2].T
        candidate = activation(of_x(x_t, t, 2) @ W[2].T + recurrent + b[2])
        h = z * h + (1 - z) * candidate
        outputs.append(h)
    return torch.stack(outputs), h[None]


def plain(layer: Any, *arguments: Any) -> tuple[Tensor, ...]:
    return (plain_lstm if isinstance(layer, KerasLSTM) else plain_gru)(layer, *arguments)


def times(factor: float) -> Factor:
    return lambda value, t, gate: factor * value


def kept(mask: Tensor | None, scale: float = 1.0) -> Factor:
    """Multiplies by 0 or scale."""
    if mask is None:
        return times(1.0)
    assert mask.dim() == 4
    return lambda value, t, gate: value * scale * (mask[t % len(mask), gate % mask.size(1)] != 0)


def double(layer: Any, **options: Any) -> Any:
    """A layer in double precision with weights so large that some gates are saturated and some are not."""
    built = layer(INPUTS, H, **options).double()
    for parameter in built.parameters():
        if parameter.requires_grad:
            torch.nn.init.uniform_(parameter, -2, 2)
    return built


def inputs() -> Tensor:
    return torch.randn(T, B, INPUTS, dtype=torch.float64, requires_grad=True)


def flat(result: tuple[Tensor, Any]) -> tuple[Tensor, ...]:
    output, state = result
    return (output, *state) if isinstance(state, tuple) else (output, state)


def assert_same(layer: Any, x: Tensor, results: tuple[Tensor, ...], expected: tuple[Tensor, ...], **close: Any) -> None:
    """The same outputs and states, and the same gradients of x and of all parameters."""
    torch.testing.assert_close(results, expected, **close)
    leaves = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    weights = [torch.randn_like(part) for part in results]
    gradients = [
        torch.autograd.grad(sum((w * part).sum() for w, part in zip(weights, parts, strict=True)), leaves)
        for parts in (results, expected)
    ]
    assert all(gradient.any() for gradient in gradients[0])
    torch.testing.assert_close(*gradients, **close)


# --- the equations ----------------------------------------------------------------------------------------------------


@any_layer
@any_masks
@any_gates
@pytest.mark.parametrize(
    "dropped", [("input_dropout",), ("recurrent_dropout",), ("input_dropout", "recurrent_dropout")]
)
def test_training_is_the_equations_with_masks_of_0_and_1(
    layer: Any, time_masks: str, gate_masks: str, dropped: tuple[str, ...]
) -> None:
    rnn = double(layer, time_masks=time_masks, gate_masks=gate_masks, **{name: DROPOUT[name] for name in dropped})
    x, masks = inputs(), rnn.sample_masks(B, T)
    [given] = masks.layers
    for mask, name in ((given.input, "input_dropout"), (given.recurrent, "recurrent_dropout")):
        if name in dropped:
            gates = 1 if gate_masks == "tied" else 4 if layer is KerasLSTM else 3
            assert mask.shape[:3] == (1 if time_masks == "constant" else T, gates, B)
            assert (mask == 0).any()
            assert (mask != 0).any()
    assert_same(rnn, x, flat(rnn(x, masks=masks)), plain(rnn, x, kept(given.input), kept(given.recurrent)))


@any_layer
@any_masks
@any_gates
def test_evaluation_is_the_equations_times_the_probability_to_keep(
    layer: Any, time_masks: str, gate_masks: str
) -> None:
    rnn, x = double(layer, time_masks=time_masks, gate_masks=gate_masks, **DROPOUT).eval(), inputs()
    assert_same(rnn, x, flat(rnn(x)), plain(rnn, x, times(0.6), times(0.7)))


@any_layer
def test_without_dropout_training_and_evaluation_are_the_plain_equations(layer: Any) -> None:
    rnn, x = double(layer), inputs()
    for mode in (True, False):
        assert_same(rnn, x, flat(rnn.train(mode)(x)), plain(rnn, x, times(1.0), times(1.0)))


@pytest.mark.parametrize("candidate_activation", ["sigmoid", "tanh"])
@pytest.mark.parametrize("reset_gate", ["before", "after"])
@pytest.mark.parametrize("gate_activation", ["hard_sigmoid", "sigmoid"])
@any_gates
def test_every_form_of_the_gru_is_its_equations(
    candidate_activation: str, reset_gate: str, gate_activation: str, gate_masks: str
) -> None:
    rnn = double(
        KerasGRU,
        candidate_activation=candidate_activation,
        reset_gate=reset_gate,
        gate_activation=gate_activation,
        gate_masks=gate_masks,
        **DROPOUT,
    )
    x, masks = inputs(), rnn.sample_masks(B)
    gate = hard_sigmoid if gate_activation == "hard_sigmoid" else torch.sigmoid
    expected = plain_gru(rnn, x, kept(masks.layers[0].input), kept(masks.layers[0].recurrent), gate)
    assert_same(rnn, x, flat(rnn(x, masks=masks)), expected)


def test_the_lstm_may_have_logistic_gates() -> None:
    rnn, x = double(KerasLSTM, gate_activation="sigmoid", **DROPOUT), inputs()
    masks = rnn.sample_masks(B)
    expected = plain_lstm(rnn, x, kept(masks.layers[0].input), kept(masks.layers[0].recurrent), torch.sigmoid)
    assert_same(rnn, x, flat(rnn(x, masks=masks)), expected)


@any_layer
def test_by_default_a_layer_is_that_of_2015(layer: Any) -> None:
    rnn = layer(INPUTS, H)
    assert (rnn.gate_activation, rnn.dropout_scale) == ("hard_sigmoid", "test")
    if layer is KerasGRU:
        assert (rnn.candidate_activation, rnn.reset_gate) == ("sigmoid", "before")


@any_layer
@pytest.mark.parametrize("given", ["input", "recurrent"])
def test_a_mask_may_be_given_for_the_inputs_or_the_recurrent_connections_alone(layer: Any, given: str) -> None:
    rnn, x = double(layer, **DROPOUT), inputs()
    [sampled] = rnn.sample_masks(B).layers
    masks = LayerMasks(**{given: getattr(sampled, given)})
    scales = [kept(masks.input) if masks.input is not None else times(0.6)]
    scales += [kept(masks.recurrent) if masks.recurrent is not None else times(0.7)]
    assert_same(rnn, x, flat(rnn(x, masks=RNNMasks((masks,)))), plain(rnn, x, *scales))


# --- switched off, they are the library's layers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "options", "modern"),
    [(KerasLSTM, MODERN_LSTM, VariationalLSTM), (KerasGRU, MODERN_GRU, VariationalGRU)],
)
@any_masks
@any_gates
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_with_every_oddity_off_a_layer_is_the_librarys(
    layer: Any, options: dict[str, Any], modern: Any, time_masks: str, gate_masks: str, precision: Any, training: bool
) -> None:
    dropout = {"time_masks": time_masks, "gate_masks": gate_masks, **DROPOUT}
    rnn = double(layer, **options, **dropout).to(precision)
    library = modern(INPUTS, H, dtype=precision, **dropout)
    library.load_state_dict(rnn.state_dict())
    x = inputs().detach().to(precision).requires_grad_()
    masks = rnn.sample_masks(B, T) if training else None
    results, expected = (flat(network.train(training)(x, masks=masks)) for network in (rnn, library))
    close = {} if precision == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(results, expected, **close)
    gradients = []
    for network, parts in ((rnn, results), (library, expected)):
        leaves = [x, network.weight_ih_l0, network.weight_hh_l0, network.bias_ih_l0]
        gradients.append(torch.autograd.grad(sum(part.square().sum() for part in parts), leaves))
    torch.testing.assert_close(*gradients, **close)


@pytest.mark.parametrize("changed", [{"gate_activation": "hard_sigmoid"}, {"dropout_scale": "test"}])
@any_layer
def test_each_oddity_alone_changes_what_is_computed(layer: Any, changed: dict[str, Any]) -> None:
    modern = MODERN_LSTM if layer is KerasLSTM else MODERN_GRU
    rnn, x = double(layer, **modern, **DROPOUT), inputs()
    odd = layer(INPUTS, H, **modern | changed, **DROPOUT).double()
    odd.load_state_dict(rnn.state_dict())
    assert (rnn.eval()(x)[0] - odd.eval()(x)[0]).abs().max() > 0.01


# --- dropout ----------------------------------------------------------------------------------------------------------


@any_layer
@any_masks
@any_gates
def test_scaling_in_the_test_is_inverted_dropout_on_weights_as_much_smaller(
    layer: Any, time_masks: str, gate_masks: str
) -> None:
    dropout = {"time_masks": time_masks, "gate_masks": gate_masks, **DROPOUT}
    as_in_2015, x = double(layer, dropout_scale="test", **dropout), inputs()
    inverted = layer(INPUTS, H, dropout_scale="training", **dropout).double()
    inverted.load_state_dict(as_in_2015.state_dict())
    with torch.no_grad():
        inverted.weight_ih_l0 *= 1 - DROPOUT["input_dropout"]
        inverted.weight_hh_l0 *= 1 - DROPOUT["recurrent_dropout"]
    masks = as_in_2015.sample_masks(B, T)
    torch.testing.assert_close(as_in_2015(x, masks=masks), inverted(x, masks=masks))
    torch.testing.assert_close(as_in_2015.eval()(x), inverted.eval()(x))


@any_layer
def test_scaling_in_training_multiplies_by_0_or_1_over_the_probability_to_keep(layer: Any) -> None:
    rnn, x = double(layer, dropout_scale="training", gate_masks="untied", **DROPOUT), inputs()
    masks = rnn.sample_masks(B)
    [given] = masks.layers
    expected = plain(rnn, x, kept(given.input, 1 / 0.6), kept(given.recurrent, 1 / 0.7))
    assert_same(rnn, x, flat(rnn(x, masks=masks)), expected)
    assert_same(rnn, x, flat(rnn.eval()(x)), plain(rnn, x, times(1.0), times(1.0)))


@any_layer
@any_masks
@any_gates
def test_masks_are_drawn_in_training_and_inside_mc_dropout_and_nowhere_else(
    layer: Any, time_masks: str, gate_masks: str
) -> None:
    rnn, x = double(layer, time_masks=time_masks, gate_masks=gate_masks, **DROPOUT), inputs()

    def draw() -> Tensor:
        torch.manual_seed(1)
        return rnn(x)[0]

    in_training = draw()
    assert not torch.equal(rnn(x)[0], in_training)
    torch.manual_seed(1)
    torch.testing.assert_close(rnn(x, masks=rnn.sample_masks(B, T))[0], in_training, rtol=0, atol=0)
    rnn.eval()
    assert torch.equal(rnn(x)[0], rnn(x)[0])
    with mc_dropout(rnn):
        assert not torch.equal(rnn(x)[0], rnn(x)[0])
        torch.testing.assert_close(draw(), in_training, rtol=0, atol=0)
    torch.testing.assert_close(rnn(x)[0], plain(rnn, x, times(0.6), times(0.7))[0])


@any_layer
def test_every_sequence_has_masks_of_its_own(layer: Any) -> None:
    same = torch.randn(T, 1, INPUTS, dtype=torch.float64).expand(T, 8, INPUTS)
    assert len(double(layer, **DROPOUT)(same)[0][-1].unique(dim=0)) == 8


@any_layer
def test_wrong_input_masks_and_choices_are_refused(layer: Any) -> None:
    rnn = layer(INPUTS, H, **DROPOUT)
    with pytest.raises(ValueError, match=rf"expected input \[T, B, {INPUTS}\], got \[{T}, {B}, {INPUTS + 2}\]"):
        rnn(torch.randn(T, B, INPUTS + 2))
    with pytest.raises(ValueError, match="input mask of l0 has shape"):
        rnn(torch.randn(T, B, INPUTS), masks=rnn.sample_masks(B + 1))
    with pytest.raises(ValueError, match="starts from zeros"):
        rnn(torch.randn(T, B, INPUTS), torch.zeros(1, B, H))
    for choice in ("gate_activation", "dropout_scale", *(("candidate_activation", "reset_gate") * (layer is KerasGRU))):
        with pytest.raises(ValueError, match=f"{choice} must be one of .* got 'odd'"):
            layer(INPUTS, H, **{choice: "odd"})


# --- parameters -------------------------------------------------------------------------------------------------------


@any_layer
def test_the_second_bias_is_zero_and_stays_so(layer: Any) -> None:
    rnn = layer(INPUTS, H, **DROPOUT)
    [[weight_ih, weight_hh, bias_ih, bias_hh]] = rnn.all_weights
    optimizer = torch.optim.AdamW(rnn.parameters(), lr=0.1, weight_decay=0.1)
    before = [parameter.detach().clone() for parameter in (weight_ih, weight_hh, bias_ih)]
    for _ in range(2):
        optimizer.zero_grad()
        rnn(torch.randn(T, B, INPUTS))[0].sum().backward()
        optimizer.step()
    assert not bias_hh.any()
    assert not bias_hh.requires_grad
    assert not any(torch.equal(*pair) for pair in zip(before, (weight_ih, weight_hh, bias_ih), strict=True))


def test_parameters_are_called_as_torchs() -> None:
    for layer, torchs in ((KerasLSTM, torch.nn.LSTM), (KerasGRU, torch.nn.GRU)):
        assert layer(INPUTS, H).state_dict().keys() == torchs(INPUTS, H).state_dict().keys()
        assert isinstance(layer(INPUTS, H), torchs)


# --- hard gates -------------------------------------------------------------------------------------------------------


def test_a_hard_gate_is_closed_below_minus_two_and_a_half_and_open_above_and_has_no_gradient_there() -> None:
    x = torch.tensor([-9.0, -2.51, -2.49, -1.0, 0.0, 1.0, 2.49, 2.51, 9.0], dtype=torch.float64, requires_grad=True)
    y = functional.hard_sigmoid(x)
    torch.testing.assert_close(y, torch.tensor([0, 0, 0.002, 0.3, 0.5, 0.7, 0.998, 1, 1], dtype=torch.float64))
    [slope] = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, torch.tensor([0, 0, 1, 1, 1, 1, 1, 0, 0], dtype=torch.float64) / 5)


@any_layer
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize(("bias", "has_gradient"), [(2.4, True), (2.6, False)])
def test_a_saturated_gate_gives_its_parameters_no_gradient(
    layer: Any, backend: str, side: int, bias: float, has_gradient: bool
) -> None:
    rnn = layer(INPUTS, H, backend=backend)
    gates, candidate = (4, 2) if layer is KerasLSTM else (3, 2)
    blocks = [parameter.view(gates, H, -1) for parameter in (rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0)]
    with torch.no_grad():
        for block in blocks:
            block.uniform_(-1e-3, 1e-3)
        blocks[2] += side * bias
        blocks[2][candidate] = 0.5
    rnn(torch.randn(T, B, INPUTS))[0].sum().backward()
    for parameter in (rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0):
        for gate, gradient in enumerate(parameter.grad.view(gates, H, -1)):
            if gate != candidate:
                assert bool(gradient.any()) == has_gradient


# --- speed and precision ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(build.extension() is None, reason="the CPU kernels cannot be built here")
@pytest.mark.parametrize("gate_activation", ["hard_sigmoid", "sigmoid"])
@any_masks
@any_gates
def test_the_lstm_runs_on_the_fast_backend_in_training_and_evaluation_and_equals_the_reference(
    gate_activation: str, time_masks: str, gate_masks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"gate_activation": gate_activation, "time_masks": time_masks, "gate_masks": gate_masks, **DROPOUT}
    fast, reference = (KerasLSTM(13, 21, backend=backend, **options) for backend in ("auto", "reference"))
    reference.load_state_dict(fast.state_dict())
    x = (3 * torch.randn(T, B, 13)).requires_grad_()
    masks = fast.sample_masks(B, T)
    of_reference = [flat(reference(x, masks=masks)), flat(reference.eval()(x))]

    def unroll(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the reference ran")

    monkeypatch.setattr(functional, "unroll", unroll)
    for results, expected in zip([flat(fast(x, masks=masks)), flat(fast.eval()(x))], of_reference, strict=True):
        gradients = [
            torch.autograd.grad(sum(part.square().sum() for part in parts), [x, *list(rnn.parameters())[:3]])
            for rnn, parts in ((fast, results), (reference, expected))
        ]
        torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@any_layer
def test_under_autocast_the_state_stays_in_float32(layer: Any) -> None:
    rnn, x = layer(INPUTS, H, **DROPOUT), torch.randn(T, B, INPUTS)
    masks = rnn.sample_masks(B)
    expected = rnn(x, masks=masks)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = rnn(x, masks=masks)[0]
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, expected, rtol=0, atol=0.02)
