"""With nothing dropped the layers are torch.nn's: outputs, states and gradients."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from variational_rnn import VariationalGRU, VariationalLSTM, VariationalRNN

CELLS = {
    "lstm": (VariationalLSTM, nn.LSTM, {}),
    "gru": (VariationalGRU, nn.GRU, {}),
    "rnn_tanh": (VariationalRNN, nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (VariationalRNN, nn.RNN, {"nonlinearity": "relu"}),
}
DROPOUT = {"input_dropout": 0.4, "recurrent_dropout": 0.6}
any_cell = pytest.mark.parametrize(("ours", "torchs", "kwargs"), CELLS.values(), ids=CELLS)


def run(rnn, x, state, lengths=None):
    """Outputs and states, and their gradients with respect to x, the given state and every parameter."""
    x = x.detach().requires_grad_()
    state = [part.detach().requires_grad_() for part in state]
    hx = tuple(state) if len(state) == 2 else state[0] if state else None
    input = x if lengths is None else pack_padded_sequence(x, lengths, rnn.batch_first, enforce_sorted=False)
    output, final = rnn(input, hx)
    outputs = list(output) if lengths else [output]  # a PackedSequence: data and the order of the sequences
    finals = list(final) if isinstance(rnn, nn.LSTM) else [final]
    loss = sum(part.square().sum() for part in [outputs[0], *finals])
    return outputs, finals, torch.autograd.grad(loss, [x, *state, *rnn.parameters()])


@settings(max_examples=200)
@given(
    cell=st.sampled_from(sorted(CELLS)),
    num_layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    batch_first=st.booleans(),
    form=st.sampled_from(["padded", "packed", "unbatched"]),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    state_given=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    in_eval=st.booleans(),
)
def test_reference_equals_torch_for_every_flag_and_form_of_input_with_p_0_and_in_eval(
    cell, num_layers, bidirectional, bias, batch_first, form, lengths, state_given, dtype, in_eval
):
    torch.manual_seed(0)
    ours, torchs, kwargs = CELLS[cell]
    kwargs = dict(
        kwargs, num_layers=num_layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional, dtype=dtype
    )
    plain = torchs(2, 3, **kwargs)
    rnn = ours(2, 3, **kwargs, **(DROPOUT if in_eval else {}), backend="reference").train(not in_eval)
    rnn.load_state_dict(plain.state_dict())

    batch, steps, states = len(lengths), max(lengths), num_layers * (1 + bidirectional)
    shape = (steps,) if form == "unbatched" else (batch, steps) if batch_first else (steps, batch)
    state_shape = (states, 3) if form == "unbatched" else (states, batch, 3)
    x = torch.randn(*shape, 2, dtype=dtype)
    state = [torch.randn(state_shape, dtype=dtype) for _ in range(2 if cell == "lstm" else 1) if state_given]
    packed_lengths = lengths if form == "packed" else None

    torch.testing.assert_close(
        run(rnn, x, state, packed_lengths), run(plain, x, state, packed_lengths), rtol=1e-4, atol=1e-5
    )
    plain.load_state_dict(rnn.state_dict())


@any_cell
def test_with_every_p_0_training_is_torch_bit_for_bit(ours, torchs, kwargs):
    plain = torchs(3, 4, 2, bidirectional=True, **kwargs)
    rnn = ours(3, 4, 2, bidirectional=True, **kwargs)
    rnn.load_state_dict(plain.state_dict())
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(run(rnn, x, []), run(plain, x, []), rtol=0, atol=0)


@any_cell
def test_in_eval_it_is_torch_bit_for_bit_although_p_is_not_0(ours, torchs, kwargs):
    plain = torchs(3, 4, **kwargs)
    rnn = ours(3, 4, **kwargs, **DROPOUT).eval()
    rnn.load_state_dict(plain.state_dict())
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(run(rnn, x, []), run(plain, x, []), rtol=0, atol=0)


@any_cell
def test_it_is_an_instance_of_its_torch_class(ours, torchs, kwargs):
    assert isinstance(ours(3, 4, **kwargs), torchs)


def save_and_load(rnn):
    file = io.BytesIO()
    torch.save(rnn.state_dict(), file)
    file.seek(0)
    loaded = type(rnn)(3, 4, 2, **DROPOUT, gate_masks="untied")
    loaded.load_state_dict(torch.load(file, weights_only=True))
    return loaded


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda rnn: pickle.loads(pickle.dumps(rnn)), save_and_load])
@pytest.mark.parametrize("ours", [VariationalLSTM, VariationalGRU, VariationalRNN])
def test_a_copy_computes_the_same_and_shares_no_parameter(ours, copied):
    rnn = ours(3, 4, 2, **DROPOUT, gate_masks="untied")
    twin = copied(rnn)
    x, masks = torch.randn(5, 2, 3), rnn.sample_masks(2)
    expected = rnn(x, masks=masks)[0]
    torch.testing.assert_close(twin(x, masks=masks)[0], expected, rtol=0, atol=0)
    torch.manual_seed(1)
    of_original = rnn(x)[0]
    torch.manual_seed(1)
    torch.testing.assert_close(twin(x)[0], of_original, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(x, masks=masks)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("in_training", [True, False])
@pytest.mark.parametrize("ours", [VariationalLSTM, VariationalGRU, VariationalRNN])
@pytest.mark.parametrize(
    ("x", "hx"),
    [
        (torch.zeros(5, 2, 7), None),
        (torch.zeros(3), None),
        (torch.zeros(5, 2, 3, 1), None),
        (torch.zeros(5, 2, 3, dtype=torch.long), None),
        (torch.zeros(5, 2, 3), torch.zeros(1, 3, 4)),
        (torch.zeros(5, 3), torch.zeros(1, 1, 4)),
    ],
    ids=["features", "1 dimension", "4 dimensions", "dtype", "batch of hx", "batched hx of an unbatched input"],
)
def test_wrong_input_is_refused_as_torch_refuses_it(ours, in_training, x, hx):
    rnn = ours(3, 4, **DROPOUT).train(in_training)
    with pytest.raises((RuntimeError, ValueError)):
        rnn(x, (hx, hx) if hx is not None and ours is VariationalLSTM else hx)


def test_representation_shows_the_dropout_scheme():
    lstm = VariationalLSTM(3, 4, 2, input_dropout=0.35, recurrent_dropout=0.2, memory_dropout=0.1, gate_masks="untied")
    shown = repr(lstm)
    assert shown.startswith("VariationalLSTM(3, 4, num_layers=2, ")
    for part in ("input_dropout=0.35", "recurrent_dropout=0.2", "memory_dropout=0.1", "'untied'", "'constant'"):
        assert part in shown
    assert "time_masks='fresh'" in repr(VariationalGRU(3, 4, time_masks="fresh"))
