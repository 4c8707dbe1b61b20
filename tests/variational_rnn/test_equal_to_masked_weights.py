"""With masks on, every sequence is a torch.nn network of its own whose weight columns are zeroed and scaled."""

import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from variational_rnn import VariationalGRU, VariationalLSTM, VariationalRNN

LAYERS = {VariationalLSTM: nn.LSTM, VariationalGRU: nn.GRU, VariationalRNN: nn.RNN}
DROPOUT = {"input_dropout": 0.4, "recurrent_dropout": 0.5}
any_layer = pytest.mark.parametrize("ours", LAYERS)
any_gate_masks = pytest.mark.parametrize("gate_masks", ["tied", "untied"])


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


def plain_twin(rnn):
    return LAYERS[type(rnn)](
        rnn.input_size, rnn.hidden_size, rnn.num_layers, bidirectional=rnn.bidirectional, dtype=torch.float64
    )


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def whole(state_parts):
    return tuple(state_parts) if len(state_parts) == 2 else state_parts[0]


def one_by_one(rnn, masks, sequences, hx):
    """Run every sequence alone; the list of outputs and the final state of all."""
    runs = [
        functional_call(plain_twin(rnn), masked_weights(rnn, masks, b), (x, whole([part[:, b] for part in parts(hx)])))
        for b, x in enumerate(sequences)
    ]
    finals = zip(*(parts(final) for _, final in runs), strict=True)
    return [output for output, _ in runs], whole([torch.stack(final, dim=1) for final in finals])


def gradients(rnn, inputs, outputs, state):
    loss = sum(part.square().sum() for part in [*outputs, *parts(state)])
    return torch.autograd.grad(loss, [*inputs, *rnn.parameters()])


def random_state(rnn, batch):
    shape = (rnn.num_layers * (1 + rnn.bidirectional), batch, rnn.hidden_size)
    count = 2 if isinstance(rnn, nn.LSTM) else 1
    return whole([torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(count)])


@any_layer
@any_gate_masks
@pytest.mark.parametrize(("num_layers", "bidirectional"), list(itertools.product([1, 2], [False, True])))
@pytest.mark.parametrize("lengths", [(4, 4, 4), (2, 4, 1)], ids=["padded", "packed"])
def test_masks_are_masked_weight_columns_of_every_sequence(ours, gate_masks, num_layers, bidirectional, lengths):
    rnn = ours(3, 4, num_layers, bidirectional=bidirectional, **DROPOUT, gate_masks=gate_masks, dtype=torch.float64)
    masks = rnn.sample_masks(len(lengths))
    sequences = [torch.randn(length, 3, dtype=torch.float64, requires_grad=True) for length in lengths]
    hx = random_state(rnn, len(lengths))
    leaves = [*sequences, *parts(hx)]

    if len(set(lengths)) == 1:
        together, state = rnn(torch.stack(sequences, dim=1), hx, masks)
        outputs = list(together.unbind(1))
    else:
        together, state = rnn(pack_sequence(sequences, enforce_sorted=False), hx, masks)
        outputs = unpack_sequence(together)

    expected, expected_state = one_by_one(rnn, masks, sequences, hx)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(state, expected_state)
    torch.testing.assert_close(gradients(rnn, leaves, outputs, state), gradients(rnn, leaves, expected, expected_state))


@any_layer
@any_gate_masks
def test_fresh_masks_are_other_weight_columns_at_every_step(ours, gate_masks):
    steps, batch = 5, 2
    rnn = ours(3, 4, 2, **DROPOUT, gate_masks=gate_masks, time_masks="fresh", dtype=torch.float64)
    masks = rnn.sample_masks(batch, steps)
    x = torch.randn(steps, batch, 3, dtype=torch.float64, requires_grad=True)
    hx = random_state(rnn, batch)

    expected = []
    finals = []
    for b in range(batch):
        state = whole([part[:, b] for part in parts(hx)])
        for t in range(steps):
            output, state = functional_call(plain_twin(rnn), masked_weights(rnn, masks, b, t), (x[t, b : b + 1], state))
            expected.append(output.squeeze(0))
        finals.append(parts(state))
    expected_state = whole([torch.stack(final, dim=1) for final in zip(*finals, strict=True)])

    together, state = rnn(x, hx, masks)
    outputs = list(together.transpose(0, 1).flatten(0, 1))
    leaves = [x, *parts(hx)]
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(state, expected_state)
    torch.testing.assert_close(gradients(rnn, leaves, outputs, state), gradients(rnn, leaves, expected, expected_state))


@any_layer
def test_the_reverse_direction_takes_the_fresh_mask_of_the_time_step_it_reads(ours):
    both = ours(3, 4, bidirectional=True, **DROPOUT, time_masks="fresh")
    one = ours(3, 4)
    reverse = {name.removesuffix("_reverse"): weight for name, weight in both.state_dict().items() if "reverse" in name}
    one.load_state_dict(reverse)
    x, masks = torch.randn(5, 2, 3), both.sample_masks(2, 5)
    flipped = type(masks.layers[1])(*(None if mask is None else mask.flip(0) for mask in masks.layers[1]))
    expected, _ = one(x.flip(0), masks=type(masks)((flipped,)))
    torch.testing.assert_close(both(x, masks=masks)[0][..., 4:], expected.flip(0))


@any_layer
def test_untied_with_equal_gate_masks_is_tied(ours):
    rnn = ours(3, 4, 2, bidirectional=True, **DROPOUT, dtype=torch.float64)
    tied = rnn.sample_masks(2)
    gates = len(rnn.weight_ih_l0) // 4
    untied = type(tied)(
        tuple(
            layer._replace(input=layer.input.repeat(1, gates, 1, 1), recurrent=layer.recurrent.repeat(1, gates, 1, 1))
            for layer in tied.layers
        )
    )
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(rnn(x, masks=untied), rnn(x, masks=tied))


@any_layer
def test_batch_first_and_an_unbatched_sequence_use_the_same_masks(ours):
    rnn = ours(3, 4, 2, **DROPOUT)
    rnn_batch_first = ours(3, 4, 2, batch_first=True, **DROPOUT)
    rnn_batch_first.load_state_dict(rnn.state_dict())
    x, masks = torch.randn(5, 1, 3), rnn.sample_masks(1)
    output, _ = rnn(x, masks=masks)
    torch.testing.assert_close(rnn(x[:, 0], masks=masks)[0], output[:, 0])
    torch.testing.assert_close(rnn_batch_first(x.transpose(0, 1), masks=masks)[0], output.transpose(0, 1))


@any_layer
def test_under_autocast_it_computes_the_same_in_lower_precision(ours):
    rnn = ours(3, 4, 2, **DROPOUT)
    x, masks = torch.randn(5, 2, 3), rnn.sample_masks(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = rnn(x, masks=masks)
    torch.testing.assert_close(output, rnn(x, masks=masks)[0], rtol=0.05, atol=0.05, check_dtype=False)


@any_layer
@any_gate_masks
@pytest.mark.parametrize("time_masks", ["constant", "fresh"])
def test_gradcheck_with_masks_on(ours, gate_masks, time_masks):
    rnn = ours(2, 3, **DROPOUT, gate_masks=gate_masks, time_masks=time_masks, dtype=torch.float64)
    masks = rnn.sample_masks(2, 3)
    names, parameters = zip(*rnn.named_parameters(), strict=True)
    hx = random_state(rnn, 2)

    def call(x, *rest):
        state = whole(rest[: len(parts(hx))])
        weights = dict(zip(names, rest[len(parts(hx)) :], strict=True))
        output, final = functional_call(rnn, weights, (x, state, masks))
        return output, *parts(final)

    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x, *parts(hx), *parameters))
