"""Recurrent layers on the CPU in C++ (`rnn.cpp`), with a hand-written gradient of the whole layer.

It computes in float32; under bfloat16 autocast the factors of products are rounded, if the processor has instructions
for them.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from variational_rnn import functional
from variational_rnn.kernels import build
from variational_rnn.kernels.build import in_memory
from variational_rnn.kernels.common import differentiable_gradients, is_plain, why_unsupported_layer
from variational_rnn.masks import LayerMasks

KINDS = {"LSTM": 0, "GRU": 1, "RNN_TANH": 2, "RNN_RELU": 3, "HARD_LSTM": 4}
"""The cells that it computes, by the number that `rnn.cpp` has for each."""


class _Mask(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("t", "g", "b")))


class _Layer(ctypes.Structure):
    """`struct Layer` of rnn.cpp."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "gates", "precision", "threads", "reverse")),
        *((name, ctypes.c_int64) for name in ("T", "B", "I", "H")),
        *((name, ctypes.c_void_p) for name in ("x", "weight_ih", "weight_hh", "bias", "bias_n")),
        ("input", _Mask),
        ("recurrent", _Mask),
        ("memory", ctypes.c_void_p),
        ("memory_b", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("lengths", "h0", "c0", "gate", "product_n", "h", "c")),
        *((name, ctypes.c_void_p) for name in ("dh", "dh_T", "dc_T", "dx", "dh0", "dc0")),
        *((name, ctypes.c_void_p) for name in ("dweight_ih", "dweight_hh", "dbias", "dbias_n")),
    )


def why_unsupported(
    mode: str, x: Tensor, state: functional.State, weights: functional.Weights, masks: LayerMasks
) -> str | None:
    """Why `unroll` cannot compute this layer, or None if it can."""
    reason = why_unsupported_layer(KINDS, mode, x, weights, masks)
    return reason or build.why_unsupported(x, *state, *weights, *masks)


def unroll(
    mode: str,
    x: Tensor,
    state: functional.State,
    weights: functional.Weights,
    masks: LayerMasks,
    *,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, functional.State]:
    """Run one layer in one direction over a sequence, as `functional.unroll` does."""
    if masks.memory is not None:
        state = (state[0] * (masks.memory != 0), state[1])
    has_memory = functional.CELLS[mode].has_memory
    h_0, c_0 = state if has_memory else (state[0], None)
    tensors = (in_memory(tensor) for tensor in (x.float(), h_0, c_0, *weights[:4]))
    masks = LayerMasks(*(in_memory(mask) for mask in masks))
    h, h_T, c_T = _Unroll.apply(mode, reverse, lengths, masks, *tensors)
    return h, ((h_T, c_T) if has_memory else (h_T,))


def _step(mask: Tensor, dim: int) -> int:
    return mask.stride(dim) if mask.size(dim) > 1 else 0


def _layer(
    mode: str,
    precision: int,
    reverse: bool,
    masks: LayerMasks,
    x: Tensor,
    h_0: Tensor,
    **tensors: Tensor | None,
) -> _Layer:
    """Describe a layer to the extension; the tensors must live on, and be contiguous."""
    steps, batch, inputs = x.shape
    layer = _Layer(
        KINDS[mode], functional.CELLS[mode].gates, precision, torch.get_num_threads(), reverse,
        steps, batch, inputs, h_0.size(1),
    )  # fmt: skip
    for name, tensor in {"x": x, "h0": h_0, "memory": masks.memory, **tensors}.items():
        setattr(layer, name, None if tensor is None else tensor.data_ptr())
    for mask, described in ((masks.input, layer.input), (masks.recurrent, layer.recurrent)):
        if mask is not None:
            described.data = mask.data_ptr()
            described.t, described.g, described.b = (_step(mask, dim) for dim in range(3))
    if masks.memory is not None:
        layer.memory_b = _step(masks.memory, 0)
    return layer


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mode: str,
        reverse: bool,
        lengths: Tensor | None,
        masks: LayerMasks,
        x: Tensor,
        h_0: Tensor,
        c_0: Tensor | None,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        (steps, batch, _), hidden = x.shape, h_0.size(1)
        bias = bias_n = None
        if bias_ih is not None and bias_hh is not None:
            bias = bias_ih + bias_hh
            if mode == "GRU":  # the candidate's recurrent bias is within the reset gate
                bias_n = bias_hh[2 * hidden :].contiguous()
                bias[2 * hidden :] = bias_ih[2 * hidden :]
        gate = x.new_empty(steps, batch, functional.CELLS[mode].gates * hidden)
        h = x.new_empty(steps, batch, hidden)
        c = None if c_0 is None else torch.empty_like(h)
        product_n = torch.empty_like(h) if mode == "GRU" else None
        precision = build.precision()
        layer = _layer(
            mode, precision, reverse, masks, x, h_0, c0=c_0, lengths=lengths, weight_ih=weight_ih,
            weight_hh=weight_hh, bias=bias, bias_n=bias_n, gate=gate, product_n=product_n, h=h, c=c,
        )  # fmt: skip
        build.loaded().vrnn_forward(ctypes.byref(layer))
        ctx.mode, ctx.precision, ctx.reverse, ctx.lengths = mode, precision, reverse, lengths
        ctx.save_for_backward(x, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, gate, product_n, h, c, *masks)
        ctx.set_materialize_grads(False)
        last = 0 if reverse else steps - 1
        return h, h[last].clone(), None if c is None else c[last].clone()

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, dh_T: Tensor | None, dc_T: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # once, as torch.utils.checkpoint demands
        inputs, (gate, product_n, h, c), masks = saved[:7], saved[7:11], LayerMasks(*saved[11:])
        if torch.is_grad_enabled() or not is_plain(dh, dh_T, dc_T):
            return *(None,) * 4, *_gradients_by_reference(ctx, inputs, masks, (dh, dh_T, dc_T))
        x, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh = inputs
        dh, dh_T, dc_T = in_memory(dh), in_memory(dh_T), in_memory(dc_T)
        dx = torch.empty_like(x) if ctx.needs_input_grad[4] else None
        dh_0, dc_0 = torch.empty_like(h_0), None if c_0 is None else torch.empty_like(c_0)
        dweight_ih, dweight_hh = torch.empty_like(weight_ih), torch.empty_like(weight_hh)
        has_bias = bias_ih is not None and bias_hh is not None
        dbias = x.new_empty(gate.size(-1)) if has_bias else None
        dbias_n = torch.empty_like(h_0[0]) if has_bias and ctx.mode == "GRU" else None
        layer = _layer(
            ctx.mode, ctx.precision, ctx.reverse, masks, x, h_0, c0=c_0, lengths=ctx.lengths,
            weight_ih=weight_ih, weight_hh=weight_hh, gate=gate, product_n=product_n, h=h, c=c, dh=dh, dh_T=dh_T,
            dc_T=dc_T, dx=dx, dh0=dh_0, dc0=dc_0, dweight_ih=dweight_ih, dweight_hh=dweight_hh, dbias=dbias,
            dbias_n=dbias_n,
        )  # fmt: skip
        build.loaded().vrnn_backward(ctypes.byref(layer))
        dbias_hh = dbias
        if dbias is not None and dbias_n is not None:
            dbias_hh = torch.cat([dbias[: 2 * h_0.size(1)], dbias_n])
        return *(None,) * 4, dx, dh_0, dc_0, dweight_ih, dweight_hh, dbias, dbias_hh


def _gradients_by_reference(
    ctx: Any, inputs: tuple[Tensor | None, ...], masks: LayerMasks, gradients: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """The gradients of `_Unroll` by the reference, with a graph where one is wanted."""

    def unroll(x: Tensor, h_0: Tensor, c_0: Tensor | None, *weights: Any) -> tuple[Tensor, ...]:
        state = (h_0,) if c_0 is None else (h_0, c_0)
        with torch.autocast("cpu", torch.bfloat16, enabled=ctx.precision == build.BF16):
            h, final = functional.unroll(
                ctx.mode, x, state, functional.Weights(*weights), masks, lengths=ctx.lengths, reverse=ctx.reverse
            )
        return h, *final

    return differentiable_gradients(unroll, inputs, gradients[: 2 if inputs[2] is None else 3])
