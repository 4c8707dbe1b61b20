"""With masks on, every sequence is a torch.nn network of its own whose weight columns are zeroed and scaled."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from variational_rnn import LayerMasks, RNNMasks, VariationalGRU, VariationalLSTM, VariationalRNN, modules
from variational_rnn.kernels import build

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

LAYERS = {
    "lstm": (VariationalLSTM, nn.LSTM, {}),
    "projected_lstm": (VariationalLSTM, nn.LSTM, {"proj_size": 2}),
    "gru": (VariationalGRU, nn.GRU, {}),
    "rnn_tanh": (VariationalRNN, nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (VariationalRNN, nn.RNN, {"nonlinearity": "relu"}),
}
any_layer = pytest.mark.parametrize("layer", LAYERS)
any_gate_masks = pytest.mark.parametrize("gate_masks", ["tied", "untied"])


def layer_and_plain(layer, *sizes, bias=True, bidirectional=False, **dropout):
    """A layer of ours and an nn.LSTM, GRU or RNN to hold its masked weights."""
    ours, torchs, flags = LAYERS[layer]
    flags = {**flags, "bias": bias, "bidirectional": bidirectional, "dtype": torch.float64}
    return ours(*sizes, **flags, input_dropout=0.4, recurrent_dropout=0.5, **dropout), torchs(*sizes, **flags)


def random(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def random_state(rnn, batch):
    layers = rnn.num_layers * (1 + rnn.bidirectional)
    sizes = [rnn.proj_size or rnn.hidden_size, rnn.hidden_size][: 1 + isinstance(rnn, nn.LSTM)]
    return whole([random(layers, batch, size) for size in sizes])


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def whole(state_parts):
    return tuple(state_parts) if len(state_parts) == 2 else state_parts[0]


def state_of(hx, sequence):
    return whole([part[:, sequence] for part in parts(hx)])


def together(states):
    return whole([torch.stack(rows, dim=1) for rows in zip(*map(parts, states), strict=True)])


def masked_weights(rnn, masks, sequence, step=0):
    """The weights one sequence sees: every gate's columns times its mask."""
    weights = dict(rnn.named_parameters())
    names = [f"l{layer}{end}" for layer in range(rnn.num_layers) for end in ("", "_reverse")[: 1 + rnn.bidirectional]]
    for name, layer in zip(names, masks.layers, strict=True):
        for kind, mask in (("ih", layer.input), ("hh", layer.recurrent)):
            weight = weights[f"weight_{kind}_{name}"]
            columns_GF = mask[step, :, sequence]
            weights[f"weight_{kind}_{name}"] = weight * columns_GF.repeat_interleave(len(weight) // len(columns_GF), 0)
    return weights


def gradients(rnn, inputs, outputs, state):
    loss = sum(part.square().sum() for part in [*outputs, *parts(state)])
    return torch.autograd.grad(loss, [*inputs, *rnn.parameters()])


@settings(max_examples=150)
@given(
    layer=st.sampled_from(list(LAYERS)),
    gate_masks=st.sampled_from(["tied", "untied"]),
    num_layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    packed=st.booleans(),
    backend=st.sampled_from(["auto", "reference"]),
)
def test_masks_are_masked_weight_columns_of_every_sequence(
    layer, gate_masks, num_layers, bidirectional, bias, lengths, packed, backend
):
    torch.manual_seed(0)
    dropout = {"gate_masks": gate_masks, "backend": backend}
    rnn, plain = layer_and_plain(layer, 3, 4, num_layers, bias=bias, bidirectional=bidirectional, **dropout)
    masks, hx = rnn.sample_masks(len(lengths)), random_state(rnn, len(lengths))
    sequences = [random(length if packed else lengths[0], 3) for length in lengths]
    leaves = [*sequences, *parts(hx)]

    if packed:
        output, state = rnn(pack_sequence(sequences, enforce_sorted=False), hx, masks)
        outputs = unpack_sequence(output)
    else:
        output, state = rnn(torch.stack(sequences, dim=1), hx, masks)
        outputs = list(output.unbind(1))

    expected, states = zip(
        *(
            functional_call(plain, masked_weights(rnn, masks, b), (x, state_of(hx, b)))
            for b, x in enumerate(sequences)
        ),
        strict=True,
    )  # fmt: skip
    expected_state = together(states)
    torch.testing.assert_close(outputs, list(expected))
    torch.testing.assert_close(state, expected_state)
    torch.testing.assert_close(gradients(rnn, leaves, outputs, state), gradients(rnn, leaves, expected, expected_state))


@any_layer
@any_gate_masks
def test_fresh_masks_are_other_weight_columns_at_every_step(layer, gate_masks):
    steps, batch = 5, 2
    rnn, plain = layer_and_plain(layer, 3, 4, 2, gate_masks=gate_masks, time_masks="fresh")
    masks = rnn.sample_masks(batch, steps)
    x, hx = random(steps, batch, 3), random_state(rnn, batch)

    expected, states = [], []
    for b in range(batch):
        state = state_of(hx, b)
        for t in range(steps):
            output, state = functional_call(plain, masked_weights(rnn, masks, b, t), (x[t, b : b + 1], state))
            expected.append(output.squeeze(0))
        states.append(state)

    output, state = rnn(x, hx, masks)
    outputs = list(output.transpose(0, 1).flatten(0, 1))
    leaves = [x, *parts(hx)]
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(state, together(states))
    torch.testing.assert_close(
        gradients(rnn, leaves, outputs, state), gradients(rnn, leaves, expected, together(states))
    )


@any_layer
def test_the_reverse_direction_takes_the_fresh_mask_of_the_time_step_it_reads(layer):
    both, one = layer_and_plain(layer, 3, 4, bidirectional=True, time_masks="fresh")[0], layer_and_plain(layer, 3, 4)[0]
    one.load_state_dict(
        {name.removesuffix("_reverse"): weight for name, weight in both.state_dict().items() if "reverse" in name}
    )
    x, masks = random(5, 2, 3), both.sample_masks(2, 5)
    flipped = LayerMasks(*(None if mask is None else mask.flip(0) for mask in masks.layers[1]))
    expected, _ = one(x.flip(0), masks=RNNMasks((flipped,)))
    torch.testing.assert_close(both(x, masks=masks)[0].chunk(2, -1)[1], expected.flip(0))


@any_layer
def test_untied_with_equal_gate_masks_is_tied(layer):
    rnn, _ = layer_and_plain(layer, 3, 4, 2, bidirectional=True)
    tied = rnn.sample_masks(2)
    gates = len(rnn.weight_ih_l0) // 4
    untied = RNNMasks(
        tuple(LayerMasks(*(mask.repeat(1, gates, 1, 1) for mask in (one.input, one.recurrent))) for one in tied.layers)
    )
    x = random(5, 2, 3)
    torch.testing.assert_close(rnn(x, masks=untied), rnn(x, masks=tied))


@any_layer
@pytest.mark.parametrize("time_masks", ["constant", "fresh"])
def test_batch_first_and_an_unbatched_sequence_use_the_same_masks(layer, time_masks):
    rnn, _ = layer_and_plain(layer, 3, 4, 2, time_masks=time_masks)
    x, masks = random(5, 2, 3), rnn.sample_masks(2, 5)
    output, state = rnn(x, masks=masks)
    of_first = masks.select(torch.tensor([0]))
    torch.testing.assert_close(rnn(x[:, 0], masks=of_first), (output[:, 0], state_of(state, 0)))
    rnn.batch_first = True
    torch.testing.assert_close(rnn(x.transpose(0, 1), masks=masks), (output.transpose(0, 1), state))
    torch.testing.assert_close(rnn(x[:, 0], masks=of_first), (output[:, 0], state_of(state, 0)))


@pytest.mark.parametrize("dropout", [{}, {"memory_dropout": 0.5}], ids=["columns", "columns and memory cells"])
@pytest.mark.parametrize("scheme", [{}, {"mask_sharing": "batch"}, {"time_masks": "fresh", "gate_masks": "untied"}])
def test_selected_masks_are_those_of_the_selected_sequences(dropout, scheme):
    lstm, _ = layer_and_plain("projected_lstm", 3, 4, 2, bidirectional=True, **dropout, **scheme)
    x, masks, chosen = random(5, 4, 3), lstm.sample_masks(4, 5), torch.tensor([3, 0, 3])
    output, state = lstm(x, masks=masks)
    expected = output[:, chosen], tuple(part[:, chosen] for part in state)
    torch.testing.assert_close(lstm(x[:, chosen], masks=masks.select(chosen)), expected)


def lstm_by_hand(lstm, x, hx, masks, b):
    """One sequence through one layer, gate by gate: (h, c) after each step; memory masks multiply o*tanh(c)."""
    columns = dict(zip(("weight_ih", "weight_hh"), (masks.input[0, :, b], masks.recurrent[0, :, b]), strict=True))
    kept, (h, c) = masks.memory[b] != 0, (part[0, b] for part in hx)
    c = c * kept
    history = []
    for x_t in x[:, b]:
        products = [
            getattr(lstm, f"{name}_l0").chunk(4)[gate] @ (columns[name].expand(4, -1)[gate] * vector)
            for gate in range(4)
            for name, vector in (("weight_ih", x_t), ("weight_hh", h))
        ]
        biases = (lstm.bias_ih_l0 + lstm.bias_hh_l0).chunk(4)
        i, f, g, o = (products[2 * gate] + products[2 * gate + 1] + biases[gate] for gate in range(4))
        c = (f.sigmoid() * c + i.sigmoid() * g.tanh()) * kept
        h = lstm.weight_hr_l0 @ (masks.memory[b] * o.sigmoid() * c.tanh())
        history.append((h, c))
    return history


@any_gate_masks
def test_a_projection_reads_the_masked_memory_cells(gate_masks):
    lstm, _ = layer_and_plain("projected_lstm", 3, 4, gate_masks=gate_masks, memory_dropout=0.5)
    x, hx, masks = random(5, 3, 3), random_state(lstm, 3), lstm.sample_masks(3)
    output, (h_n, c_n) = lstm(x, hx, masks)
    by_hand = [lstm_by_hand(lstm, x, hx, masks.layers[0], b) for b in range(3)]
    torch.testing.assert_close(output, torch.stack([torch.stack([h for h, _ in steps]) for steps in by_hand], dim=1))
    torch.testing.assert_close(h_n[0], torch.stack([steps[-1][0] for steps in by_hand]))
    torch.testing.assert_close(c_n[0], torch.stack([steps[-1][1] for steps in by_hand]))


@any_layer
@pytest.mark.parametrize("mask_sharing", ["sequence", "batch"])
def test_under_autocast_it_computes_the_same_in_lower_precision(layer, mask_sharing):
    rnn = layer_and_plain(layer, 3, 4, 2, mask_sharing=mask_sharing)[0].float()
    x, masks = torch.randn(5, 2, 3), rnn.sample_masks(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, state = rnn(x[:3], masks=masks)
        second, _ = rnn(x[3:], state, masks)
    output, (expected, _) = torch.cat([first, second]), rnn(x, masks=masks)
    torch.testing.assert_close(output, expected, rtol=0.05, atol=0.05, check_dtype=False)
    if build.extension() is None or build.extension().vrnn_has_bf16():  # else the fast backend stays in float32
        assert not torch.equal(output.float(), expected)


@pytest.mark.parametrize("with_state", [False, True])
def test_without_dropout_an_lstm_computes_under_autocast_where_torchs_refuses_to(monkeypatch, with_state):
    monkeypatch.setattr(modules, "CPU_HAS_BF16", False)
    rnn = VariationalLSTM(3, 4, num_layers=2, recurrent_dropout=0.3).eval()
    x, hx = torch.randn(5, 2, 3), (torch.randn(2, 2, 4), torch.randn(2, 2, 4)) if with_state else None
    monkeypatch.setattr(torch.nn.LSTM, "forward", None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = rnn(x, hx)
    monkeypatch.undo()
    torch.testing.assert_close(output, rnn(x, hx)[0], rtol=0.05, atol=0.05, check_dtype=False)


def as_a_function(rnn, batch, steps):
    """The layer under one draw of masks as a function of x, the state and every parameter, and these arguments."""
    masks, hx = rnn.sample_masks(batch, steps), random_state(rnn, batch)
    names, parameters = zip(*rnn.named_parameters(), strict=True)
    states = len(parts(hx))

    def call(x, *rest):
        weights = dict(zip(names, rest[states:], strict=True))
        output, final = functional_call(rnn, weights, (x, whole(rest[:states]), masks))
        return output, *parts(final)

    return call, (random(steps, batch, rnn.input_size), *parts(hx), *parameters)


@any_layer
@any_gate_masks
@pytest.mark.parametrize("time_masks", ["constant", "fresh"])
def test_gradcheck_with_masks_on(layer, gate_masks, time_masks):
    rnn, _ = layer_and_plain(layer, 2, 3, gate_masks=gate_masks, time_masks=time_masks)
    assert torch.autograd.gradcheck(*as_a_function(rnn, batch=2, steps=3))


@any_layer
@any_gate_masks
@pytest.mark.parametrize("mask_sharing", ["sequence", "batch"])
def test_gradgradcheck_with_masks_on(layer, gate_masks, mask_sharing):
    rnn, _ = layer_and_plain(layer, 2, 3, gate_masks=gate_masks, mask_sharing=mask_sharing)
    assert torch.autograd.gradgradcheck(*as_a_function(rnn, batch=2, steps=2))
