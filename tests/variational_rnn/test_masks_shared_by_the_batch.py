"""Masks that all sequences share: one sample of the weights for the batch, computed by torch's own kernel."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

from variational_rnn import LayerMasks, RNNMasks, VariationalGRU, VariationalLSTM, VariationalRNN, mc_dropout

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
X = torch.linspace(-2, 2, 45).view(5, 3, 3).sin()


def layer_of(layer, *sizes, mask_sharing="batch", **kwargs):
    ours, _, flags = LAYERS[layer]
    dropout = {"input_dropout": 0.4, "recurrent_dropout": 0.5, "mask_sharing": mask_sharing}
    return ours(*sizes, **{**dropout, **flags, **kwargs})


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def random_state(rnn, *batch):
    layers = rnn.num_layers * (1 + rnn.bidirectional)
    sizes = [rnn.proj_size or rnn.hidden_size, rnn.hidden_size][: 1 + isinstance(rnn, nn.LSTM)]
    state = [torch.randn(layers, *batch, size, dtype=rnn.weight_ih_l0.dtype, requires_grad=True) for size in sizes]
    return tuple(state) if len(state) == 2 else state[0]


def all_masks(masks):
    return [mask for layer in masks.layers for mask in layer if mask is not None]


def masked_weights(rnn, masks):
    """Every gate's columns times the mask that the batch shares."""
    weights = dict(rnn.named_parameters())
    names = [f"l{layer}{end}" for layer in range(rnn.num_layers) for end in ("", "_reverse")[: 1 + rnn.bidirectional]]
    for name, layer in zip(names, masks.layers, strict=True):
        for kind, mask in (("ih", layer.input), ("hh", layer.recurrent)):
            weight = weights[f"weight_{kind}_{name}"]
            rows = len(weight) // mask.size(1)
            weights[f"weight_{kind}_{name}"] = weight * mask[0, :, 0].repeat_interleave(rows, 0)
    return weights


def result(output, state, leaves):
    """Outputs and states, and their gradients with respect to the leaves."""
    outputs = [output] if isinstance(output, torch.Tensor) else list(output)  # packed: data and the order of sequences
    loss = sum(part.square().sum() for part in [outputs[0], *parts(state)])
    return outputs, list(parts(state)), torch.autograd.grad(loss, leaves)


def forbid_the_step_loop(monkeypatch):
    def unroll(*args, **kwargs):
        raise AssertionError("steps ran one by one")

    monkeypatch.setattr("variational_rnn.functional.unroll", unroll)
    monkeypatch.setattr("variational_rnn.kernels.cpu.unroll", unroll)


@settings(max_examples=250)
@given(
    layer=st.sampled_from(list(LAYERS)),
    gate_masks=st.sampled_from(["tied", "untied"]),
    num_layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    batch_first=st.booleans(),
    form=st.sampled_from(["padded", "packed", "packed in order of length", "unbatched"]),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    state_given=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_it_is_the_reference_and_is_torchs_layer_with_masked_weights(
    layer, gate_masks, num_layers, bidirectional, bias, batch_first, form, lengths, state_given, dtype
):
    torch.manual_seed(0)
    flags = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional, "dtype": dtype}
    rnn = layer_of(layer, 3, 4, num_layers, gate_masks=gate_masks, **flags)
    reference = layer_of(layer, 3, 4, num_layers, gate_masks=gate_masks, **flags, backend="reference")
    reference.load_state_dict(rnn.state_dict())
    _, torchs, variant = LAYERS[layer]
    plain = torchs(3, 4, num_layers, **variant, **flags)

    batch, steps = ([] if form == "unbatched" else [len(lengths)]), [max(lengths)]
    x = torch.randn(*(batch + steps if batch_first else steps + batch), 3, dtype=dtype, requires_grad=True)

    def input():
        if not form.startswith("packed"):
            return x
        in_order = form != "packed"
        of_sequences = sorted(lengths, reverse=True) if in_order else lengths
        return pack_padded_sequence(x, of_sequences, batch_first, enforce_sorted=in_order)

    hx = random_state(rnn, *batch) if state_given else None

    masks = rnn.sample_masks(len(lengths))
    for mask in all_masks(masks):
        mask.requires_grad_()
    inputs = [x, *(parts(hx) if state_given else ()), *all_masks(masks)]

    shared = rnn(input(), hx, masks)
    of_torch = functional_call(plain, masked_weights(rnn, masks), (input(), hx))
    torch.testing.assert_close(shared, of_torch, rtol=0, atol=0)  # the same kernel on the same weights
    got = result(*shared, [*inputs, *rnn.parameters()])
    of_reference = result(*reference(input(), hx, masks), [*inputs, *reference.parameters()])
    of_torch = result(*of_torch, [*inputs, *rnn.parameters()])
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(got, of_reference, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(got, of_torch, rtol=tolerance, atol=tolerance)


@any_layer
@any_gate_masks
@pytest.mark.parametrize("time_masks", ["constant", "fresh"])
def test_one_row_of_masks_is_drawn_for_all_sequences(layer, gate_masks, time_masks):
    rnn = layer_of(layer, 3, 4, 2, bidirectional=True, gate_masks=gate_masks, time_masks=time_masks)
    gates = len(rnn.weight_ih_l0) // 4 if gate_masks == "untied" else 1
    steps = 7 if time_masks == "fresh" else 1
    size = rnn.proj_size or 4
    layers = rnn.sample_masks(5, 7).layers
    assert [tuple(one.input.shape) for one in layers] == [
        (steps, gates, 1, width) for width in (3, 3, 2 * size, 2 * size)
    ]
    assert [tuple(one.recurrent.shape) for one in layers] == [(steps, gates, 1, size)] * 4


def test_one_row_of_memory_masks_is_drawn_for_all_sequences():
    assert layer_of("projected_lstm", 3, 4, memory_dropout=0.5).sample_masks(5).layers[0].memory.shape == (1, 4)


@any_layer
@any_gate_masks
def test_torchs_kernel_computes_it(monkeypatch, layer, gate_masks):
    forbid_the_step_loop(monkeypatch)
    rnn = layer_of(layer, 3, 4, 2, bidirectional=True, gate_masks=gate_masks)
    rnn(torch.randn(5, 3, 3))
    rnn(torch.randn(5, 3))
    rnn(pack_padded_sequence(torch.randn(5, 3, 3), [2, 5, 1], enforce_sorted=False))
    with mc_dropout(rnn.eval()):
        rnn(torch.randn(5, 3, 3))


@any_layer
def test_torchs_kernel_computes_masks_of_one_sequence_given_for_all(monkeypatch, layer):
    forbid_the_step_loop(monkeypatch)
    rnn = layer_of(layer, 3, 4, 2, mask_sharing="sequence")
    rnn(torch.randn(5, 3, 3), masks=rnn.sample_masks(1))


@pytest.mark.parametrize(
    "scheme",
    [
        {"mask_sharing": "sequence"},
        {"time_masks": "fresh"},
        {"memory_dropout": 0.5},
        {"input_dropout": 0.0, "recurrent_dropout": 0.0, "memory_dropout": 0.5},
        {"backend": "reference"},
    ],
    ids=["another for every sequence", "fresh", "memory", "memory alone", "asked for"],
)
def test_steps_are_computed_one_by_one_where_torchs_kernel_cannot(monkeypatch, scheme):
    forbid_the_step_loop(monkeypatch)
    with pytest.raises(AssertionError, match="steps ran one by one"):
        layer_of("lstm", 3, 4, 2, **scheme)(torch.randn(5, 3, 3))


def test_steps_are_computed_one_by_one_if_one_layer_has_a_mask_for_every_sequence(monkeypatch):
    rnn = layer_of("lstm", 3, 4, 2)
    shared, one_each = rnn.sample_masks(3), layer_of("lstm", 3, 4, 2, mask_sharing="sequence").sample_masks(3)
    mixed = RNNMasks((shared.layers[0], one_each.layers[1]))
    expected = [rnn(x, masks=mixed.select(torch.tensor([b])))[0] for b, x in enumerate(X.split(1, dim=1))]
    torch.testing.assert_close(rnn(X, masks=mixed)[0], torch.cat(expected, dim=1))
    forbid_the_step_loop(monkeypatch)
    with pytest.raises(AssertionError, match="steps ran one by one"):
        rnn(X, masks=mixed)


@any_layer
@pytest.mark.parametrize("scheme", [{}, {"time_masks": "fresh"}, {"gate_masks": "untied"}, {"backend": "reference"}])
@pytest.mark.parametrize("mode", ["training", "mc_dropout"])
def test_equal_sequences_have_equal_outputs_and_another_call_has_others(layer, scheme, mode):
    rnn = layer_of(layer, 16, 16, 2, **scheme)
    x = torch.randn(5, 1, 16).expand(5, 3, 16)
    with mc_dropout(rnn.train(mode == "training")):
        one, other = rnn(x)[0], rnn(x)[0]
    torch.testing.assert_close(one[:, 1:], one[:, :1].expand(-1, 2, -1))
    assert not torch.allclose(one, other)


@any_layer
def test_training_draws_the_masks_that_sample_masks_draws(layer):
    rnn = layer_of(layer, 3, 4, 2, bidirectional=True)
    x, masks = torch.randn(5, 3, 3), rnn.sample_masks(3, generator=1)
    torch.manual_seed(1)
    torch.testing.assert_close(rnn(x), rnn(x, masks=masks), rtol=0, atol=0)


@pytest.mark.parametrize("scheme", [{"time_masks": "fresh"}, {"memory_dropout": 0.5}, {"gate_masks": "untied"}])
@pytest.mark.parametrize("layer", ["lstm", "projected_lstm"])
def test_a_shared_mask_is_the_same_mask_repeated_for_every_sequence(layer, scheme):
    rnn = layer_of(layer, 3, 4, 2, bidirectional=True, dtype=torch.float64, **scheme)
    x, masks = torch.randn(5, 3, 3, dtype=torch.float64), rnn.sample_masks(3, 5)
    repeated = RNNMasks(
        tuple(
            LayerMasks(*(mask if mask is None else mask.repeat_interleave(3, -2) for mask in one))
            for one in masks.layers
        )
    )
    torch.testing.assert_close(rnn(x, masks=masks), rnn(x, masks=repeated))


@any_layer
def test_parameters_stay_as_they_are_and_dropped_columns_alone_have_no_gradient(layer):
    rnn = layer_of(layer, 16, 16, dtype=torch.float64)
    before = {name: parameter.clone() for name, parameter in rnn.state_dict().items()}
    every_other = torch.tensor([0.0, 2.0], dtype=torch.float64).repeat(8).view(1, 1, 1, 16)
    masks = RNNMasks((LayerMasks(every_other, every_other[..., : rnn.proj_size or 16]),))
    rnn(torch.randn(5, 3, 16, dtype=torch.float64), random_state(rnn, 3), masks)[0].sum().backward()
    torch.testing.assert_close(dict(rnn.state_dict()), before, rtol=0, atol=0)
    assert all(parameter.grad.any() for parameter in rnn.parameters())
    for weight, mask in ((rnn.weight_ih_l0, masks.layers[0].input), (rnn.weight_hh_l0, masks.layers[0].recurrent)):
        assert torch.equal(weight.grad.any(dim=0), mask.flatten() != 0)


@any_layer
def test_without_gradient_it_computes_the_same(layer):
    rnn = layer_of(layer, 3, 4, 2)
    masks = rnn.sample_masks(3)
    with torch.no_grad():
        output, state = rnn(X, masks=masks)
    assert not output.requires_grad
    torch.testing.assert_close((output, state), rnn(X, masks=masks))


@any_layer
@pytest.mark.parametrize(("input_dropout", "recurrent_dropout"), list(itertools.permutations([0.0, 0.5])))
def test_with_one_of_the_two_probabilities_0_only_the_other_product_is_masked(layer, input_dropout, recurrent_dropout):
    rnn = layer_of(layer, 3, 4, 2, input_dropout=input_dropout, recurrent_dropout=recurrent_dropout)
    masks = rnn.sample_masks(3)
    ones = RNNMasks(
        tuple(
            LayerMasks(
                torch.ones(1, 1, 1, width) if one.input is None else one.input,
                torch.ones(1, 1, 1, rnn.proj_size or 4) if one.recurrent is None else one.recurrent,
            )
            for one, width in zip(masks.layers, (3, rnn.proj_size or 4), strict=True)
        )
    )
    torch.testing.assert_close(rnn(X, masks=masks), rnn(X, masks=ones))
    assert not torch.allclose(rnn(X, masks=masks)[0], rnn.eval()(X)[0])
