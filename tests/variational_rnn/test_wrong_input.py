"""Wrong arguments are refused in every mode, by an error that names the argument, what was given and what fits."""

import re

import numpy
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from variational_rnn import (
    LayerMasks,
    RNNMasks,
    VariationalDropout,
    VariationalEmbedding,
    VariationalGRU,
    VariationalGRUCell,
    VariationalLSTM,
    VariationalLSTMCell,
    VariationalRNN,
    VariationalRNNCell,
)

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

LAYERS = [VariationalLSTM, VariationalGRU, VariationalRNN]
DROPOUT = {"input_dropout": 0.4, "recurrent_dropout": 0.6}
MODES = {"training": (True, {}), "eval": (False, {})}
X, X_UNBATCHED, H = torch.zeros(5, 2, 3), torch.zeros(5, 3), torch.zeros(1, 2, 4)
PACKED = pack_sequence([torch.zeros(3, 3)] * 2)
any_layer = pytest.mark.parametrize("ours", LAYERS)
any_mode = pytest.mark.parametrize(("training", "scheme"), MODES.values(), ids=MODES)


def layer_of(ours, training=True, scheme=None, **kwargs):
    return ours(3, 4, **DROPOUT, **(scheme or {}), **kwargs).train(training)


def state_of(ours, hx):
    return (hx, hx) if ours is VariationalLSTM and hx is not None else hx


def table(argnames, rows):
    """Parametrize by a dictionary from what is wrong to the arguments."""
    return pytest.mark.parametrize(argnames, rows.values(), ids=rows)


@any_layer
@any_mode
@table(
    ("x", "error", "message"),
    {
        "features": (torch.zeros(5, 2, 7), RuntimeError, "input_size. Expected 3, got 7"),
        "features of one sequence": (torch.zeros(5, 7), RuntimeError, "input_size. Expected 3, got 7"),
        "features, packed": (pack_sequence([torch.zeros(2, 7)]), RuntimeError, "input_size. Expected 3, got 7"),
        "1 dimension": (torch.zeros(3), ValueError, "Expected input to be 2D or 3D, got 1D instead: [3]"),
        "4 dimensions": (X[..., None], ValueError, "Expected input to be 2D or 3D, got 4D instead: [5, 2, 3, 1]"),
        "integers": (X.long(), ValueError, "input dtype (torch.int64) does not match weight dtype (torch.float32)"),
        "double precision": (X.double(), ValueError, "input dtype (torch.float64) does not match"),
        "integers, packed": (pack_sequence([X.long()[:, 0]]), ValueError, "input dtype (torch.int64) does not match"),
        "no step": (X[:0], RuntimeError, "to be larger than 0, got input [0, 2, 3]"),
        "no step of one sequence": (
            X_UNBATCHED[:0],
            RuntimeError,
            "to be larger than 0, got input [0, 3]",
        ),
        "a list": ([[0.0] * 3], TypeError, "input must be a tensor or a PackedSequence, got list"),
        "an array": (X.numpy(), TypeError, "input must be a tensor or a PackedSequence, got ndarray"),
        "nothing": (None, TypeError, "input must be a tensor or a PackedSequence, got NoneType"),
        "another device": (X.to("meta"), RuntimeError, "device"),
    },
)
def test_a_wrong_input_is_refused(ours, training, scheme, x, error, message):
    with pytest.raises(error, match=re.escape(message)):
        layer_of(ours, training, scheme)(x)


@any_layer
@any_mode
def test_no_step_is_refused_with_batch_first_too(ours, training, scheme):
    with pytest.raises(RuntimeError, match=re.escape("to be larger than 0, got input [2, 0, 3]")):
        layer_of(ours, training, scheme, batch_first=True)(torch.zeros(2, 0, 3))


@any_layer
@any_mode
@table(
    ("x", "hx", "message"),
    {
        "another batch": (X, torch.zeros(1, 3, 4), r"\(1, 2, 4\), got \[1, 3, 4\]"),
        "other layers": (X, torch.zeros(2, 2, 4), r"\(1, 2, 4\), got \[2, 2, 4\]"),
        "another size": (X, torch.zeros(1, 2, 5), r"\(1, 2, 4\), got \[1, 2, 5\]"),
        "other layers, one sequence": (X_UNBATCHED, torch.zeros(2, 4), r"\(1, 1, 4\), got \[2, 1, 4\]"),
        "2 dimensions": (X, torch.zeros(1, 4), r"For batched .*3.* got"),
        "4 dimensions": (X, H[..., None], r"For batched .*3.* got"),
        "3 dimensions, one sequence": (X_UNBATCHED, torch.zeros(1, 1, 4), r"For unbatched .*2.* got"),
        "double precision": (X, H.double(), "dtype"),
        "double precision, packed": (PACKED, H.double(), "dtype"),
        "another device": (X, H.to("meta"), "device"),
    },
)
def test_a_state_of_the_wrong_form_is_refused(ours, training, scheme, x, hx, message):
    with pytest.raises(RuntimeError, match=message):
        layer_of(ours, training, scheme)(x, state_of(ours, hx))


def test_a_layer_that_was_pickled_before_it_had_an_option_has_its_default():
    gru = VariationalGRU(3, 4, recurrent_dropout=0.5)
    state = gru.__getstate__()
    del state["memory_scale"]
    older = VariationalGRU.__new__(VariationalGRU)
    older.__setstate__(state)
    x, masks = torch.randn(5, 2, 3), gru.sample_masks(2)
    assert torch.equal(older(x, masks=masks)[0], gru(x, masks=masks)[0])
    assert older.sample_masks(2, generator=1).layers[0].recurrent.shape == masks.layers[0].recurrent.shape


@pytest.mark.parametrize("scheme", [{}, DROPOUT])
@pytest.mark.parametrize(
    ("ours", "torchs"), [(VariationalLSTM, nn.LSTM), (VariationalGRU, nn.GRU), (VariationalRNN, nn.RNN)]
)
@pytest.mark.parametrize(
    ("x_shape", "h_shape"),
    [((5, 2, 7), None), ((3,), None), ((0, 2, 3), None), ((5, 2, 3), (1, 3, 4)), ((5, 2, 3), (1, 2, 5)),
     ((5, 2, 3), (2, 4)), ((5, 3), (1, 1, 4))],
)  # fmt: skip
def test_wrong_sizes_are_refused_as_torchs_layers_refuse_them(ours, torchs, x_shape, h_shape, scheme):
    x, hx = torch.zeros(x_shape), None if h_shape is None else state_of(ours, torch.zeros(h_shape))
    with pytest.raises((RuntimeError, ValueError)) as torchs_error:
        torchs(3, 4)(x, hx)
    begin = str(torchs_error.value).removeprefix(f"{torchs.__name__}: ")
    words = begin.split(" in RNN")[0].split(", hx")[0].split(" tensor instead")[0]
    with pytest.raises(torchs_error.type, match=re.escape(words)):
        ours(3, 4, **scheme)(x, hx)


@any_layer
@any_mode
@pytest.mark.parametrize("shape", [(1, 1, 4), (2, 2, 4), (1, 2, 5)], ids=["batch", "layers", "size"])
def test_a_state_of_another_size_than_a_packed_input_is_refused_before_torchs_kernel_reads_beyond_its_end(
    monkeypatch, ours, training, scheme, shape
):
    def kernel(*args):
        raise AssertionError("torch's kernel got the wrong state")  # torch.nn.LSTM's corrupts memory

    for name in ("lstm", "gru", "rnn_tanh"):
        monkeypatch.setattr(nn.modules.rnn._VF, name, kernel)
    with pytest.raises(RuntimeError, match=rf"\(1, 2, 4\), got {re.escape(str(list(shape)))}"):
        layer_of(ours, training, scheme)(PACKED, state_of(ours, torch.zeros(shape)))


@any_layer
@pytest.mark.parametrize("scheme", [{}, {"mask_sharing": "batch"}])
def test_with_masks_on_a_state_of_another_dtype_is_refused_naming_both(ours, scheme):
    with pytest.raises(RuntimeError, match=r"hidden.* input, torch\.float32, got torch\.float64"):
        layer_of(ours, scheme=scheme)(X, state_of(ours, H.double()))


@any_mode
@pytest.mark.parametrize("wrong", ["h", "c"])
def test_either_part_of_an_lstms_state_is_checked(training, scheme, wrong):
    right, other = torch.zeros(1, 2, 4), torch.zeros(1, 3, 4)
    with pytest.raises(RuntimeError, match=r"\(1, 2, 4\), got \[1, 3, 4\]"):
        layer_of(VariationalLSTM, training, scheme)(X, (other, right) if wrong == "h" else (right, other))


@any_mode
def test_the_h_of_a_projected_lstm_is_as_wide_as_the_projection_and_the_c_as_the_layer(training, scheme):
    lstm, h, c = layer_of(VariationalLSTM, training, scheme, proj_size=2), torch.zeros(1, 2, 2), torch.zeros(1, 2, 4)
    lstm(X, (h, c))
    with pytest.raises(RuntimeError, match=r"\(1, 2, 2\), got \[1, 2, 4\]"):
        lstm(X, (c, c))
    with pytest.raises(RuntimeError, match=r"\(1, 2, 4\), got \[1, 2, 2\]"):
        lstm(X, (h, h))


@any_mode
@pytest.mark.parametrize(
    ("ours", "hx"),
    [
        (VariationalLSTM, H),
        (VariationalLSTM, (H,)),
        (VariationalLSTM, (H, H, H)),
        (VariationalLSTM, (H, None)),
        (VariationalGRU, (H, H)),
        (VariationalGRU, [H]),
        (VariationalRNN, (H,)),
        (VariationalRNN, 0.0),
    ],
)
def test_a_state_of_another_kind_of_network_is_refused_naming_class_and_what_it_takes(training, scheme, ours, hx):
    expected = "a pair of tensors (h, c)" if ours is VariationalLSTM else "a tensor"
    message = f"hx of a {ours.__name__} must be {expected}, got {type(hx).__name__}"
    with pytest.raises(TypeError, match=re.escape(message)):
        layer_of(ours, training, scheme)(X, hx)


def masks_of(ours, *sizes, batch_size=2, **scheme):
    return ours(*sizes, **DROPOUT, **scheme).sample_masks(batch_size, 5)


@any_layer
@any_mode
@table(
    ("make", "error", "message"),
    {
        "of one layer": (lambda ours: masks_of(ours, 3, 4).layers[0], TypeError, "must be RNNMasks.*got LayerMasks"),
        "a tensor": (lambda ours: torch.ones(1, 1, 2, 3), TypeError, "must be RNNMasks.*got Tensor"),
        "a tuple": (lambda ours: tuple(masks_of(ours, 3, 4)), TypeError, "must be RNNMasks.*got tuple"),
        "an array": (
            lambda ours: RNNMasks((LayerMasks(input=torch.ones(1, 1, 2, 3).numpy()),)),
            TypeError,
            "input mask of l0 must be a tensor or None, got ndarray",
        ),
        "other input": (
            lambda ours: masks_of(ours, 7, 4),
            ValueError,
            r"input mask of l0 has shape \[1, 1, 2, 7\], expected \[.*batch 1\|2, features 3\]",
        ),
        "other hidden size": (
            lambda ours: masks_of(ours, 3, 5),
            ValueError,
            r"recurrent mask of l0 has shape \[1, 1, 2, 5\], expected \[.*features 4\]",
        ),
        "another batch": (
            lambda ours: masks_of(ours, 3, 4, batch_size=3),
            ValueError,
            r"input mask of l0 has shape \[1, 1, 3, 3\], expected \[.*batch 1\|2, features 3\]",
        ),
        "other layers": (lambda ours: masks_of(ours, 3, 4, 2), ValueError, "of 2 layers and directions, this .* has 1"),
        "other directions": (
            lambda ours: masks_of(ours, 3, 4, bidirectional=True),
            ValueError,
            "of 2 layers and directions, this .* has 1",
        ),
        "another dtype": (
            lambda ours: masks_of(ours, 3, 4).to(torch.float64),
            ValueError,
            r"input mask of l0 has dtype torch.float64, expected torch.float32: convert",
        ),
        "another device": (
            lambda ours: masks_of(ours, 3, 4).to("meta"),
            ValueError,
            r"input mask of l0 has device meta, expected cpu: convert",
        ),
    },
)
def test_masks_that_do_not_fit_are_refused(ours, training, scheme, make, error, message):
    with pytest.raises(error, match=message):
        layer_of(ours, training, scheme)(X, masks=make(ours))


@pytest.mark.parametrize("layer", [torch.ones(1, 1, 2, 3), (None, None, None), None], ids=["tensor", "tuple", "none"])
def test_masks_whose_layers_are_no_layer_masks_are_refused_naming_the_type_that_fits(layer):
    with pytest.raises(TypeError, match=f"LayerMasks.*got {type(layer).__name__}"):
        layer_of(VariationalGRU)(X, masks=RNNMasks((layer,)))


@any_mode
@pytest.mark.parametrize("ours", [VariationalGRU, VariationalRNN])
def test_memory_masks_are_refused_where_there_are_no_memory_cells(ours, training, scheme):
    masks = masks_of(VariationalLSTM, 3, 4, memory_dropout=0.5)
    with pytest.raises(ValueError, match=f"memory mask of l0 is given, but a {ours.__name__} has no memory cells"):
        layer_of(ours, training, scheme)(X, masks=masks)


@any_mode
def test_the_recurrent_mask_of_a_projected_lstm_is_as_wide_as_the_projection_and_the_memory_mask_as_the_layer(
    training, scheme
):
    lstm = layer_of(VariationalLSTM, training, scheme, proj_size=2, memory_dropout=0.5)
    lstm(X, masks=lstm.sample_masks(2))
    with pytest.raises(ValueError, match=r"recurrent mask of l0 has shape \[1, 1, 2, 4\], expected \[.*features 2\]"):
        lstm(X, masks=RNNMasks((LayerMasks(recurrent=torch.ones(1, 1, 2, 4)),)))
    with pytest.raises(ValueError, match=r"memory mask of l0 has shape \[2, 2\], expected \[.*features 4\]"):
        lstm(X, masks=RNNMasks((LayerMasks(memory=torch.ones(2, 2)),)))


@any_layer
@table(
    ("kwargs", "error", "message"),
    {
        "dropout": ({"dropout": 0.3}, ValueError, "dropout=0.3 .* must be 0: use input_dropout"),
        "bidirectional": (
            {"bidirectional": 1},
            TypeError,
            "bidirectional must be True or False, got 1; torch.nn has dropout in this place",
        ),
        "no bidirectional": (
            {"bidirectional": None},
            TypeError,
            "bidirectional must be True or False, got None; torch.nn has dropout in this place",
        ),
        "mask_sharing": ({"mask_sharing": "all"}, ValueError, "^mask_sharing .* 'sequence', 'batch', got 'all'$"),
        "gate_masks": (
            {"gate_masks": None},
            ValueError,
            "^gate_masks .* 'tied', 'untied', got None$",
        ),
        "time_masks": ({"time_masks": True}, ValueError, "^time_masks .* 'constant', 'fresh', got True$"),
        "backend": ({"backend": ["auto"]}, ValueError, r"^backend .* 'auto', 'reference', got \['auto'\]$"),
        "num_layers": ({"num_layers": 0}, ValueError, "^num_layers must be greater than zero$"),
    },
)
def test_a_wrong_option_is_refused_naming_it_what_was_given_and_what_is_allowed(ours, kwargs, error, message):
    with pytest.raises(error, match=message):
        ours(3, 4, **kwargs)


@pytest.mark.parametrize("ours", [VariationalGRU, VariationalRNN])
def test_what_only_an_lstm_has_is_refused_by_name(ours):
    with pytest.raises(TypeError, match="'memory_dropout'"):
        ours(3, 4, memory_dropout=0.5)
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
        ours(3, 4, proj_size=2)


@pytest.mark.parametrize("proj_size", [-1, 4, 5])
def test_a_projection_that_is_not_smaller_than_the_layer_is_refused(proj_size):
    with pytest.raises(ValueError, match="proj_size"):
        VariationalLSTM(3, 4, proj_size=proj_size)


@pytest.mark.parametrize("rest", [(0.5,), (0.0,), (0, True)], ids=["p", "p 0", "p and bidirectional"])
@pytest.mark.parametrize(
    ("ours", "torchs", "arguments"),
    [
        (VariationalLSTM, nn.LSTM, (3, 4, 2, True, False)),
        (VariationalGRU, nn.GRU, (3, 4, 2, True, False)),
        (VariationalRNN, nn.RNN, (3, 4, 2, "tanh", True, False)),
    ],
)
def test_dropout_in_the_place_where_torch_has_it_is_not_taken_for_bidirectional(ours, torchs, arguments, rest):
    torchs(*arguments, *rest)
    with pytest.raises(TypeError, match=r"bidirectional must be True or False.*use input_dropout instead, and name"):
        ours(*arguments, *rest)


@pytest.mark.parametrize("p", ["0.5", True, None, torch.tensor(0.5), 0.5j], ids=repr)
@pytest.mark.parametrize(
    ("ours", "name"),
    [*((ours, name) for ours in LAYERS for name in DROPOUT), (VariationalLSTM, "memory_dropout")],
)
def test_a_probability_that_is_no_number_is_refused_by_name(ours, name, p):
    with pytest.raises(
        ValueError, match=re.escape(f"{name} is the probability to drop and must lie in [0, 1), got {p!r}")
    ):
        ours(3, 4, **{name: p})


@any_layer
def test_a_seed_is_as_good_as_a_generator(ours):
    rnn = layer_of(ours, bidirectional=True, num_layers=2)
    torch.testing.assert_close(
        rnn.sample_masks(2, generator=1),
        rnn.sample_masks(2, generator=torch.Generator().manual_seed(1)),
        rtol=0,
        atol=0,
    )


@any_layer
@pytest.mark.parametrize("generator", [1.5, "1", torch.tensor(1)], ids=repr)
def test_a_source_of_randomness_of_another_type_is_refused(ours, generator):
    with pytest.raises(TypeError, match="generator"):
        layer_of(ours).sample_masks(2, generator=generator)


@any_layer
@pytest.mark.parametrize("scheme", [{}, {"time_masks": "fresh"}])
def test_a_negative_number_of_sequences_or_steps_is_refused(ours, scheme):
    with pytest.raises(RuntimeError, match="negative dimension -1"):
        layer_of(ours, scheme=scheme).sample_masks(-1, 5)


def test_a_seed_may_be_an_integer_of_numpy():
    rnn = VariationalGRU(3, 4, input_dropout=0.5)
    one, same = (rnn.sample_masks(2, generator=seed).layers[0].input for seed in (numpy.int64(3), 3))
    assert torch.equal(one, same)


@any_layer
def test_a_probability_is_checked_whenever_it_is_set(ours):
    rnn = ours(3, 4, recurrent_dropout=0.5)
    with pytest.raises(ValueError, match=r"recurrent_dropout is the probability to drop .* got 1\.0"):
        rnn.recurrent_dropout = 1.0
    assert rnn.recurrent_dropout == 0.5
    rnn.recurrent_dropout = 0
    assert rnn.sample_masks(2).layers[0].recurrent is None


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        *((layer, name, value) for layer in [
            VariationalLSTM(3, 4), VariationalGRU(3, 4), VariationalRNN(3, 4),
            VariationalLSTMCell(3, 4), VariationalGRUCell(3, 4), VariationalRNNCell(3, 4),
        ] for name, value in [("input_dropout", -0.1), ("recurrent_dropout", 1), ("gate_masks", "united")]),
        *((layer, name, value) for layer in [VariationalLSTM(3, 4), VariationalLSTMCell(3, 4)]
          for name, value in [("memory_dropout", 1.0), ("memory_scale", "write")]),
        *((VariationalLSTM(3, 4), name, value)
          for name, value in [("time_masks", "naive"), ("mask_sharing", "all"), ("backend", "fast")]),
        (VariationalEmbedding(3, 4), "word_dropout", True),
        (VariationalEmbedding(3, 4), "word_masks", "row"),
        (VariationalEmbedding(3, 4), "mask_sharing", None),
        (VariationalDropout(0.5), "p", 1.0),
        (VariationalDropout(0.5), "time_masks", "once"),
        (VariationalDropout(0.5), "mask_sharing", 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else repr(value),
)  # fmt: skip
def test_what_the_constructor_refuses_cannot_be_set_later(module, name, value):
    before = getattr(module, name)
    with pytest.raises(ValueError, match=f"^{name} .*got {value!r}$"):
        setattr(module, name, value)
    assert getattr(module, name) == before
