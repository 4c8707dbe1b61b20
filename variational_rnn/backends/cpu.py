"""The fast twin of `functional.unroll` on the CPU: a small C++ extension, built when it is first needed.

`cpu.cpp` says how it computes. Here: building it, and the gradient of a whole layer by hand, with no tape over time
steps. What it cannot do (`refusal`) is left to the reference.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from variational_rnn import functional
from variational_rnn.masks import LayerMasks

log = logging.getLogger(__name__)

KINDS = {"LSTM": 0, "GRU": 1, "RNN_TANH": 2, "RNN_RELU": 3}
FLAGS = {
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    "AVX2": ["-mavx2", "-mfma"],
}


class _Layer(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_int32) for name in ("kind", "gates", "threads", "reverse")]
        + [(name, ctypes.c_int64) for name in ("T", "B", "H")]
        + [(name, ctypes.c_void_p) for name in ("weight", "bias_n", "mask")]
        + [(name, ctypes.c_int64) for name in ("mask_t", "mask_g", "mask_b")]
        + [("memory", ctypes.c_void_p), ("memory_b", ctypes.c_int64)]
        + [
            (name, ctypes.c_void_p)
            for name in (
                *("lengths", "h0", "c0", "gate", "h_n", "h", "c"),
                *("dh", "dh_T", "dc_T", "dgate", "dgate_h", "dh0", "dc0"),
            )
        ]
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled extension, or None where it cannot be built; why is logged once.

    It is compiled for the instructions that torch finds at run time and kept in ~/.cache/variational_rnn (or below
    XDG_CACHE_HOME) under a name that says for which source and instructions, so machines can share the folder. The
    compiler is `c++`, or what CXX names.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if capability not in FLAGS or compiler is None:
        missing = "no C++ compiler is found" if compiler is None else f"it does not know the processor ({capability})"
        log.warning("variational_rnn: no fast CPU backend, since %s; the reference is used", missing)
        return None
    source = Path(__file__).with_name("cpu.cpp")
    command = [compiler, "-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]
    command += [*FLAGS[capability], str(source)]
    key = hashlib.sha256(source.read_bytes() + " ".join(command).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "variational_rnn"
    file = folder / f"cpu-{key}.so"
    try:
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as unfinished:
                built = Path(unfinished) / file.name
                subprocess.run([*command, "-o", str(built)], check=True, capture_output=True, text=True)
                built.replace(file)  # at once, whoever else builds it at the same time
        return ctypes.CDLL(str(file))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[0]
        log.warning(
            "variational_rnn: no fast CPU backend, since it cannot be built (%s); the reference is used", reason
        )
        return None


def refusal(x: Tensor, state: functional.State, weights: functional.Weights, masks: LayerMasks) -> str | None:
    """Why a layer is left to the reference, or None if this backend computes it."""
    tensors = [tensor for tensor in (x, *state, *weights, *masks) if tensor is not None]
    if any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 for tensor in tensors):
        return "it computes float32 on the CPU"
    if x.size(1) == 0:
        return "there are no sequences"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if weights.hr is not None:
        return "the LSTM projects its h"
    if any(mask is not None and mask.requires_grad for mask in masks):
        return "a mask requires a gradient"
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._functorch.maybe_current_level() is not None:
        return "the call is traced"
    if library() is None:
        return "it could not be built"
    return None


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
    c_0 = state[1] if mode == "LSTM" else None
    h, h_T, c_T = _Unroll.apply(mode, reverse, lengths, masks, x, state[0], c_0, *weights[:4])
    return h, ((h_T, c_T) if mode == "LSTM" else (h_T,))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def matmul(a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> None:
    """out [M, N] (+)= a [M, K] b [K, N]; out has unit stride along N."""
    rows, inner, columns = a.size(0), a.size(1), b.size(1)
    lib: Any = library()
    integers = [ctypes.c_int64(n) for n in (rows, columns, inner)]
    strided = [
        [ctypes.c_void_p(t.data_ptr()), ctypes.c_int64(t.stride(0)), ctypes.c_int64(t.stride(1))] for t in (a, b)
    ]
    lib.vrnn_gemm(
        torch.get_num_threads(), *integers, *strided[0], *strided[1],
        ctypes.c_void_p(out.data_ptr()), ctypes.c_int64(out.stride(0)), int(add),
    )  # fmt: skip


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.size(-1))


def _per_gate(mask: Tensor | None, gates: int) -> list[tuple[slice, Tensor | None]]:
    """Each different mask with the gates it serves."""
    if mask is None or mask.size(1) == 1:
        return [(slice(0, gates), None if mask is None else mask[:, 0])]
    return [(slice(g, g + 1), mask[:, g]) for g in range(gates)]


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
        x, h_0, weight_ih, weight_hh = (t.contiguous() for t in (x, h_0, weight_ih, weight_hh))
        c_0 = _contiguous(c_0)
        (steps, batch, _), hidden = x.shape, h_0.size(-1)
        gates = functional.GATES[mode]
        gate = x.new_empty(steps, batch, gates * hidden)
        bias_n = None
        if bias_ih is not None and bias_hh is not None:
            bias = bias_ih + bias_hh
            if mode == "GRU":
                bias_n = bias_hh[2 * hidden :].contiguous()
                bias[2 * hidden :] = bias_ih[2 * hidden :]
            gate.copy_(bias.expand_as(gate))
        for which, mask in _per_gate(masks.input, gates):
            rows = slice(which.start * hidden, which.stop * hidden)
            read = x if mask is None else x * mask
            matmul(_rows(read), weight_ih[rows].t(), _rows(gate)[:, rows], add=bias_ih is not None)

        h = x.new_empty(steps, batch, hidden)
        c = torch.empty_like(h) if mode == "LSTM" else None
        h_n = torch.empty_like(h) if mode == "GRU" else None
        masks = LayerMasks(*(_contiguous(mask) for mask in masks))
        layer = _layer(mode, reverse, lengths, masks, h_0, c_0, weight_hh, bias_n, gate, h_n, h, c)
        lib: Any = library()
        lib.vrnn_forward(ctypes.byref(layer))
        last = 0 if reverse else steps - 1
        ctx.mode, ctx.reverse, ctx.lengths, ctx.masks = mode, reverse, lengths, masks
        ctx.save_for_backward(x, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_n, gate, h_n, h, c)
        ctx.set_materialize_grads(False)
        return h, h[last].clone(), None if c is None else c[last].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor | None, dh_T: Tensor | None, dc_T: Tensor | None) -> tuple[Any, ...]:
        x, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_n, gate, h_n, h, c = ctx.saved_tensors
        mode, masks = ctx.mode, ctx.masks
        hidden, gates = h_0.size(-1), functional.GATES[mode]
        dh, dh_T, dc_T = _contiguous(dh), _contiguous(dh_T), _contiguous(dc_T)
        dgate = torch.empty_like(gate)
        dgate_h = torch.empty_like(gate) if mode == "GRU" else dgate
        dh_0 = torch.empty_like(h_0)
        dc_0 = None if c_0 is None else torch.empty_like(c_0)
        layer = _layer(mode, ctx.reverse, ctx.lengths, masks, h_0, c_0, weight_hh, bias_n, gate, h_n, h, c)
        for name, tensor in (
            *(("dh", dh), ("dh_T", dh_T), ("dc_T", dc_T), ("dgate", dgate)),
            *(("dgate_h", dgate_h), ("dh0", dh_0), ("dc0", dc_0)),
        ):
            setattr(layer, name, _pointer(tensor))
        lib: Any = library()
        lib.vrnn_backward(ctypes.byref(layer))

        d_rows, dh_rows = _rows(dgate), _rows(dgate_h)
        dx = torch.empty_like(x) if ctx.needs_input_grad[4] else None
        dweight_ih = torch.empty_like(weight_ih)
        inputs = _per_gate(masks.input, gates)
        for which, mask in inputs:
            rows = slice(which.start * hidden, which.stop * hidden)
            matmul(d_rows[:, rows].t(), _rows(x if mask is None else x * mask), dweight_ih[rows])
            if dx is not None:
                part = dx if len(inputs) == 1 else torch.empty_like(dx)
                matmul(d_rows[:, rows], weight_ih[rows], _rows(part))
                if mask is not None:
                    part *= mask
                if part is not dx:
                    dx = part if which.start == 0 else dx.add_(part)

        dweight_hh = torch.empty_like(weight_hh)
        first, later, earlier = (-1, slice(0, -1), slice(1, None)) if ctx.reverse else (0, slice(1, None), slice(0, -1))
        for which, mask in _per_gate(masks.recurrent, gates):
            rows = slice(which.start * hidden, which.stop * hidden)
            fresh = mask is not None and mask.size(0) > 1
            start = h_0 if mask is None else h_0 * (mask[first] if fresh else mask[0])
            matmul(dgate_h[first][:, rows].t(), start, dweight_hh[rows])
            read = h[earlier] if mask is None else h[earlier] * (mask[later] if fresh else mask)
            matmul(_rows(dgate_h[later])[:, rows].t(), _rows(read), dweight_hh[rows], add=True)
        dbias_ih = dbias_hh = None
        if bias_ih is not None:
            dbias_ih = d_rows.sum(0)
            dbias_hh = dh_rows.sum(0) if mode == "GRU" else dbias_ih
        return None, None, None, None, dx, dh_0, dc_0, dweight_ih, dweight_hh, dbias_ih, dbias_hh


def _layer(
    mode: str,
    reverse: bool,
    lengths: Tensor | None,
    masks: LayerMasks,
    h_0: Tensor,
    c_0: Tensor | None,
    weight_hh: Tensor,
    bias_n: Tensor | None,
    gate: Tensor,
    h_n: Tensor | None,
    h: Tensor,
    c: Tensor | None,
) -> _Layer:
    def step(mask: Tensor, dim: int) -> int:
        return mask.stride(dim) if mask.size(dim) > 1 else 0

    layer = _Layer(
        kind=KINDS[mode],
        gates=functional.GATES[mode],
        threads=torch.get_num_threads(),
        reverse=reverse,
        T=h.size(0),
        B=h.size(1),
        H=h.size(2),
        weight=_pointer(weight_hh),
        bias_n=_pointer(bias_n),
        mask=_pointer(masks.recurrent),
        memory=_pointer(masks.memory),
        lengths=_pointer(lengths),
        h0=_pointer(h_0),
        c0=_pointer(c_0),
        gate=_pointer(gate),
        h_n=_pointer(h_n),
        h=_pointer(h),
        c=_pointer(c),
    )
    if masks.recurrent is not None:
        layer.mask_t, layer.mask_g, layer.mask_b = (step(masks.recurrent, dim) for dim in range(3))
    if masks.memory is not None:
        layer.memory_b = step(masks.memory, 0)
    return layer
