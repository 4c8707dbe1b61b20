"""The equations of one time step, the table of cells, and their unrolling over time: the readable reference.

Pure functions of tensors. Shapes: T time, B batch, I input size, H hidden size, P size of h (H, or proj_size for an
LSTM with a projection), G gates.
Gate order, parameters and equations of LSTM, GRU and RNN are those of torch.nn, so its weights can be used as they are.

No dropped-out weight matrix is computed. Zeroing row k of W for one sequence is the same as zeroing coordinate k of
that sequence's input to the product: x diag(z) W = (x * z) W (section 4 of the paper). The mask therefore multiplies
the input of a matrix product, never the carried state: a scaled state would grow by 1/(1-p) at every step of a GRU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from variational_rnn.masks import LayerMasks

State = tuple[Tensor, ...]
"""(h, c) of an LSTM, (h,) of a GRU or RNN; h is [B, P], c [B, H]."""


class Weights(NamedTuple):
    """The parameters of one layer in one direction, or of a cell.

    Attributes:
        ih: [G*H, I].
        hh: [G*H, P].
        bias_ih: [G*H] or None.
        bias_hh: [G*H] or None.
        hr: projection of an LSTM, [P, H], or None.
    """

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    hr: Tensor | None = None


Step = Callable[[Tensor, State, Weights, LayerMasks], State]
"""(x_gates [B, G*H], state, weights, masks) -> next state. x_gates is W x + b; `masks.recurrent` is that of the time
step, [G|1, B|1, P]."""


class Cell(NamedTuple):
    """A kind of recurrent layer.

    Attributes:
        gates: number of gates G.
        step: one time step.
        has_memory: whether the state is (h, c), as an LSTM's, or (h,).
        torch_kernel: torch's own function for whole layers without dropout, if it has one.
    """

    gates: int
    step: Step
    has_memory: bool = False
    torch_kernel: Callable[..., Any] | None = None


def hard_sigmoid(x: Tensor) -> Tensor:
    """min(max(0.2 x + 0.5, 0), 1), the sigmoid of Keras' first years. The slope of torch's hard sigmoid is 1/6."""
    return F.hardsigmoid(1.2 * x)


def lstm_step(
    x_gates: Tensor,
    state: State,
    weights: Weights,
    masks: LayerMasks,
    *,
    sigmoid: Callable[[Tensor], Tensor] = torch.sigmoid,
) -> State:
    """One LSTM step: c' = f*c + i*g, h' = o*tanh(c'), with a projection h' = W_hr (o*tanh(c')).

    With a memory mask (Moon et al. 2015; equation 9 of the paper) the c of masked cells is held at zero. Inside the
    recursion the mask is binary, because an inverted one would multiply a kept cell by 1/(1-p) at every step; the scale
    1/(1-p) is put on h, where the cell is read. A mask in the loop does multiply c at every step, as equation 9 is
    written.

    Args:
        x_gates: [B, 4H], gates in torch's order i, f, g, o.
        state: (h, c), [B, P] and [B, H].
        weights: of the layer.
        masks: of the time step.
        sigmoid: the activation of i, f and o.
    """
    h, c = state
    i, f, g, o = (x_gates + recurrent_product(h, weights, masks)).chunk(4, dim=-1)
    c = sigmoid(f) * c + sigmoid(i) * g.tanh()
    if masks.memory_in_loop is not None:
        c = c * masks.memory_in_loop
    h = sigmoid(o) * c.tanh()
    if masks.memory is not None:
        c = c * (masks.memory != 0)
        h = h * masks.memory
    return (h if weights.hr is None else F.linear(h, weights.hr)), c


def gru_step(x_gates: Tensor, state: State, weights: Weights, masks: LayerMasks) -> State:
    """One GRU step as torch and cuDNN define it: n = tanh(W x + b + r*(U h + b')), h' = (1-z)*n + z*h.

    The gates in x_gates, [B, 3H], are in torch's order r, z, n.
    """
    [h] = state
    x_r, x_z, x_n = x_gates.chunk(3, dim=-1)
    h_r, h_z, h_n = recurrent_product(h, weights, masks).chunk(3, dim=-1)
    n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return (n + (x_z + h_z).sigmoid() * (h - n),)


def rnn_tanh_step(x_gates: Tensor, state: State, weights: Weights, masks: LayerMasks) -> State:
    """One step of the simple network: h' = tanh(W x + b + U h + b')."""
    return ((x_gates + recurrent_product(state[0], weights, masks)).tanh(),)


def rnn_relu_step(x_gates: Tensor, state: State, weights: Weights, masks: LayerMasks) -> State:
    """One step of the simple network with rectifier: h' = max(0, W x + b + U h + b')."""
    return ((x_gates + recurrent_product(state[0], weights, masks)).relu(),)


CELLS: dict[str, Cell] = {
    "LSTM": Cell(4, lstm_step, has_memory=True, torch_kernel=torch.lstm),
    "GRU": Cell(3, gru_step, torch_kernel=torch.gru),
    "RNN_TANH": Cell(1, rnn_tanh_step, torch_kernel=torch.rnn_tanh),
    "RNN_RELU": Cell(1, rnn_relu_step, torch_kernel=torch.rnn_relu),
    "HARD_LSTM": Cell(4, partial(lstm_step, sigmoid=hard_sigmoid), has_memory=True),
}
"""Cells by their mode, for torch's own the name that it uses (`torch.nn.RNNBase.mode`). `unroll` runs any of them;
`kernels` knows faster ways for some."""


def recurrent_product(h: Tensor, weights: Weights, masks: LayerMasks) -> Tensor:
    """U (h * mask) + b', [B, G*H], with the recurrent mask of one time step."""
    return masked_linear(h, weights.hh, weights.bias_hh, masks.recurrent)


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    """(x * mask) W^T + b, with one mask for all gates or one for each.

    Args:
        x: [..., B, I].
        weight: [G*H, I].
        bias: [G*H] or None.
        mask: [..., G|1, B|1, I] or None.

    Returns:
        [..., B, G*H].
    """
    if mask is None:
        return F.linear(x, weight, bias)
    if mask.size(-3) == 1:
        return F.linear(x * mask.squeeze(-3), weight, bias)
    weight_GIH = weight.unflatten(0, (mask.size(-3), -1)).transpose(1, 2)
    product = ((x.unsqueeze(-3) * mask) @ weight_GIH).transpose(-3, -2).flatten(-2)  # [..., B, G*H]
    return product if bias is None else product + bias


def masked_weight(weight: Tensor, mask: Tensor | None) -> Tensor:
    """Mask the columns of a weight matrix, for sequences that share the mask.

    Args:
        weight: [G*H, I].
        mask: [1, G|1, 1, I] or None.

    Returns:
        [G*H, I].
    """
    if mask is None:
        return weight
    mask_GI = mask[0, :, 0]
    return (weight.unflatten(0, (mask_GI.size(0), -1)) * mask_GI.unsqueeze(1)).flatten(0, 1)


def unroll(
    mode: str,
    x: Tensor,
    state: State,
    weights: Weights,
    masks: LayerMasks,
    *,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, State]:
    """Run one layer in one direction over a sequence.

    The input product does not depend on the state, so it is done for all time steps at once.

    Args:
        mode: key of the cell in `CELLS`.
        x: [T, B, I].
        state: the initial state.
        weights: of this layer and direction.
        masks: of this layer and direction.
        lengths: [B], of sequences shorter than T, whose state stays as it is after their end.
        reverse: run from the last step to the first.

    Returns:
        The hidden states [T, B, P] in the order of x, and the final state.
    """
    x_gates = masked_linear(x, weights.ih, weights.bias_ih, masks.input)
    return unroll_gates(mode, x_gates, state, weights, masks, lengths=lengths, reverse=reverse)


def unroll_gates(
    mode: str,
    x_gates: Tensor,
    state: State,
    weights: Weights,
    masks: LayerMasks,
    *,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, State]:
    """The time steps of `unroll`, with its arguments, on an input product W x + b, [T, B, G*H]."""
    step = CELLS[mode].step
    if masks.memory is not None and weights.hr is None:  # a projected h is a mixture of cells and stays
        h, c = state
        state = (h * (masks.memory != 0), c)
    times = range(x_gates.size(0))
    valid = None
    if lengths is not None:
        valid = (torch.arange(len(times), device=x_gates.device).unsqueeze(1) < lengths).unsqueeze(-1)  # [T, B, 1]
    # unbind, not indexing: the gradient of each x_gates[t] would be a zero tensor of the size of all x_gates.
    x_gates_t = x_gates.unbind(0)
    recurrent = masks.recurrent
    outputs: list[Tensor] = []
    for t in reversed(times) if reverse else times:
        if recurrent is not None:
            masks = masks._replace(recurrent=recurrent[t if recurrent.size(0) > 1 else 0])
        new_state = step(x_gates_t[t], state, weights, masks)
        # Autocast computes gates in lower precision; the state stays in its own.
        new_state = tuple(new.to(old.dtype) for new, old in zip(new_state, state, strict=True))
        if valid is not None:
            new_state = tuple(torch.where(valid[t], new, old) for new, old in zip(new_state, state, strict=True))
        state = new_state
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs), state
