"""A cell that torch does not have needs a step in the table, a layer and a cell, and no kernel."""

import copy

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from variational_rnn import functional, mc_dropout
from variational_rnn.cells import VariationalCellBase
from variational_rnn.functional import Cell, masked_linear
from variational_rnn.modules import CellRNNBase, VariationalBase

DROPOUT = {"input_dropout": 0.3, "recurrent_dropout": 0.4}


def mgu_step(x_gates, state, weights, masks):
    """The minimal gated unit (Zhou et al. 2016), which drops h before it multiplies h by the gate."""
    [h] = state
    x_f, x_n = x_gates.chunk(2, dim=-1)
    u_f, u_n = weights.hh.chunk(2)
    b_f, b_n = weights.bias_hh.chunk(2)
    z_f, z_n = (None, None) if masks.recurrent is None else masks.recurrent.expand(2, -1, -1).split(1)
    f = (x_f + masked_linear(h, u_f, b_f, z_f)).sigmoid()
    n = (x_n + masked_linear(f * h, u_n, b_n, z_n)).tanh()
    return (h + f * (n - h),)


class VariationalMGU(VariationalBase, CellRNNBase):
    def __init__(self, *sizes, gate_masks="tied", time_masks="constant", backend="auto", **options):
        dropout = {name: options.pop(name) for name in DROPOUT}
        super().__init__("MGU", *sizes, **options)
        self._init_dropout(time_masks, "sequence", backend, 0.0, (), gate_masks=gate_masks, **dropout)


class VariationalMGUCell(VariationalCellBase):
    mode = "MGU"

    def __init__(self, input_size, hidden_size, gate_masks="tied"):
        super().__init__(input_size, hidden_size, bias=True, num_chunks=functional.CELLS["MGU"].gates)
        self._set_dropout(**DROPOUT, gate_masks=gate_masks)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(functional.CELLS, "MGU", Cell(2, mgu_step))


@pytest.mark.parametrize("gate_masks", ["tied", "untied"])
def test_each_sequence_is_computed_as_alone_with_masked_weights(gate_masks):
    mgu, x = VariationalMGU(5, 7, gate_masks=gate_masks, **DROPOUT), torch.randn(6, 3, 5)
    masks = mgu.sample_masks(3)
    output, state = mgu(x, masks=masks)
    assert state.shape == (1, 3, 7)
    for sequence in range(3):
        alone = copy.deepcopy(mgu).eval()
        with torch.no_grad():
            for weight, mask in (
                (alone.weight_ih_l0, masks.layers[0].input),
                (alone.weight_hh_l0, masks.layers[0].recurrent),
            ):
                weight.view(2, 7, -1).mul_(mask[0, :, sequence, None])
        torch.testing.assert_close(alone(x[:, sequence : sequence + 1])[0], output[:, sequence : sequence + 1])


@pytest.mark.parametrize("gate_masks", ["tied", "untied"])
def test_a_loop_over_the_cell_is_the_layer_with_and_without_dropout(gate_masks):
    mgu, x = VariationalMGU(5, 7, gate_masks=gate_masks, **DROPOUT), torch.randn(6, 3, 5)
    cell = VariationalMGUCell(5, 7, gate_masks)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in mgu.state_dict().items()})
    masks = mgu.sample_masks(3)
    for layer_masks in (masks, None):
        mgu.train(layer_masks is not None), cell.train(layer_masks is not None)
        h = None
        for x_t in x:
            h = cell(x_t, h, None if layer_masks is None else layer_masks.layers[0])
        torch.testing.assert_close(h, mgu(x, masks=layer_masks)[0][-1])


def test_it_trains_in_layers_and_directions_and_reads_packed_sequences_under_mc_dropout():
    mgu = VariationalMGU(5, 7, 2, bidirectional=True, **DROPOUT)
    mgu(torch.randn(6, 3, 5))[0].sum().backward()
    assert all(parameter.grad.any() for parameter in mgu.parameters())
    packed = pack_sequence([torch.randn(4, 5), torch.randn(2, 5)])
    with mc_dropout(mgu.eval()):
        assert not torch.equal(mgu(packed)[0].data, mgu(packed)[0].data)
    assert torch.equal(mgu(packed)[0].data, mgu(packed)[0].data)
