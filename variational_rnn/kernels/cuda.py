"""Recurrent layers on NVIDIA GPUs: one Triton kernel per time step, replayed as a CUDA graph.

A step of few sequences is limited by launches and by reading the weights. One kernel therefore does a whole step: the
products of all gates of some units, masks included, and the pointwise work on them. Torch computes the input product,
which all steps share, and the gradient of the weights. Another kernel computes a step of the backward pass.

Importing this module needs Triton. With TRITON_INTERPRET=1 the kernels run on the CPU, which is how they are tested.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from variational_rnn import functional
from variational_rnn.kernels.common import differentiable_gradients, is_plain, why_unsupported_layer
from variational_rnn.masks import LayerMasks

LSTM, GRU, RNN_TANH, RNN_RELU = (tl.constexpr(kind) for kind in range(4))
KINDS = {"LSTM": 0, "GRU": 1, "RNN_TANH": 2, "RNN_RELU": 3}
"""The cells that it computes, by the number that the kernels have for each."""
UNITS = 16
"""Hidden units that one program of a kernel computes."""
WARM_UP, KEPT_GRAPHS, LARGEST_GRAPH = 2, 4, 2**25
"""Calls before a computation is recorded as a graph; graphs kept; numbers in the input of one."""


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    e = tl.exp(-2.0 * tl.abs(x))
    large = (1.0 - e) / (1.0 + e)
    z = x * x  # Cephes' polynomial, since the quotient cancels where x is small
    small = ((((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z
             - 3.33332819422e-1) * z * x + x  # fmt: skip
    return tl.where(tl.abs(x) < 0.625, small, tl.where(x < 0, -large, large))


@triton.jit
def _sigmoid(x):  # type: ignore[no-untyped-def]
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def _masked(h, mask, rows, mask_b, depth, inside, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """h times the mask of a gate, [rows, depth]."""
    if MASKED:
        return h * tl.load(mask + rows[:, None] * mask_b + depth[None, :], mask=inside, other=0.0)
    return h


@triton.jit(do_not_specialize=["t", "now", "before"])
def forward_step(  # type: ignore[no-untyped-def]
    gate, product_n, h, c, weight, bias_n, mask, mask_t, mask_g, mask_b, memory, memory_b, lengths, t, now, before, B,
    H: tl.constexpr, KIND: tl.constexpr, G: tl.constexpr, MASKED: tl.constexpr, UNTIED: tl.constexpr,
    MEMORY: tl.constexpr, LENGTHS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Step t for some rows and units.

    gate [T, B, G*H] holds W x + b and becomes the activations; h and c [T+1, B, H] hold the state before at `before`
    and get the new one at `now`; product_n [T, B, H] gets U h + b' of a GRU's candidate.
    """
    units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = (rows[:, None] < B) & (units[None, :] < H)
    h_before = h + before.to(tl.int64) * B * H
    if MASKED:
        mask += t.to(tl.int64) * mask_t
    acc_0 = tl.zeros((ROWS, UNITS), tl.float32)
    acc_1 = tl.zeros((ROWS, UNITS), tl.float32)
    acc_2 = tl.zeros((ROWS, UNITS), tl.float32)
    acc_3 = tl.zeros((ROWS, UNITS), tl.float32)
    for start in range(0, H, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        read = (rows[:, None] < B) & (depth[None, :] < H)
        w = weight + units[None, :] * H + depth[:, None]
        w_read = (depth[:, None] < H) & (units[None, :] < H)
        x = tl.load(h_before + rows[:, None] * H + depth[None, :], mask=read, other=0.0)
        w_0 = tl.load(w, mask=w_read, other=0.0)
        y = _masked(x, mask, rows, mask_b, depth, read, MASKED).to(w_0.dtype)
        acc_0 = tl.dot(y, w_0, acc_0, input_precision=PRECISION)
        if G > 1:
            if UNTIED:
                y = _masked(x, mask + mask_g, rows, mask_b, depth, read, MASKED).to(w_0.dtype)
            acc_1 = tl.dot(y, tl.load(w + H * H, mask=w_read, other=0.0), acc_1, input_precision=PRECISION)
            if UNTIED:
                y = _masked(x, mask + 2 * mask_g, rows, mask_b, depth, read, MASKED).to(w_0.dtype)
            acc_2 = tl.dot(y, tl.load(w + 2 * H * H, mask=w_read, other=0.0), acc_2, input_precision=PRECISION)
        if G > 3:
            if UNTIED:
                y = _masked(x, mask + 3 * mask_g, rows, mask_b, depth, read, MASKED).to(w_0.dtype)
            acc_3 = tl.dot(y, tl.load(w + 3 * H * H, mask=w_read, other=0.0), acc_3, input_precision=PRECISION)

    at = rows[:, None] * H + units[None, :]
    step = t.to(tl.int64) * B * H
    old_h = tl.load(h_before + at, mask=inside, other=0.0)
    gate += step * G + rows[:, None] * (G * H) + units[None, :]
    x_0 = tl.load(gate, mask=inside, other=0.0)
    if LENGTHS:
        goes_on = t < tl.load(lengths + rows, mask=rows < B, other=0)[:, None]
    if KIND == LSTM:
        i = _sigmoid(x_0 + acc_0)
        f = _sigmoid(tl.load(gate + H, mask=inside, other=0.0) + acc_1)
        g = _tanh(tl.load(gate + 2 * H, mask=inside, other=0.0) + acc_2)
        o = _sigmoid(tl.load(gate + 3 * H, mask=inside, other=0.0) + acc_3)
        old_c = tl.load(c + before.to(tl.int64) * B * H + at, mask=inside, other=0.0)
        new_c = f * old_c + i * g
        new_h = o
        if MEMORY:
            kept = tl.load(memory + rows[:, None] * memory_b + units[None, :], mask=inside, other=0.0)
            new_c = tl.where(kept != 0, new_c, 0.0)
            new_h = kept * o
        new_h = new_h * _tanh(new_c)
        if LENGTHS:
            new_c = tl.where(goes_on, new_c, old_c)
        tl.store(gate, i, mask=inside)
        tl.store(gate + H, f, mask=inside)
        tl.store(gate + 2 * H, g, mask=inside)
        tl.store(gate + 3 * H, o, mask=inside)
        tl.store(c + now.to(tl.int64) * B * H + at, new_c, mask=inside)
    elif KIND == GRU:
        q = acc_2 + tl.load(bias_n + units, mask=units < H, other=0.0)[None, :]
        r = _sigmoid(x_0 + acc_0)
        z = _sigmoid(tl.load(gate + H, mask=inside, other=0.0) + acc_1)
        n = _tanh(tl.load(gate + 2 * H, mask=inside, other=0.0) + r * q)
        new_h = n + z * (old_h - n)
        tl.store(product_n + step + at, q, mask=inside)
        tl.store(gate, r, mask=inside)
        tl.store(gate + H, z, mask=inside)
        tl.store(gate + 2 * H, n, mask=inside)
    else:
        new_h = x_0 + acc_0
        new_h = _tanh(new_h) if KIND == RNN_TANH else tl.where(new_h < 0, 0.0, new_h)
        tl.store(gate, new_h, mask=inside)
    if LENGTHS:
        new_h = tl.where(goes_on, new_h, old_h)
    tl.store(h + now.to(tl.int64) * B * H + at, new_h, mask=inside)


@triton.jit
def _through(  # type: ignore[no-untyped-def]
    dgate, weight, rows, units, B, row, K: tl.constexpr, H: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dgate [rows, K] times weight [K, units]."""
    acc = tl.zeros((ROWS, UNITS), tl.float32)
    for start in range(0, K, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        read = (rows[:, None] < B) & (depth[None, :] < K)
        w_read = (depth[:, None] < K) & (units[None, :] < H)
        w = tl.load(weight + depth[:, None] * H + units[None, :], mask=w_read, other=0.0)
        d = tl.load(dgate + rows[:, None] * row + depth[None, :], mask=read, other=0.0)
        acc = tl.dot(d.to(w.dtype), w, acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["t", "now", "before", "after"])
def backward_step(  # type: ignore[no-untyped-def]
    gate, product_n, h, c, weight, mask, mask_t, mask_g, mask_b, memory, memory_b, lengths, dh, dgate, dgate_h, direct,
    dc, t, now, before, after, B,
    H: tl.constexpr, KIND: tl.constexpr, G: tl.constexpr, MASKED: tl.constexpr, UNTIED: tl.constexpr,
    MEMORY: tl.constexpr, LENGTHS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of step t for some rows and units.

    direct and dc [B, H] hold what reaches h and c other than through the recurrent product of step `after`, and are
    left for the step before. dgate [T, B, G*H] gets the gradient of W x + b, dgate_h that of U h + b', which differs in
    a GRU. After the last step, after = -1. With t = -1, direct becomes the initial state's gradient.
    """
    units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = (rows[:, None] < B) & (units[None, :] < H)
    at = rows[:, None] * H + units[None, :]
    total = tl.load(direct + at, mask=inside, other=0.0)
    if after >= 0:
        if MASKED:
            mask += after.to(tl.int64) * mask_t
        from_after = dgate_h + after.to(tl.int64) * B * G * H
        if UNTIED:
            for g in tl.static_range(G):
                acc = _through(
                    from_after + g * H, weight + g * H * H, rows, units, B, G * H, H, H, ROWS, UNITS, DEPTH, PRECISION
                )
                total += _masked(acc, mask + g * mask_g, rows, mask_b, units, inside, MASKED)
        else:
            acc = _through(from_after, weight, rows, units, B, G * H, G * H, H, ROWS, UNITS, DEPTH, PRECISION)
            total += _masked(acc, mask, rows, mask_b, units, inside, MASKED)
    if t < 0:
        tl.store(direct + at, total, mask=inside)
    else:
        step = t.to(tl.int64) * B * H
        total += tl.load(dh + step + at, mask=inside, other=0.0)
        goes_on = inside
        if LENGTHS:
            goes_on &= t < tl.load(lengths + rows, mask=rows < B, other=0)[:, None]
        d = tl.where(goes_on, total, 0.0)
        passed = tl.where(goes_on, 0.0, total)
        in_gate = step * G + rows[:, None] * (G * H) + units[None, :]
        from_gate = gate + in_gate
        to_x = dgate + in_gate
        to_h = dgate_h + in_gate
        x_0 = tl.load(from_gate, mask=inside, other=0.0)
        if KIND == LSTM:
            f = tl.load(from_gate + H, mask=inside, other=0.0)
            g = tl.load(from_gate + 2 * H, mask=inside, other=0.0)
            o = tl.load(from_gate + 3 * H, mask=inside, other=0.0)
            old_c = tl.load(c + before.to(tl.int64) * B * H + at, mask=inside, other=0.0)
            squashed = _tanh(tl.load(c + now.to(tl.int64) * B * H + at, mask=inside, other=0.0))
            carried = tl.load(dc + at, mask=inside, other=0.0)
            if MEMORY:
                kept = tl.load(memory + rows[:, None] * memory_b + units[None, :], mask=inside, other=0.0)
                d *= kept
            d_c = carried + d * o * (1 - squashed * squashed)
            if MEMORY:
                d_c = tl.where(kept != 0, d_c, 0.0)
            d_c = tl.where(goes_on, d_c, 0.0)
            tl.store(to_x, d_c * g * x_0 * (1 - x_0), mask=inside)
            tl.store(to_x + H, d_c * old_c * f * (1 - f), mask=inside)
            tl.store(to_x + 2 * H, d_c * x_0 * (1 - g * g), mask=inside)
            tl.store(to_x + 3 * H, d * squashed * o * (1 - o), mask=inside)
            tl.store(dc + at, tl.where(goes_on, d_c * f, carried), mask=inside)
        elif KIND == GRU:
            z = tl.load(from_gate + H, mask=inside, other=0.0)
            n = tl.load(from_gate + 2 * H, mask=inside, other=0.0)
            q = tl.load(product_n + step + at, mask=inside, other=0.0)
            old_h = tl.load(h + before.to(tl.int64) * B * H + at, mask=inside, other=0.0)
            d_n = d * (1 - z) * (1 - n * n)
            d_r = d_n * q * x_0 * (1 - x_0)
            d_z = d * (old_h - n) * z * (1 - z)
            passed += d * z
            tl.store(to_x, d_r, mask=inside)
            tl.store(to_x + H, d_z, mask=inside)
            tl.store(to_x + 2 * H, d_n, mask=inside)
            tl.store(to_h, d_r, mask=inside)
            tl.store(to_h + H, d_z, mask=inside)
            tl.store(to_h + 2 * H, d_n * x_0, mask=inside)
        elif KIND == RNN_TANH:
            tl.store(to_x, d * (1 - x_0 * x_0), mask=inside)
        else:
            tl.store(to_x, tl.where(x_0 > 0, d, 0.0), mask=inside)
        tl.store(direct + at, passed, mask=inside)


class Graphs:
    """A function of tensors on the GPU that becomes a CUDA graph when it is called repeatedly with the same shapes.

    Launching a kernel for every step takes longer than a small step itself; a graph launches all of them at once.
    """

    recording = threading.Lock()  # torch allows one recording at a time

    def __init__(self, function: Callable[..., tuple[Tensor | None, ...]]) -> None:
        self.function = function
        self.calls: Counter[Any] = Counter()
        self.graphs: OrderedDict[Any, Any] = OrderedDict()  # with their inputs and outputs, the last used one last

    def __call__(self, *tensors: Tensor | None, **constants: Any) -> tuple[Tensor | None, ...]:
        """Compute the function; the results are copies that belong to the caller."""
        given = [tensor for tensor in tensors if tensor is not None]
        is_small = sum(tensor.numel() for tensor in given) <= LARGEST_GRAPH
        if not given[0].is_cuda or not is_small or torch.cuda.is_current_stream_capturing():
            return self.function(*tensors, **constants)
        shapes = tuple(None if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in tensors)
        key = (shapes, tuple(constants.items()), torch.cuda.current_stream().cuda_stream)
        known = self.graphs.pop(key, None)  # no other thread may use it meanwhile
        if known is None:
            self.calls[key] += 1
            if self.calls[key] <= WARM_UP:
                return self.function(*tensors, **constants)
            known = self.record(tensors, constants)
        graph, inputs, outputs = known
        for kept, tensor in zip(inputs, tensors, strict=True):
            if kept is not None:
                kept.copy_(tensor)
        graph.replay()
        results = tuple(None if output is None else output.clone() for output in outputs)
        self.graphs[key] = known
        if len(self.graphs) > KEPT_GRAPHS:
            self.graphs.popitem(last=False)
        return results

    def record(self, tensors: tuple[Tensor | None, ...], constants: dict[str, Any]) -> tuple[Any, ...]:
        """Record a graph with its inputs and outputs, for training and evaluation alike."""
        with Graphs.recording, torch.inference_mode(False), torch.no_grad():
            inputs = [None if t is None else torch.empty_like(t).copy_(t) for t in tensors]
            self.function(*inputs, **constants)  # kernels for tensors that are aligned like these may be missing yet
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
                outputs = self.function(*inputs, **constants)
        return graph, inputs, outputs


def try_out() -> None:
    """Compile and run a step on the GPU. Raises Triton's error if that fails."""
    zeros = torch.zeros(1, 1, 1, device="cuda")
    weights = functional.Weights(zeros[0], zeros[0])
    unroll("RNN_TANH", zeros, (zeros[0],), weights, LayerMasks())


def why_unsupported(
    mode: str, x: Tensor, state: functional.State, weights: functional.Weights, masks: LayerMasks
) -> str | None:
    """Why `unroll` cannot compute this layer, or None if it can."""
    if not is_plain(x, *state, *weights, *masks):
        return "the call is traced, or a tensor is not plain memory"
    if any(tensor is not None and tensor.dtype != torch.float32 for tensor in (*state, *weights)):
        return "it keeps parameters and state in float32"
    return why_unsupported_layer(KINDS, mode, x, weights, masks)


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
    has_memory = functional.CELLS[mode].has_memory
    h_0, c_0 = state if has_memory else (state[0], None)
    if masks.memory is not None:
        h_0 = h_0 * (masks.memory != 0)
    bias, bias_n = weights.bias_ih, None
    if weights.bias_ih is not None and weights.bias_hh is not None:
        bias = weights.bias_ih + weights.bias_hh
        if mode == "GRU":  # the candidate's recurrent bias is within the reset gate
            hidden = h_0.size(1)
            bias = torch.cat([bias[: 2 * hidden], weights.bias_ih[2 * hidden :]])
            bias_n = weights.bias_hh[2 * hidden :]
    x_gates = functional.masked_linear(x, weights.ih, bias, masks.input)
    device = x.device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weights.hh.dtype
    products = "tf32" if precision == torch.float32 and _tf32_is_allowed() else "ieee"
    h, h_T, c_T = _Steps.apply(
        mode,
        reverse,
        precision,
        products,
        (x, weights.ih, bias, masks.input),
        lengths,
        masks.recurrent,
        masks.memory,
        x_gates.float(),
        h_0,
        c_0,
        weights.hh,
        bias_n,
    )
    return h, ((h_T, c_T) if has_memory else (h_T,))


def _tf32_is_allowed() -> bool:
    """Read the user's setting for matrix products. Newer torch has another name for it and may refuse the old one."""
    settings: Any = torch.backends.cuda.matmul
    return settings.fp32_precision == "tf32" if hasattr(settings, "fp32_precision") else settings.allow_tf32


def _order(steps: int, reverse: bool) -> list[tuple[int, int, int]]:
    """(t, place of the new state, place of the state before) of all steps: the initial state is at an end of h."""
    return [(t, t, t + 1) for t in range(steps - 1, -1, -1)] if reverse else [(t, t + 1, t) for t in range(steps)]


def _options(
    mode: str, batch: int, hidden: int, recurrent: Tensor | None, memory: Tensor | None, lengths: Tensor | None,
    precision: torch.dtype, products: str,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    rows = min(max(16, triton.next_power_of_2(batch)), 32)
    is_untied = recurrent is not None and recurrent.size(1) > 1
    # Columns of the weights that products go through at a time, so that shared memory of 99 KB is enough.
    depth = (32 if precision == torch.float32 else 64) * (1 if is_untied else 2)
    grid = (triton.cdiv(hidden, UNITS), triton.cdiv(batch, rows))
    return grid, {
        "H": hidden, "KIND": KINDS[mode], "G": functional.CELLS[mode].gates, "MASKED": recurrent is not None,
        "UNTIED": is_untied, "MEMORY": memory is not None, "LENGTHS": lengths is not None, "ROWS": rows, "UNITS": UNITS,
        "DEPTH": depth,
        "PRECISION": products, "num_stages": 3,
    }  # fmt: skip


def _steps_of(mask: Tensor | None, *dims: int) -> list[int]:
    """Distances of a mask's entries along some dimensions, 0 where it is shared."""
    return [0 if mask is None or mask.size(dim) == 1 else mask.stride(dim) for dim in dims]


@Graphs
def _forward(
    x_gates: Tensor, h_0: Tensor, c_0: Tensor | None, weight: Tensor, bias_n: Tensor | None, recurrent: Tensor | None,
    memory: Tensor | None, lengths: Tensor | None, *, mode: str, reverse: bool, products: str,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    steps, batch, hidden = *x_gates.shape[:2], h_0.size(1)
    gate = x_gates.clone(memory_format=torch.contiguous_format)
    h, c = (None if part is None else part.new_empty(steps + 1, batch, hidden) for part in (h_0, c_0))
    first = steps if reverse else 0
    for all_steps, initial in ((h, h_0), (c, c_0)):
        if all_steps is not None and initial is not None:
            all_steps[first] = initial
    product_n = gate.new_empty(steps, batch, hidden) if mode == "GRU" else None
    if mode == "GRU" and bias_n is None:
        bias_n = gate.new_zeros(hidden)
    grid, options = _options(mode, batch, hidden, recurrent, memory, lengths, weight.dtype, products)
    for t, now, before in _order(steps, reverse):
        forward_step[grid](
            gate, product_n, h, c, weight, bias_n, recurrent, *_steps_of(recurrent, 0, 1, 2), memory,
            *_steps_of(memory, 0), lengths, t, now, before, batch, **options,
        )  # fmt: skip
    return gate, product_n, h, c


@Graphs
def _backward(
    gate: Tensor, product_n: Tensor | None, h: Tensor, c: Tensor | None, weight: Tensor, recurrent: Tensor | None,
    memory: Tensor | None, lengths: Tensor | None, dh: Tensor, dh_T: Tensor, dc_T: Tensor | None, *, mode: str,
    reverse: bool, products: str,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    steps, batch, hidden = dh.shape
    dgate = torch.empty_like(gate)
    dgate_h = torch.empty_like(gate) if mode == "GRU" else dgate
    direct, dc = dh_T.clone(), None if dc_T is None else dc_T.clone()
    grid, options = _options(mode, batch, hidden, recurrent, memory, lengths, weight.dtype, products)
    after = -1  # none behind the last step, and no step for the initial state
    for t, now, before in [*reversed(_order(steps, reverse)), (-1, 0, 0)]:
        backward_step[grid](
            gate, product_n, h, c, weight, recurrent, *_steps_of(recurrent, 0, 1, 2), memory, *_steps_of(memory, 0),
            lengths, dh, dgate, dgate_h, direct, dc, t, now, before, after, batch, **options,
        )  # fmt: skip
        after = t
    return dgate, dgate_h, direct, dc


class _Steps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mode: str,
        reverse: bool,
        precision: torch.dtype,
        products: str,
        input_product: tuple[Tensor | None, ...],
        lengths: Tensor | None,
        recurrent: Tensor | None,
        memory: Tensor | None,
        x_gates: Tensor,
        h_0: Tensor,
        c_0: Tensor | None,
        weight: Tensor,
        bias_n: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        given = h_0, c_0, weight, bias_n
        weight = weight.to(precision).contiguous().resolve_neg()
        recurrent, memory, bias_n = (
            None if tensor is None else tensor.contiguous().resolve_neg() for tensor in (recurrent, memory, bias_n)
        )
        with torch.cuda.device_of(x_gates):  # Triton launches on the current device
            gate, product_n, h, c = _forward(
                x_gates,
                h_0,
                c_0,
                weight,
                bias_n,
                recurrent,
                memory,
                lengths,
                mode=mode,
                reverse=reverse,
                products=products,
            )
        ctx.constants, ctx.precision = {"mode": mode, "reverse": reverse, "products": products}, precision
        ctx.has_bias_n = bias_n is not None
        ctx.save_for_backward(gate, product_n, h, c, weight, recurrent, memory, lengths, *input_product, *given)
        assert h is not None
        last = 0 if reverse else -1
        states = h[:-1] if reverse else h[1:]
        return states.clone(), h[last].clone(), None if c is None else c[last].clone()

    @staticmethod
    def backward(ctx: Any, dh: Tensor, dh_T: Tensor, dc_T: Tensor | None) -> tuple[Any, ...]:
        gate, product_n, h, c, weight, recurrent, memory, lengths, *given = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_plain(dh, dh_T, dc_T):
            masks = LayerMasks(None, recurrent, memory)
            gradients = (dh, dh_T) if c is None else (dh, dh_T, dc_T)
            return *(None,) * 8, *_gradients_by_reference(ctx, masks, lengths, given, gradients)
        dh, dh_T = dh.contiguous().resolve_neg(), dh_T.contiguous()
        with torch.cuda.device_of(gate):
            dgate, dgate_h, dh_0, dc_0 = _backward(
                gate, product_n, h, c, weight, recurrent, memory, lengths, dh, dh_T,
                None if c is None or dc_T is None else dc_T.contiguous(), **ctx.constants,
            )  # fmt: skip
        assert dgate_h is not None
        h_before = h[1:] if ctx.constants["reverse"] else h[:-1]
        gates = 1 if recurrent is None else recurrent.size(1)
        parts = []
        for gate_of_mask, d in enumerate(dgate_h.unflatten(-1, (gates, -1)).unbind(-2)):
            read = h_before if recurrent is None else h_before * recurrent[:, gate_of_mask]
            parts.append(d.flatten(0, 1).t().to(weight.dtype) @ read.flatten(0, 1).to(weight.dtype))
        dweight = torch.cat(parts).float()
        dbias_n = dgate_h[..., 2 * h.size(-1) :].sum((0, 1)) if ctx.has_bias_n else None
        return *(None,) * 8, dgate, dh_0, dc_0, dweight, dbias_n


def _gradients_by_reference(
    ctx: Any, masks: LayerMasks, lengths: Tensor | None, given: list[Tensor], gradients: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """The gradients of `_Steps` by the reference, with a graph where one is wanted."""
    x, weight_ih, bias, input_mask, *tensors = given
    autocast = torch.autocast(x.device.type, ctx.precision, enabled=ctx.precision != torch.float32)

    def unroll(x_gates: Tensor, h_0: Tensor, c_0: Tensor | None, weight: Tensor, bias_n: Any) -> tuple[Tensor, ...]:
        state = (h_0,) if c_0 is None else (h_0, c_0)
        bias_hh = None if bias_n is None else F.pad(bias_n, (2 * len(bias_n), 0))
        weights = functional.Weights(weight_ih, weight, None, bias_hh)
        with autocast:
            h, final = functional.unroll_gates(
                ctx.constants["mode"], x_gates, state, weights, masks, lengths=lengths, reverse=ctx.constants["reverse"]
            )
        return h, *final

    with torch.enable_grad(), autocast:  # recomputed, not saved, since it is as large as all gates
        x_gates = functional.masked_linear(x, weight_ih, bias, input_mask).float()
    return differentiable_gradients(unroll, [x_gates, *tensors], gradients)
