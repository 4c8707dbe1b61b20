"""Single time steps: torch.nn's cell without dropout, one step of the layer with it."""

import copy
import itertools
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from variational_rnn import (
    LayerMasks,
    RNNMasks,
    VariationalGRU,
    VariationalGRUCell,
    VariationalLSTM,
    VariationalLSTMCell,
    VariationalRNN,
    VariationalRNNCell,
    mc_dropout,
)

KINDS = {
    "lstm": (VariationalLSTMCell, nn.LSTMCell, VariationalLSTM, {}),
    "gru": (VariationalGRUCell, nn.GRUCell, VariationalGRU, {}),
    "rnn_tanh": (VariationalRNNCell, nn.RNNCell, VariationalRNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (VariationalRNNCell, nn.RNNCell, VariationalRNN, {"nonlinearity": "relu"}),
}
GATES = {VariationalLSTMCell: 4, VariationalGRUCell: 3, VariationalRNNCell: 1}
DROPOUT = {"input_dropout": 0.4, "recurrent_dropout": 0.5}
MEMORY = {"memory_dropout": 0.3}
any_kind = pytest.mark.parametrize(("ours", "torchs", "layer", "kwargs"), KINDS.values(), ids=KINDS)
any_cell = pytest.mark.parametrize("ours", GATES)
any_gate_masks = pytest.mark.parametrize("gate_masks", ["tied", "untied"])


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def whole(state_parts):
    return tuple(state_parts) if len(state_parts) == 2 else state_parts[0]


def random_state(cell, *batch, dtype=torch.float64):
    count = 2 if isinstance(cell, nn.LSTMCell) else 1
    return whole([torch.randn(*batch, cell.hidden_size, dtype=dtype, requires_grad=True) for _ in range(count)])


def masks_of_ones(cell, batch_size):
    like = {"dtype": cell.weight_ih.dtype}
    return LayerMasks(
        torch.ones(1, 1, batch_size, cell.input_size, **like), torch.ones(1, 1, 1, cell.hidden_size, **like)
    )


def gradients(cell, values, leaves):
    return torch.autograd.grad(sum(value.square().sum() for value in values), [*leaves, *cell.parameters()])


def step(cell, x, hx, *masks):
    """The next state and its gradients."""
    state = parts(cell(x, hx, *masks))
    return state, gradients(cell, state, [x, *(() if hx is None else parts(hx))])


@given(
    kind=st.sampled_from(sorted(KINDS)),
    bias=st.booleans(),
    batch=st.sampled_from([(), (1,), (3,)]),
    state_given=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    nothing_dropped_by=st.sampled_from(["p = 0", "eval", "no masks", "masks of ones"]),
)
def test_with_nothing_dropped_a_step_is_torchs(kind, bias, batch, state_given, dtype, nothing_dropped_by):
    torch.manual_seed(0)
    ours, torchs, _, kwargs = KINDS[kind]
    plain = torchs(2, 3, bias=bias, dtype=dtype, **kwargs)
    cell = ours(2, 3, bias=bias, dtype=dtype, **kwargs, **({} if nothing_dropped_by == "p = 0" else DROPOUT))
    cell.train(nothing_dropped_by != "eval").load_state_dict(plain.state_dict())
    masks = {"no masks": [LayerMasks()], "masks of ones": [masks_of_ones(cell, *batch or (1,))]}
    x = torch.randn(*batch, 2, dtype=dtype, requires_grad=True)
    hx = random_state(cell, *batch, dtype=dtype) if state_given else None
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if nothing_dropped_by == "masks of ones" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(step(cell, x, hx, *masks.get(nothing_dropped_by, [])), step(plain, x, hx), **tolerance)
    plain.load_state_dict(cell.state_dict())


@any_kind
def test_it_is_an_instance_of_its_torch_class(ours, torchs, layer, kwargs):
    assert isinstance(ours(3, 4, **kwargs), torchs)


def loop(cell, x, state, masks):
    outputs = []
    for x_t in x:
        state = cell(x_t, state, masks)
        outputs.append(parts(state)[0])
    return torch.stack(outputs), state


def cell_of_layer(ours, layer, **kwargs):
    cell = ours(layer.input_size, layer.hidden_size, layer.bias, dtype=torch.float64, **kwargs)
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in layer.state_dict().items()})
    return cell


@any_kind
@any_gate_masks
@pytest.mark.parametrize("state_given", [True, False], ids=["hx", "no hx"])
@pytest.mark.parametrize("sequences_of_masks", [1, 3], ids=["masks of the batch", "masks of each sequence"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_loop_over_a_cell_is_the_layer_under_the_same_masks(
    ours, torchs, layer, kwargs, gate_masks, state_given, sequences_of_masks, bias
):
    kwargs = {**kwargs, **DROPOUT, **(MEMORY if ours is VariationalLSTMCell else {}), "gate_masks": gate_masks}
    rnn = layer(3, 4, bias=bias, dtype=torch.float64, **kwargs)
    cell = cell_of_layer(ours, rnn, **kwargs)
    masks = cell.sample_masks(sequences_of_masks)
    x = torch.randn(5, 3, 3, dtype=torch.float64, requires_grad=True)
    hx = random_state(cell, 3) if state_given else None
    leaves = [x, *(parts(hx) if state_given else ())]

    outputs, state = loop(cell, x, hx, masks)
    hx_of_layer = whole([part.unsqueeze(0) for part in parts(hx)]) if state_given else None
    expected, expected_state = rnn(x, hx_of_layer, RNNMasks((masks,)))

    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(parts(state), tuple(part[0] for part in parts(expected_state)))
    values, expected_values = [outputs, *parts(state)], [expected, *parts(expected_state)]
    torch.testing.assert_close(gradients(cell, values, leaves), gradients(rnn, expected_values, leaves))


@pytest.mark.parametrize(
    ("ours", "layer", "dropout"),
    [
        *((ours, layer, dropout) for ours, _, layer, _ in list(KINDS.values())[:3] for dropout in DROPOUT),
        (VariationalLSTMCell, VariationalLSTM, "memory_dropout"),
    ],
)
def test_a_loop_with_one_kind_of_dropout_is_the_layer_with_it(ours, layer, dropout):
    rnn = layer(3, 8, **{dropout: 0.5}, dtype=torch.float64)
    masks, x = rnn.sample_masks(2), torch.randn(5, 2, 3, dtype=torch.float64)
    outputs, _ = loop(cell_of_layer(ours, rnn), x, None, masks.layers[0])
    torch.testing.assert_close(outputs, rnn(x, masks=masks)[0])
    assert not torch.allclose(outputs, rnn.eval()(x)[0])


@any_kind
def test_masks_sampled_by_the_layer_drive_a_loop_over_the_cell(ours, torchs, layer, kwargs):
    rnn = layer(3, 4, dtype=torch.float64, **kwargs, **DROPOUT)
    masks, x = rnn.sample_masks(2), torch.randn(5, 2, 3, dtype=torch.float64)
    outputs, _ = loop(cell_of_layer(ours, rnn, **kwargs), x, None, masks.layers[0])
    torch.testing.assert_close(outputs, rnn(x, masks=masks)[0])


@any_cell
@any_gate_masks
def test_a_single_sequence_without_batch_uses_the_same_masks(ours, gate_masks):
    cell = ours(3, 4, **DROPOUT, gate_masks=gate_masks, dtype=torch.float64)
    x, hx, masks = torch.randn(3, dtype=torch.float64), random_state(cell), cell.sample_masks(1)
    for state in (None, hx):
        batched = None if state is None else whole([part.unsqueeze(0) for part in parts(state)])
        expected = tuple(part[0] for part in parts(cell(x.unsqueeze(0), batched, masks)))
        torch.testing.assert_close(parts(cell(x, state, masks)), expected)


@pytest.mark.parametrize(
    ("ours", "dropout"), [*itertools.product(GATES, DROPOUT), (VariationalLSTMCell, "memory_dropout")]
)
def test_where_dropout_is_live_a_call_without_masks_is_refused_saying_what_to_do(ours, dropout):
    cell, x = ours(3, 4, **{dropout: 0.5}), torch.zeros(2, 3)
    advice = (
        rf"{ours.__name__} .*masks = cell\.sample_masks\(batch_size\) before the loop.*LayerMasks\(\) drops nothing"
    )
    with pytest.raises(ValueError, match=advice):
        cell(x)
    cell.eval()
    with mc_dropout(cell):
        with pytest.raises(ValueError, match=advice):
            cell(x)
        cell(x, None, cell.sample_masks(2))
    cell(x)


@any_cell
@pytest.mark.parametrize("in_training", [True, False])
def test_with_p_0_masks_are_never_needed(ours, in_training):
    cell, x = ours(3, 4).train(in_training), torch.randn(2, 3)
    with mc_dropout(cell):
        assert torch.equal(parts(cell(x))[0], parts(cell(x, None, cell.sample_masks(2)))[0])


@any_cell
def test_given_masks_are_used_in_eval_too(ours):
    cell = ours(3, 4, **DROPOUT)
    x, masks = torch.randn(2, 3), cell.sample_masks(2)
    expected = cell(x, None, masks)
    torch.testing.assert_close(cell.eval()(x, None, masks), expected, rtol=0, atol=0)


@any_cell
@any_gate_masks
@pytest.mark.parametrize("batch_size", [1, 5])
def test_masks_have_one_row_for_each_gate_only_if_untied(ours, gate_masks, batch_size):
    gates = GATES[ours] if gate_masks == "untied" else 1
    masks = ours(3, 4, **DROPOUT, gate_masks=gate_masks, dtype=torch.float64).sample_masks(batch_size)
    assert masks.input.shape == (1, gates, batch_size, 3)
    assert masks.recurrent.shape == (1, gates, batch_size, 4)
    assert masks.memory is None
    assert masks.input.dtype == masks.recurrent.dtype == torch.float64


def test_memory_masks_of_a_cell_are_of_its_sequences_and_memory_cells():
    assert VariationalLSTMCell(3, 4, memory_dropout=0.5).sample_masks(5).memory.shape == (5, 4)


@any_cell
def test_masks_drop_with_probability_p_and_divide_what_they_keep_by_1_minus_p(ours):
    masks = ours(100, 100, **DROPOUT).sample_masks(100)
    for mask, p in zip(masks[:2], DROPOUT.values(), strict=True):
        torch.testing.assert_close(mask.unique(), torch.tensor([0, 1 / (1 - p)]))
        assert abs((mask == 0).float().mean().item() - p) < 5 * (p * (1 - p)) ** 0.5 / 100


@any_cell
def test_p_0_has_no_masks(ours):
    assert ours(3, 4).sample_masks(5) == LayerMasks()


@any_cell
def test_a_seed_gives_reproducible_masks_and_leaves_the_global_generator_alone(ours):
    cell = ours(16, 16, **DROPOUT)
    before = torch.get_rng_state()
    of_seed, of_generator, other = (
        cell.sample_masks(4, generator=source) for source in (7, torch.Generator().manual_seed(7), 8)
    )
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(of_seed, of_generator, rtol=0, atol=0)
    assert not torch.equal(of_seed.input, other.input)
    assert not torch.equal(of_seed.recurrent, other.recurrent)
    assert not torch.equal(of_seed.input, of_seed.recurrent)


@any_kind
@any_gate_masks
def test_gradcheck_with_masks_on(ours, torchs, layer, kwargs, gate_masks):
    memory = MEMORY if ours is VariationalLSTMCell else {}
    cell = ours(2, 3, dtype=torch.float64, **kwargs, **DROPOUT, **memory, gate_masks=gate_masks)
    masks, hx = cell.sample_masks(2, generator=4), random_state(cell, 2)
    names, weights = zip(*cell.named_parameters(), strict=True)

    def call(x, *rest):
        state, weights = whole(rest[: len(parts(hx))]), rest[len(parts(hx)) :]
        return functional_call(cell, dict(zip(names, weights, strict=True)), (x, state, masks))

    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x, *parts(hx), *weights))


H, X = torch.zeros(2, 4), torch.zeros(2, 3)
NONE = LayerMasks()


@pytest.mark.parametrize("masks", [None, NONE, LayerMasks(torch.ones(1, 1, 1, 3))], ids=["none", "empty", "given"])
@pytest.mark.parametrize(
    ("ours", "x", "hx", "error", "message"),
    [
        (
            VariationalGRUCell,
            torch.zeros(2, 7),
            None,
            RuntimeError,
            "input has inconsistent input_size: got 7 expected 3",
        ),
        (VariationalGRUCell, torch.zeros(5, 2, 3), None, ValueError, "Expected input to be 1D or 2D, got 3D instead"),
        (VariationalGRUCell, torch.tensor(0.0), None, ValueError, "Expected input to be 1D or 2D, got 0D instead"),
        (
            VariationalGRUCell,
            X,
            torch.zeros(3, 4),
            RuntimeError,
            "size 2 doesn't match hidden0 batch size 3",
        ),
        (
            VariationalRNNCell,
            X,
            torch.zeros(2, 5),
            RuntimeError,
            "hidden0 has inconsistent hidden_size: got 5, expected 4",
        ),
        (VariationalRNNCell, X, torch.zeros(1, 2, 4), ValueError, "Expected hidden to be 1D or 2D, got 3D instead"),
        (VariationalGRUCell, X[0], H[:1], RuntimeError, "For 1D input, hidden0 should also be 1D"),
        (VariationalLSTMCell, X, (H, H[0]), RuntimeError, "For 2D input, hidden1 should also be 2D"),
        (VariationalLSTMCell, X, H, TypeError, "hx of a VariationalLSTMCell must be a pair of tensors (h, c)"),
        (VariationalLSTMCell, X, (H,), TypeError, "must be a pair of tensors (h, c), got tuple"),
        (VariationalLSTMCell, X, (H, None), TypeError, "must be a pair of tensors (h, c), got tuple"),
        (VariationalLSTMCell, X, NONE, TypeError, "must be a pair of tensors (h, c), got LayerMasks"),
        (VariationalGRUCell, X, (H, H), TypeError, "hx of a VariationalGRUCell must be a tensor, got tuple"),
        (VariationalRNNCell, X, (H,), TypeError, "hx of a VariationalRNNCell must be a tensor, got tuple"),
    ],
)
def test_wrong_input_and_states_are_refused_with_and_without_masks(ours, x, hx, masks, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ours(3, 4)(x, hx, masks)


@pytest.mark.parametrize("masks", [None, LayerMasks(torch.ones(1, 1, 1, 3))], ids=["none", "given"])
@pytest.mark.parametrize(
    ("ours", "torchs"),
    [(VariationalLSTMCell, nn.LSTMCell), (VariationalGRUCell, nn.GRUCell), (VariationalRNNCell, nn.RNNCell)],
)
@pytest.mark.parametrize(
    ("x_shape", "h_shape"),
    [((2, 7), None), ((7,), None), ((5, 2, 3), None), ((2, 3), (2, 5)), ((2, 3), (3, 4)), ((2, 3), (1, 2, 4)),
     ((3,), (5,)), ((3,), (1, 1, 4))],
)  # fmt: skip
def test_wrong_sizes_are_refused_as_torchs_cells_refuse_them(ours, torchs, x_shape, h_shape, masks):
    x, hx = torch.zeros(x_shape), None if h_shape is None else torch.zeros(h_shape)
    hx = (hx, hx) if hx is not None and ours is VariationalLSTMCell else hx
    with pytest.raises((RuntimeError, ValueError)) as torchs_error:
        torchs(3, 4)(x, hx)
    message = str(torchs_error.value).removeprefix(f"{torchs.__name__}: ")
    with pytest.raises(torchs_error.type, match=re.escape(message)):
        ours(3, 4)(x, hx, masks)


@pytest.mark.parametrize(
    ("ours", "masks", "error", "message"),
    [
        (VariationalGRUCell, RNNMasks((NONE,)), TypeError, "masks must be LayerMasks, as sample_masks returns them"),
        (VariationalGRUCell, (None, None, None), TypeError, "masks must be LayerMasks"),
        (VariationalGRUCell, LayerMasks(memory=torch.ones(2, 4)), ValueError, "VariationalGRUCell has no memory cells"),
        (VariationalRNNCell, LayerMasks(memory=torch.ones(2, 4)), ValueError, "VariationalRNNCell has no memory cells"),
        (
            VariationalLSTMCell,
            LayerMasks(torch.ones(1, 3, 2, 3)),
            ValueError,
            "input mask has shape [1, 3, 2, 3], expected [time 1, gates 1|4, batch 1|2, features 3]",
        ),
        (
            VariationalGRUCell,
            LayerMasks(recurrent=torch.ones(5, 1, 2, 4)),
            ValueError,
            "recurrent mask has shape [5, 1, 2, 4], expected [time 1, gates 1|3, batch 1|2, features 4]",
        ),
        (
            VariationalRNNCell,
            LayerMasks(recurrent=torch.ones(1, 1, 3, 4)),
            ValueError,
            "recurrent mask has shape [1, 1, 3, 4], expected [time 1, gates 1, batch 1|2, features 4]",
        ),
        (
            VariationalLSTMCell,
            LayerMasks(memory=torch.ones(4)),
            ValueError,
            "memory mask has shape [4], expected [batch 1|2, features 4]",
        ),
        (VariationalLSTMCell, LayerMasks(input=0.5), TypeError, "input mask must be a tensor or None, got float"),
        (
            VariationalLSTMCell,
            LayerMasks(torch.ones(1, 1, 2, 3, dtype=torch.float64)),
            ValueError,
            "input mask has dtype torch.float64, expected torch.float32",
        ),
    ],
)
def test_wrong_masks_are_refused_naming_got_and_expected(ours, masks, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ours(3, 4)(X, None, masks)


def test_masks_of_two_sequences_are_refused_for_a_single_one():
    cell = VariationalLSTMCell(3, 4, **DROPOUT)
    with pytest.raises(ValueError, match=re.escape("input mask has shape [1, 1, 2, 3], expected [time 1, ")):
        cell(X[0], None, cell.sample_masks(2))


@pytest.mark.parametrize(
    ("ours", "kwargs", "message"),
    [
        (VariationalRNNCell, {"nonlinearity": "gelu"}, "nonlinearity must be one of 'tanh', 'relu', got 'gelu'"),
        *[
            (ours, {"gate_masks": "shared"}, "gate_masks must be one of 'tied', 'untied', got 'shared'")
            for ours in GATES
        ],
        *[
            (ours, {name: p}, f"{name} is the probability to drop and must lie in [0, 1), got {p!r}")
            for ours in GATES
            for name in DROPOUT
            for p in (1.0, -0.1, True)
        ],
        (VariationalLSTMCell, {"memory_dropout": 1}, "memory_dropout is the probability to drop"),
    ],
)
def test_unknown_choices_and_probabilities_are_refused_by_name(ours, kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ours(3, 4, **kwargs)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cell: pickle.loads(pickle.dumps(cell))])
@any_cell
def test_a_copy_computes_the_same_and_shares_no_parameter(ours, copied):
    cell = ours(3, 4, **DROPOUT, gate_masks="untied")
    twin, x = copied(cell), torch.randn(2, 3)
    masks = cell.sample_masks(2, generator=1)
    torch.testing.assert_close(twin.sample_masks(2, generator=1), masks, rtol=0, atol=0)
    expected = cell(x, None, masks)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(x, None, masks), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (
            VariationalLSTMCell(3, 4, input_dropout=0.35, recurrent_dropout=0.2, memory_dropout=0.1),
            "VariationalLSTMCell(3, 4, input_dropout=0.35, recurrent_dropout=0.2, memory_dropout=0.1, "
            "gate_masks='tied')",
        ),
        (VariationalGRUCell(3, 4, gate_masks="untied"), "VariationalGRUCell(3, 4, gate_masks='untied')"),
        (
            VariationalRNNCell(3, 4, False, "relu", input_dropout=0.5),
            "VariationalRNNCell(3, 4, bias=False, nonlinearity=relu, input_dropout=0.5, gate_masks='tied')",
        ),
    ],
)
def test_representation_shows_the_dropout_scheme(cell, shown):
    assert repr(cell) == shown


def test_an_input_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="input must be a tensor, got list"):
        VariationalGRUCell(3, 4)([1.0, 2.0, 3.0])
