"""Dropout of memory cells (Moon et al. 2015): a cell with mask 0 is a unit that is not there."""

import pytest
import torch
from torch import nn

from variational_rnn import LayerMasks, RNNMasks, VariationalGRU, VariationalLSTM, VariationalLSTMCell, VariationalRNN


def lstm_of_kept_units(lstm, layer, inputs, kept, scale_of_inputs, scale):
    """The layer with units taken out; a kept one is read, from above and by the recurrence, times its scale."""
    rows = kept.repeat(4)
    smaller = nn.LSTM(int(inputs.sum()), int(kept.sum()), dtype=torch.float64)
    parameters = dict(lstm.named_parameters())
    smaller.load_state_dict(
        {
            "weight_ih_l0": parameters[f"weight_ih_l{layer}"][rows][:, inputs] * scale_of_inputs,
            "weight_hh_l0": parameters[f"weight_hh_l{layer}"][rows][:, kept] * scale,
            "bias_ih_l0": parameters[f"bias_ih_l{layer}"][rows],
            "bias_hh_l0": parameters[f"bias_hh_l{layer}"][rows],
        }
    )
    return smaller


def test_dropping_memory_cells_equals_a_smaller_lstm_without_these_units():
    lstm = VariationalLSTM(3, 8, 2, memory_dropout=0.4, dtype=torch.float64)
    masks = lstm.sample_masks(4)
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    output, (h_n, c_n) = lstm(x, masks=masks)
    for b in range(4):
        read, inputs, scale_of_inputs = x[:, b], torch.ones(3, dtype=torch.bool), 1.0
        for layer in range(2):
            kept = masks.layers[layer].memory[b] != 0
            smaller = lstm_of_kept_units(lstm, layer, inputs, kept, scale_of_inputs, scale=1 / 0.6)
            read, (h, c) = smaller(read)
            inputs, scale_of_inputs = kept, 1 / 0.6
            torch.testing.assert_close(c_n[layer, b, kept], c[0])
            torch.testing.assert_close(h_n[layer, b, kept], h[0] / 0.6)
        torch.testing.assert_close(output[:, b, kept], read / 0.6)
        assert not output[:, b, ~kept].any()


def test_a_dropped_unit_is_exactly_zero_after_one_step_and_a_kept_one_is_not():
    lstm = VariationalLSTM(3, 8, memory_dropout=0.5)
    masks = lstm.sample_masks(4)
    _, (h_n, c_n) = lstm(torch.randn(1, 4, 3), (torch.randn(1, 4, 8), torch.randn(1, 4, 8)), masks)
    kept = masks.layers[0].memory != 0
    assert torch.equal(h_n[0] != 0, kept)
    assert torch.equal(c_n[0] != 0, kept)


def test_a_kept_cell_is_not_scaled_up_over_200_steps():
    lstm = VariationalLSTM(3, 8, memory_dropout=0.5)
    nn.init.zeros_(lstm.weight_ih_l0)
    nn.init.zeros_(lstm.weight_hh_l0)
    with torch.no_grad():
        lstm.bias_ih_l0.view(4, 8)[:] = torch.tensor([[-50.0], [50.0], [0.0], [0.0]])  # i = 0, f = 1: c stays as it is
        lstm.bias_hh_l0.zero_()
    c_0 = torch.rand(1, 4, 8) + 0.5
    masks = lstm.sample_masks(4)
    output, (_, c_n) = lstm(torch.randn(200, 4, 3), (torch.zeros(1, 4, 8), c_0), masks)
    torch.testing.assert_close(c_n[0], c_0[0] * (masks.layers[0].memory != 0))
    torch.testing.assert_close(output[-1], masks.layers[0].memory * 0.5 * c_0[0].tanh())


@pytest.mark.parametrize("recurrent_dropout", [0.0, 0.5])
def test_gradcheck_with_memory_masks(recurrent_dropout):
    lstm = VariationalLSTM(2, 4, memory_dropout=0.5, recurrent_dropout=recurrent_dropout, dtype=torch.float64)
    masks = lstm.sample_masks(2)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    hx = tuple(torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    names, parameters = zip(*lstm.named_parameters(), strict=True)

    def call(x, h, c, *weights):
        output, state = torch.func.functional_call(lstm, dict(zip(names, weights, strict=True)), (x, (h, c), masks))
        return output, *state

    assert torch.autograd.gradcheck(call, (x, *hx, *parameters))


def test_a_memory_mask_of_ones_changes_nothing():
    lstm = VariationalLSTM(3, 8)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(lstm(x, masks=RNNMasks((LayerMasks(memory=torch.ones(2, 8)),))), lstm(x))


@pytest.mark.parametrize("without_memory", [VariationalGRU, VariationalRNN])
def test_a_memory_mask_is_refused_where_there_is_no_memory_cell(without_memory):
    masks = RNNMasks((LayerMasks(memory=torch.ones(2, 8)),))
    with pytest.raises(ValueError, match=f"memory.*{without_memory.__name__}|{without_memory.__name__}.*memory"):
        without_memory(3, 8)(torch.randn(5, 2, 3), masks=masks)


def test_memory_dropout_is_off_in_eval():
    lstm = VariationalLSTM(3, 8, memory_dropout=0.5).eval()
    assert lstm(torch.randn(5, 2, 3))[0].all()


def test_a_cell_removed_in_this_window_holds_nothing_from_the_one_before() -> None:
    lstm = VariationalLSTM(3, 4, memory_dropout=0.5, bias=False).double()
    x = torch.randn(1, 1, 3, dtype=torch.float64)
    memory = torch.tensor([[0.0, 2.0, 0.0, 2.0]], dtype=torch.float64)
    masks = RNNMasks((LayerMasks(memory=memory),))
    h, c = torch.randn(2, 1, 1, 4, dtype=torch.float64)
    kept = memory != 0
    whole = lstm(x, (h, c), masks)[0]
    assert torch.equal(whole, lstm(x, (h * kept, c * kept), masks)[0])
    assert not torch.equal(whole, lstm(x, (torch.zeros_like(h), c), masks)[0])


# --- scaled in the loop: equation 9 by the letter ---------------------------------------------------------------------


def test_a_mask_in_the_loop_multiplies_cells_at_every_step_as_equation_9_is_written():
    lstm = VariationalLSTM(3, 8, memory_dropout=0.4, memory_scale="loop", dtype=torch.float64)
    masks = lstm.sample_masks(4)
    z = masks.layers[0].memory_in_loop
    assert masks.layers[0].memory is None
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    h, c = (torch.randn(4, 8, dtype=torch.float64) for _ in range(2))
    output, (h_n, c_n) = lstm(x, (h[None], c[None]), masks)
    for t in range(6):
        pre = x[t] @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + h @ lstm.weight_hh_l0.T + lstm.bias_hh_l0
        i, f, g, o = pre.chunk(4, dim=1)
        c = (f.sigmoid() * c + i.sigmoid() * g.tanh()) * z
        h = o.sigmoid() * c.tanh()
        torch.testing.assert_close(output[t], h)
    torch.testing.assert_close(h_n[0], h)
    torch.testing.assert_close(c_n[0], c)


def test_a_kept_cell_grows_by_its_scale_at_every_step_if_the_mask_is_in_the_loop():
    lstm = VariationalLSTM(3, 8, memory_dropout=0.5, memory_scale="loop")
    nn.init.zeros_(lstm.weight_ih_l0)
    nn.init.zeros_(lstm.weight_hh_l0)
    with torch.no_grad():
        lstm.bias_ih_l0.view(4, 8)[:] = torch.tensor([[-50.0], [50.0], [0.0], [0.0]])  # i = 0, f = 1
        lstm.bias_hh_l0.zero_()
    masks = lstm.sample_masks(4)
    _, (_, c_n) = lstm(torch.zeros(10, 4, 3), (torch.zeros(1, 4, 8), torch.ones(1, 4, 8)), masks)
    torch.testing.assert_close(c_n[0], 2.0**10 * (masks.layers[0].memory_in_loop != 0))


@pytest.mark.parametrize("cell", [True, False], ids=["cell", "layer"])
def test_both_readings_have_the_same_masks_and_differ_in_what_they_do(cell):
    torch.manual_seed(0)
    make = VariationalLSTMCell if cell else VariationalLSTM
    read, loop = (make(3, 8, memory_dropout=0.5, memory_scale=scale) for scale in ("read", "loop"))
    loop.load_state_dict(read.state_dict())
    masks = [each.sample_masks(4, generator=1) for each in (read, loop)]
    first, second = (mask if cell else mask.layers[0] for mask in masks)
    assert torch.equal(first.memory, second.memory_in_loop)
    x = torch.randn(4, 3) if cell else torch.randn(5, 4, 3)
    results = [each(x, masks=mask)[0] for each, mask in zip((read, loop), masks, strict=True)]
    assert not torch.allclose(*results)


def test_a_mask_in_the_loop_is_moved_selected_and_no_shared_weight():
    masks = VariationalLSTM(3, 8, memory_dropout=0.5, memory_scale="loop").sample_masks(4)
    mask = masks.layers[0].memory_in_loop
    assert torch.equal(masks.select([2, 0]).layers[0].memory_in_loop, mask[[2, 0]])
    assert masks.to(torch.float64).layers[0].memory_in_loop.dtype == torch.float64
    assert not masks.layers[0].is_shared


@pytest.mark.parametrize("make", [VariationalLSTM, VariationalLSTMCell])
def test_an_unknown_scale_of_memory_cells_is_refused(make):
    with pytest.raises(ValueError, match="memory_scale must be one of 'read', 'loop', got 'test'"):
        make(3, 8, memory_scale="test")


@pytest.mark.parametrize("make", [VariationalGRU, VariationalRNN])
def test_a_layer_without_memory_cells_refuses_a_mask_in_the_loop(make):
    with pytest.raises(ValueError, match="has no memory cells"):
        make(3, 8)(torch.randn(2, 4, 3), masks=RNNMasks((LayerMasks(memory_in_loop=torch.ones(4, 8)),)))
