"""With nothing dropped the layers are torch.nn's: outputs, states and gradients, and how they are built and stored."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from variational_rnn import LayerMasks, RNNMasks, VariationalGRU, VariationalLSTM, VariationalRNN
from variational_rnn.kernels import build, cpu

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

CELLS = {
    "lstm": (VariationalLSTM, nn.LSTM, {}),
    "projected_lstm": (VariationalLSTM, nn.LSTM, {"proj_size": 2}),
    "gru": (VariationalGRU, nn.GRU, {}),
    "rnn_tanh": (VariationalRNN, nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (VariationalRNN, nn.RNN, {"nonlinearity": "relu"}),
}
DROPOUT = {"input_dropout": 0.4, "recurrent_dropout": 0.6}
any_cell = pytest.mark.parametrize(("ours", "torchs", "kwargs"), CELLS.values(), ids=CELLS)
any_backend = pytest.mark.parametrize("backend", ["auto", "reference"])
any_dropout = pytest.mark.parametrize(
    "dropout",
    [DROPOUT, {**DROPOUT, "mask_sharing": "batch"}, {**DROPOUT, "time_masks": "fresh", "gate_masks": "untied"}],
    ids=["by sequence", "by batch", "fresh"],
)


def twins(ours, torchs, *args, dropout=None, backend="auto", **kwargs):
    """A layer of ours and torch's with the same parameters; each loads the other's state_dict."""
    plain = torchs(*args, **kwargs)
    rnn = ours(*args, **kwargs, **(dropout or {}), backend=backend)
    rnn.load_state_dict(plain.state_dict())
    plain.load_state_dict(rnn.state_dict())
    return rnn, plain


def run(rnn, x, state=(), pack=lambda x: x):
    """Outputs and states, and their gradients with respect to x, the given state and every parameter."""
    x = x.detach().requires_grad_()
    state = [part.detach().requires_grad_() for part in state]
    output, final = rnn(pack(x), tuple(state) if len(state) == 2 else state[0] if state else None)
    outputs = [output] if isinstance(output, torch.Tensor) else list(output)  # packed: data and the order of sequences
    finals = list(final) if isinstance(rnn, nn.LSTM) else [final]
    loss = sum(part.square().sum() for part in [outputs[0], *finals])
    return outputs, finals, torch.autograd.grad(loss, [x, *state, *rnn.parameters()])


def random_state(rnn, *batch):
    layers = rnn.num_layers * (1 + rnn.bidirectional)
    sizes = [rnn.proj_size or rnn.hidden_size, rnn.hidden_size][: 1 + isinstance(rnn, nn.LSTM)]
    return [torch.randn(layers, *batch, size, dtype=rnn.weight_ih_l0.dtype) for size in sizes]


def stored_and_loaded(value, safe=()):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    with torch.serialization.safe_globals(list(safe)):
        return torch.load(file, weights_only=True)


@settings(max_examples=400)
@given(
    cell=st.sampled_from(list(CELLS)),
    num_layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    batch_first=st.booleans(),
    form=st.sampled_from(["padded", "packed", "packed in order of length", "unbatched"]),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    state_given=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    in_eval=st.booleans(),
    backend=st.sampled_from(["auto", "reference"]),
)
def test_with_p_0_and_in_eval_it_equals_torch_for_every_flag_and_form_of_input(
    cell, num_layers, bidirectional, bias, batch_first, form, lengths, state_given, dtype, in_eval, backend
):
    torch.manual_seed(0)
    ours, torchs, kwargs = CELLS[cell]
    flags = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional, "dtype": dtype}
    dropout = DROPOUT if in_eval else None
    rnn, plain = twins(ours, torchs, 2, 3, num_layers, dropout=dropout, backend=backend, **kwargs, **flags)
    rnn.train(not in_eval)

    batch, steps = ([] if form == "unbatched" else [len(lengths)]), [max(lengths)]
    x = torch.randn(*(batch + steps if batch_first else steps + batch), 2, dtype=dtype)
    state = random_state(rnn, *batch) if state_given else []

    def pack(x):
        if not form.startswith("packed"):
            return x
        in_order = form != "packed"
        of_sequences = sorted(lengths, reverse=True) if in_order else lengths
        return pack_padded_sequence(x, of_sequences, batch_first, enforce_sorted=in_order)

    tolerance = 0 if backend == "auto" else 1e-9 if dtype == torch.float64 else 1e-4  # auto: it is torch's kernel
    torch.testing.assert_close(run(rnn, x, state, pack), run(plain, x, state, pack), rtol=tolerance, atol=tolerance)


@any_cell
@pytest.mark.skipif(build.extension() is None, reason="the CPU kernels cannot be built here")
@pytest.mark.parametrize(
    ("lengths", "trains", "is_ours"),
    [((80, 80, 60), True, True), ((2, 80, 3, 1), True, True), ((80, 80, 60), False, False), ((40, 40), True, False)],
    ids=["long", "one is long", "evaluated", "short"],
)
def test_long_packed_sequences_are_trained_on_by_the_fast_backend_and_equal_torch(
    ours, torchs, kwargs, lengths, trains, is_ours, monkeypatch
):
    calls = []
    unroll = cpu.unroll
    monkeypatch.setattr(cpu, "unroll", lambda *args, **options: calls.append(1) or unroll(*args, **options))
    rnn, plain = twins(ours, torchs, 3, 4, 2, bidirectional=True, **kwargs)
    packed = pack_sequence([torch.randn(length, 3) for length in lengths], enforce_sorted=False)
    results = []
    for network in (rnn, plain):
        with torch.set_grad_enabled(trains):
            output, _ = network(packed)
        gradients = torch.autograd.grad(output.data.square().sum(), network.parameters()) if trains else ()
        results.append([output.data, *gradients])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert bool(calls) == (is_ours and "proj_size" not in kwargs)  # which the fast backend has not


@any_cell
@any_backend
@pytest.mark.parametrize("shape", [(5, 0, 3), (0, 5, 3)], ids=["time first", "batch first"])
def test_a_batch_of_no_sequences_gives_what_torch_gives(ours, torchs, kwargs, backend, shape):
    flags = {"bidirectional": True, "batch_first": shape[0] == 0}
    rnn, plain = twins(ours, torchs, 3, 4, 2, backend=backend, **flags, **kwargs)
    torch.testing.assert_close(run(rnn, torch.zeros(shape)), run(plain, torch.zeros(shape)), rtol=0, atol=0)


@any_cell
@any_dropout
def test_a_batch_of_no_sequences_gives_torchs_shapes_with_masks_on_too(ours, torchs, kwargs, dropout):
    rnn, plain = twins(ours, torchs, 3, 4, 2, bidirectional=True, dropout=dropout, **kwargs)
    x = torch.zeros(5, 0, 3)
    torch.testing.assert_close(run(rnn, x), run(plain, x), rtol=0, atol=0)


@any_cell
@any_backend
@pytest.mark.parametrize("bidirectional", [False, True])
def test_nan_in_the_input_comes_out_where_it_comes_out_of_torch(ours, torchs, kwargs, backend, bidirectional):
    rnn, plain = twins(ours, torchs, 3, 4, 2, bidirectional=bidirectional, backend=backend, dropout=DROPOUT, **kwargs)
    x = torch.randn(5, 3, 3)
    x[2, 1, 0] = torch.nan
    output, expected = rnn.eval()(x)[0], plain(x)[0]
    assert expected.isnan().any()
    assert not expected.isnan().all()
    torch.testing.assert_close(output, expected, equal_nan=True)


@any_cell
@any_dropout
@pytest.mark.parametrize("packed", [False, True])
def test_nan_in_one_sequence_reaches_no_other_with_masks_on(ours, torchs, kwargs, dropout, packed):
    rnn = ours(3, 4, 2, bidirectional=True, **kwargs, **dropout)
    sequences = [torch.randn(length, 3) for length in ((2, 5, 3) if packed else (5, 5, 5))]
    sequences[1][2, 0] = torch.nan
    for sequence in sequences:
        sequence.requires_grad_()
    if packed:
        output, _ = pad_packed_sequence(rnn(pack_sequence(sequences, enforce_sorted=False))[0])
    else:
        output, _ = rnn(torch.stack(sequences, dim=1))
    gradients = torch.autograd.grad(output.square().sum(), sequences)
    assert [bool(row.isnan().any()) for row in output.unbind(1)] == [False, True, False]
    assert [bool(gradient.isnan().any()) for gradient in gradients] == [False, True, False]


@any_cell
def test_it_is_an_instance_of_its_torch_class_and_begins_with_the_same_parameters(ours, torchs, kwargs):
    torch.manual_seed(1)
    plain = torchs(3, 4, 2, bidirectional=True, **kwargs)
    torch.manual_seed(1)
    rnn = ours(3, 4, 2, bidirectional=True, **kwargs, **DROPOUT)
    assert isinstance(rnn, torchs)
    torch.testing.assert_close(dict(rnn.named_parameters()), dict(plain.named_parameters()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("ours", "torchs", "arguments"),
    [
        (VariationalLSTM, nn.LSTM, (3, 4, 2, False, True)),
        (VariationalGRU, nn.GRU, (3, 4, 2, False, True)),
        (VariationalRNN, nn.RNN, (3, 4, 2, "relu", False, True)),
    ],
)
def test_positional_arguments_are_in_torchs_order(ours, torchs, arguments):
    rnn, plain = twins(ours, torchs, *arguments)
    for name in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional", "mode"):
        assert getattr(rnn, name) == getattr(plain, name)


@any_cell
def test_reset_parameters_draws_every_parameter_anew_as_torch_does(ours, torchs, kwargs):
    rnn, plain = twins(ours, torchs, 3, 4, 2, bidirectional=True, dropout=DROPOUT, **kwargs)
    before = copy.deepcopy(rnn.state_dict())
    for layer in (rnn, plain):
        torch.manual_seed(1)
        layer.reset_parameters()
    assert not any(torch.equal(parameter, before[name]) for name, parameter in rnn.named_parameters())
    torch.testing.assert_close(rnn.state_dict(), plain.state_dict(), rtol=0, atol=0)


@any_cell
def test_flatten_parameters_changes_nothing(ours, torchs, kwargs):
    rnn = ours(3, 4, 2, **kwargs, **DROPOUT)
    x, masks, parameters = torch.randn(5, 2, 3), rnn.sample_masks(2), list(rnn.parameters())
    before = rnn(x, masks=masks)
    rnn.flatten_parameters()
    assert all(one is other for one, other in zip(rnn.parameters(), parameters, strict=True))
    torch.testing.assert_close(rnn(x, masks=masks), before, rtol=0, atol=0)


@any_cell
@any_dropout
def test_built_on_the_meta_device_it_takes_no_memory_and_can_be_filled_later(ours, torchs, kwargs, dropout):
    rnn = ours(3, 4, 2, **kwargs, **dropout, device="meta")
    plain = torchs(3, 4, 2, **kwargs)
    drawn = [mask for layer in rnn.sample_masks(2, 5).layers for mask in layer if mask is not None]
    output, _ = rnn(torch.zeros(5, 2, 3, device="meta"))
    assert output.shape == plain(torch.zeros(5, 2, 3))[0].shape
    assert all(tensor.is_meta for tensor in [*rnn.parameters(), *drawn, output])
    rnn = rnn.to_empty(device="cpu").eval()
    rnn.load_state_dict(plain.state_dict())
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(run(rnn, x), run(plain, x), rtol=0, atol=0)


def with_state_dict_of(rnn):
    twin = copy.deepcopy(rnn)
    twin.reset_parameters()
    twin.load_state_dict(stored_and_loaded(rnn.state_dict()))
    return twin


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda rnn: pickle.loads(pickle.dumps(rnn)), with_state_dict_of])
@any_cell
@any_dropout
def test_a_copy_computes_the_same_and_shares_no_parameter(ours, torchs, kwargs, dropout, copied):
    rnn = ours(3, 4, 2, **kwargs, **dropout)
    twin = copied(rnn)
    assert repr(twin) == repr(rnn)
    x, masks = torch.randn(5, 2, 3), rnn.sample_masks(2, 5)
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


def test_masks_are_stored_and_loaded_with_weights_only_once_their_two_classes_are_declared_safe():
    masks = VariationalLSTM(3, 4, 2, memory_dropout=0.5, **DROPOUT).sample_masks(2)
    loaded = stored_and_loaded(masks, safe=[RNNMasks, LayerMasks])
    assert isinstance(loaded, RNNMasks)
    assert all(isinstance(layer, LayerMasks) for layer in loaded.layers)
    torch.testing.assert_close(loaded, masks, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("rnn", "shown"),
    [
        (
            VariationalLSTM(
                3, 4, 2, proj_size=2, input_dropout=0.35, recurrent_dropout=0.2, memory_dropout=0.1,
                gate_masks="untied",
            ),
            "VariationalLSTM(3, 4, proj_size=2, num_layers=2, input_dropout=0.35, recurrent_dropout=0.2, "
            "memory_dropout=0.1, gate_masks='untied', time_masks='constant', mask_sharing='sequence')",
        ),
        (
            VariationalGRU(3, 4, bias=False, bidirectional=True, recurrent_dropout=0.5, time_masks="fresh"),
            "VariationalGRU(3, 4, bias=False, bidirectional=True, recurrent_dropout=0.5, gate_masks='tied', "
            "time_masks='fresh', mask_sharing='sequence')",
        ),
        (
            VariationalRNN(3, 4, batch_first=True, input_dropout=0.5, mask_sharing="batch"),
            "VariationalRNN(3, 4, batch_first=True, input_dropout=0.5, gate_masks='tied', time_masks='constant', "
            "mask_sharing='batch')",
        ),
    ],
    ids=["lstm", "gru", "rnn"],
)  # fmt: skip
def test_representation_is_torchs_with_the_dropout_scheme(rnn, shown):
    assert repr(rnn) == shown
