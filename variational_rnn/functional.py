"""What happens in one time step, and how steps unroll: the readable reference.

Pure functions over tensors. Shapes: T time, B batch, I input size, H hidden size, P size of h (H, or proj_size where an
LSTM projects), G gates (LSTM 4, GRU 3, RNN 1).
Gate order, parameters and equations are those of torch.nn.LSTM, GRU and RNN, so their weights can be used as they are.

A dropped-out weight matrix never exists here. Zeroing row k of W for one sequence is the same as zeroing coordinate k
of that sequence's input to the product: x diag(z) W = (x * z) W (section 4 of the paper). The mask therefore multiplies
what enters a matrix product, never the carried state: a scaled state would grow by 1/(1-p) at every step of a GRU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from variational_rnn.masks import LayerMasks

State = tuple[Tensor, ...]
"""(h, c) of an LSTM, (h,) of a GRU or RNN; h is [B, P], c [B, H]."""

Step = Callable[[Tensor, Tensor, State], State]
"""(x_gates [B, G*H], h_gates [B, G*H], state) -> next state."""

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
"""Number of gates by torch's name of the kind of network (`torch.nn.RNNBase.mode`)."""


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


def lstm_step(
    x_gates: Tensor,
    h_gates: Tensor,
    state: State,
    memory: Tensor | None = None,
    weight_hr: Tensor | None = None,
    memory_in_loop: Tensor | None = None,
    hard_gates: bool = False,
) -> State:
    """One LSTM step: c' = f*c + i*g, h' = o*tanh(c'), with a projection h' = W_hr (o*tanh(c')).

    With a memory mask (Moon et al. 2015; equation 9 of the paper) the masked cells are removed: their c is held at
    zero. Inside the recursion the mask is binary, because an inverted one would multiply a kept cell by 1/(1-p) at
    every step; the scale 1/(1-p) is put on h, where the cell is read. A mask in the loop does multiply c at every step,
    as equation 9 is written.

    Args:
        x_gates: W x + b, [B, 4H], gates in torch's order i, f, g, o.
        h_gates: U h + b', [B, 4H].
        state: (h, c), [B, P] and [B, H].
        memory: [B|1, H] with entries 0 or 1/(1-p).
        weight_hr: the projection, [P, H].
        memory_in_loop: as memory, applied in the other way.
        hard_gates: i, f and o are min(max(0.2 x + 0.5, 0), 1), the sigmoid of Keras' first years.
    """
    squash = hard_sigmoid if hard_gates else torch.sigmoid
    i, f, g, o = (x_gates + h_gates).chunk(4, dim=-1)
    c = squash(f) * state[1] + squash(i) * g.tanh()
    if memory_in_loop is not None:
        c = c * memory_in_loop
    h = squash(o) * c.tanh()
    if memory is not None:
        c = c * (memory != 0)
        h = h * memory
    return (h if weight_hr is None else F.linear(h, weight_hr)), c


def hard_sigmoid(x: Tensor) -> Tensor:
    """min(max(0.2 x + 0.5, 0), 1), in place of the sigmoid; torch's own has the slope 1/6."""
    return F.hardsigmoid(1.2 * x)


def gru_step(x_gates: Tensor, h_gates: Tensor, state: State) -> State:
    """One GRU step as torch and cuDNN define it: n = tanh(W x + b + r*(U h + b')), h' = (1-z)*n + z*h.

    Args:
        x_gates: W x + b, [B, 3H], gates in torch's order r, z, n.
        h_gates: U h + b', [B, 3H].
        state: (h,), [B, H].
    """
    x_r, x_z, x_n = x_gates.chunk(3, dim=-1)
    h_r, h_z, h_n = h_gates.chunk(3, dim=-1)
    n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return (n + (x_z + h_z).sigmoid() * (state[0] - n),)


def rnn_tanh_step(x_gates: Tensor, h_gates: Tensor, state: State) -> State:
    """One step of the simple network: h' = tanh(W x + b + U h + b')."""
    return ((x_gates + h_gates).tanh(),)


def rnn_relu_step(x_gates: Tensor, h_gates: Tensor, state: State) -> State:
    """One step of the simple network with rectifier: h' = max(0, W x + b + U h + b')."""
    return ((x_gates + h_gates).relu(),)


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
    """The weight matrix with its columns masked: what all sequences see if they share the mask.

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
    hard_gates: bool = False,
) -> tuple[Tensor, State]:
    """Run one layer in one direction over a sequence.

    The input product does not depend on the state, so it is done for all time steps at once.

    Args:
        mode: the kind of network, as torch names it: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
        x: [T, B, I].
        state: the initial state.
        weights: of this layer and direction.
        masks: of this layer and direction.
        lengths: [B], of sequences shorter than T: behind the end their state stays as it is.
        reverse: run from the last step to the first.
        hard_gates: of an LSTM, as in `lstm_step`.

    Returns:
        The hidden states [T, B, P] in the order of x, and the final state.
    """
    x_gates = masked_linear(x, weights.ih, weights.bias_ih, masks.input)
    return unroll_gates(mode, x_gates, state, weights, masks, lengths=lengths, reverse=reverse, hard_gates=hard_gates)


def unroll_gates(
    mode: str,
    x_gates: Tensor,
    state: State,
    weights: Weights,
    masks: LayerMasks,
    *,
    lengths: Tensor | None = None,
    reverse: bool = False,
    hard_gates: bool = False,
) -> tuple[Tensor, State]:
    """The time steps of `unroll`, with its arguments, on an input product W x + b, [T, B, G*H]."""
    steps: dict[str, Step] = {
        "LSTM": partial(
            lstm_step,
            memory=masks.memory,
            memory_in_loop=masks.memory_in_loop,
            weight_hr=weights.hr,
            hard_gates=hard_gates,
        ),
        "GRU": gru_step,
        "RNN_TANH": rnn_tanh_step,
        "RNN_RELU": rnn_relu_step,
    }
    step = steps[mode]
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
        mask = None if recurrent is None else recurrent[t if recurrent.size(0) > 1 else 0]
        h_gates = masked_linear(state[0], weights.hh, weights.bias_hh, mask)
        # Autocast computes gates in lower precision; the state stays in its own.
        new_state = tuple(new.to(old.dtype) for new, old in zip(step(x_gates_t[t], h_gates, state), state, strict=True))
        if valid is not None:
            new_state = tuple(torch.where(valid[t], new, old) for new, old in zip(new_state, state, strict=True))
        state = new_state
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs), state
