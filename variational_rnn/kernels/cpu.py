"""The fast twin of `functional.unroll` on the CPU: a small C++ extension, built when it is first needed.

`cpu.cpp` says how it computes. Here: building it, and the gradient of a whole layer by hand, with no tape over time
steps. It computes in float32; under bfloat16 autocast the factors of products are rounded, if the processor has
instructions for them. What it cannot do (`refusal_of`) is left to the reference.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from variational_rnn import functional
from variational_rnn.kernels.autograd import differentiable_gradients, is_plain
from variational_rnn.masks import LayerMasks

log = logging.getLogger(__name__)

KINDS = {"LSTM": 0, "GRU": 1, "RNN_TANH": 2, "RNN_RELU": 3}
FLAGS = {
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    "AVX2": ["-mavx2", "-mfma"],
}
REMEDY = (
    "the reference is used, which takes two to three times as long (needed are an x86 processor with AVX2, "
    "a C++ compiler, c++ or what CXX names, and a folder to write to, ~/.cache or XDG_CACHE_HOME)"
)
FP32, BF16 = 0, 1  # precision of the factors of products


class _Mask(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("t", "g", "b")))


class _Layer(ctypes.Structure):
    """`struct Layer` of cpu.cpp."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "gates", "precision", "threads", "reverse", "hard_gates")),
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


@functools.cache
def extension() -> ctypes.CDLL | None:
    """The compiled extension, or None where it cannot be built; why is logged once.

    It is compiled for the instructions that torch finds at run time and kept in ~/.cache/variational_rnn (or below
    XDG_CACHE_HOME) under a name made of hashes of its source, command and content, so machines can share the folder and
    a damaged file is built again. The compiler is `c++`, or what CXX names.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    if capability not in FLAGS or shutil.which(compiler[0]) is None:
        missing = (
            f"there is no compiler {compiler[0]}"
            if capability in FLAGS
            else f"it does not know the processor ({capability})"
        )
        log.warning("variational_rnn: no fast CPU backend, since %s; %s", missing, REMEDY)
        return None
    flags = FLAGS[capability]
    try:
        for bf16 in _bf16_flags() if capability == "AVX512" else []:
            try:
                return ctypes.CDLL(str(_built(compiler, [*flags, *bf16])))
            except subprocess.CalledProcessError:  # an older compiler, as likely as not
                log.info("variational_rnn: %s does not know %s, which is not used", compiler[0], " ".join(bf16))
        return ctypes.CDLL(str(_built(compiler, flags)))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # RuntimeError: there is no home folder
        is_silent = isinstance(error, subprocess.CalledProcessError) and not error.stderr
        reason = f"{compiler[0]} failed" if is_silent else (getattr(error, "stderr", "") or str(error)).strip()
        reason = reason.splitlines()[0]
        log.warning("variational_rnn: no fast CPU backend, since it cannot be built (%s); %s", reason, REMEDY)
        return None


def _bf16_flags() -> list[list[str]]:
    """Of the instructions for products in bf16 that this processor has, the fastest first."""

    def torch_says(name: str) -> bool:
        return bool(getattr(torch.cpu, name, lambda: False)())

    found: list[list[str]] = []
    if torch_says("_is_avx512_bf16_supported"):
        found.append(["-mavx512bf16"])
        if torch_says("_init_amx"):  # which asks the system for leave to use them
            found.insert(0, ["-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-DHAS_TILES=1"])
    return found


def _built(compiler: list[str], flags: list[str]) -> Path:
    """The compiled cpu.cpp, made where it is not yet in the cache."""
    source = Path(__file__).with_name("cpu.cpp")
    options = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]
    command = [*compiler, *options, *flags, str(source)]
    key = hashlib.sha256(source.read_bytes() + " ".join(command).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "variational_rnn"
    for file in folder.glob(f"cpu-{key}-*.so"):
        if file.stem.endswith(_sha256(file)):  # else it is damaged, and loading it could end the process
            return file
        file.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        built = Path(unfinished) / "cpu.so"
        subprocess.run([*command, "-o", str(built)], check=True, capture_output=True, text=True)
        return built.replace(folder / f"cpu-{key}-{_sha256(built)}.so")  # at once, whoever else builds it meanwhile


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def refusal_of(x: Tensor, *others: Tensor | None) -> str | None:
    """Why a computation with these tensors is left to torch, or None if this backend can do it."""
    given = [tensor for tensor in others if tensor is not None]
    if any(tensor.device.type != "cpu" for tensor in (x, *given)):
        return "it computes on the CPU"
    autocast = torch.is_autocast_enabled("cpu")
    if any(tensor.dtype != torch.float32 for tensor in given):
        return "it keeps parameters, state and masks in float32"
    if x.dtype != torch.float32 and not (autocast and x.dtype == torch.bfloat16):
        return f"it reads float32, and under autocast bfloat16, not {x.dtype}"
    if not is_plain(x, *given):
        return "the call is traced, or a tensor is not plain memory"
    if autocast and torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return f"it has no products of {torch.get_autocast_dtype('cpu')}"
    if extension() is None:
        return "it could not be built"
    return None


def _precision() -> int:
    library: Any = extension()
    return BF16 if torch.is_autocast_enabled("cpu") and library.vrnn_has_bf16() else FP32


def unroll(
    mode: str,
    x: Tensor,
    state: functional.State,
    weights: functional.Weights,
    masks: LayerMasks,
    *,
    lengths: Tensor | None = None,
    reverse: bool = False,
    hard_gates: bool = False,
) -> tuple[Tensor, functional.State]:
    """Run one layer in one direction over a sequence, as `functional.unroll` does."""
    if masks.memory is not None:
        state = (state[0] * (masks.memory != 0), state[1])
    c_0 = state[1] if mode == "LSTM" else None
    tensors = (_in_memory(tensor) for tensor in (x.float(), state[0], c_0, *weights[:4]))
    masks = LayerMasks(*(_in_memory(mask) for mask in masks))
    h, h_T, c_T = _Unroll.apply(mode, reverse, hard_gates, lengths, masks, *tensors)
    return h, ((h_T, c_T) if mode == "LSTM" else (h_T,))


def _in_memory(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous().resolve_neg()


def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias, without a gradient: on many processors faster than torch's product.

    Under bfloat16 autocast a and b are rounded; the sums and the result stay float32.

    Args:
        a: [M, K], with any strides; with products in bfloat16, it may be in bfloat16 already.
        b: [K, N], with any strides.
        bias: [N].

    Returns:
        [M, N].
    """
    a, b, bias = a.resolve_neg(), b.resolve_neg(), _in_memory(bias)
    if 1 not in a.stride():
        a = a.contiguous()
    out = b.new_empty(a.size(0), b.size(1))
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    lib: Any = extension()
    lib.vrnn_matmul(
        _precision(), torch.get_num_threads(), integer(a.size(0)), integer(b.size(1)), integer(a.size(1)),
        pointer(a.data_ptr()), a.dtype == torch.bfloat16, integer(a.stride(0)), integer(a.stride(1)),
        pointer(b.data_ptr()), integer(b.stride(0)), integer(b.stride(1)),
        pointer(None if bias is None else bias.data_ptr()), pointer(out.data_ptr()),
    )  # fmt: skip
    return out


def softmax_nll_(
    logits: Tensor,
    targets: Tensor,
    scale: float | None,
    expected: Tensor | None = None,
    which: Tensor | None = None,
    gamma: float = 0.0,
    temperature: float = 1.0,
    with_sum: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Negative log-likelihood of targets, in nats; its gradient takes the memory of the logits, if a scale is given.

    With `expected` probabilities, also their cross-entropy with q = softmax(logits / temperature), in nats, and the
    gradient has gamma * (q - expected) more.

    Args:
        logits: [N, V], contiguous; overwritten if scale is not None.
        targets: ids in [0, V), [N].
        scale: of the gradient, or None for none.
        expected: rows of probabilities, [U, V], contiguous.
        which: which of these rows are expected, ids in [0, U), [N].
        gamma: weight in the gradient of what is expected.
        temperature: that logits are divided by to be compared with it.
        with_sum: whether the sum of the gradient is asked for.

    Returns:
        Negative log-likelihoods [N]; cross-entropies [N], empty where nothing is expected; the gradient scale *
        (softmax(logits) - onehot(targets)), [N, V], in bfloat16 under its autocast, since products will round it; and
        its sum over rows [V], of what it was before it was rounded, or None.

    Raises:
        IndexError: a target is not in [0, V).
    """
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < logits.size(1):
        raise IndexError(f"targets must lie in [0, {logits.size(1)}), got {int(targets.min())} to {int(targets.max())}")
    targets = targets.to(torch.int64).contiguous()
    nll, cross_entropy = logits.new_empty(len(logits)), logits.new_empty(0 if expected is None else len(logits))
    threads, precision = torch.get_num_threads(), _precision()
    sums = logits.new_zeros(threads, logits.size(1)) if with_sum else None
    integer, pointer, real = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
    lib: Any = extension()
    lib.vrnn_softmax_nll(
        precision, threads, integer(logits.size(0)), integer(logits.size(1)), pointer(logits.data_ptr()),
        pointer(targets.data_ptr()), real(scale or 0.0), pointer(nll.data_ptr()), int(scale is not None),
        *(pointer(None if tensor is None else tensor.data_ptr()) for tensor in (sums, expected, which)),
        real(gamma), real(temperature), pointer(cross_entropy.data_ptr()),
    )  # fmt: skip
    gradient = logits.view(torch.bfloat16)[:, : logits.size(1)] if precision == BF16 else logits
    return nll, cross_entropy, gradient, None if sums is None else sums.sum(dim=0)


def softmax_(
    logits: Tensor, temperature: float, others: Tensor | None = None, near: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Turn rows of logits into probabilities p = softmax(logits / temperature), in place.

    Args:
        logits: [N, V], contiguous; overwritten.
        temperature: positive.
        others: logits of q = softmax(others / temperature), [N, V], contiguous; overwritten.
        near: columns of high probability, one for each row, [N], needed with others; the gradient keeps more digits.

    Returns:
        Entropies of p, [N], in nats; and temperature^2 times the gradient of KL(p || q) with respect to the logits,
        [N, V], in bfloat16 under its autocast, since products will round it, or None without others.
    """
    near = None if near is None else near.to(torch.int64).contiguous()
    entropy, precision = logits.new_empty(len(logits)), _precision()
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    lib: Any = extension()
    lib.vrnn_softmax(
        precision, torch.get_num_threads(), integer(logits.size(0)), integer(logits.size(1)),
        pointer(logits.data_ptr()), ctypes.c_float(temperature), pointer(entropy.data_ptr()),
        *(pointer(None if tensor is None else tensor.data_ptr()) for tensor in (others, near)),
    )  # fmt: skip
    if others is not None and precision == BF16:
        others = others.view(torch.bfloat16)[:, : logits.size(1)]
    return entropy, others


def _step(mask: Tensor, dim: int) -> int:
    return mask.stride(dim) if mask.size(dim) > 1 else 0


def _layer(
    mode: str,
    precision: int,
    reverse: bool,
    hard_gates: bool,
    masks: LayerMasks,
    x: Tensor,
    h_0: Tensor,
    **tensors: Tensor | None,
) -> _Layer:
    """Describe a layer to the extension; the tensors must live on, and be contiguous."""
    steps, batch, inputs = x.shape
    layer = _Layer(
        KINDS[mode],
        functional.GATES[mode],
        precision,
        torch.get_num_threads(),
        reverse,
        hard_gates,
        steps,
        batch,
        inputs,
        h_0.size(1),
    )
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
        hard_gates: bool,
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
        gate = x.new_empty(steps, batch, functional.GATES[mode] * hidden)
        h = x.new_empty(steps, batch, hidden)
        c = torch.empty_like(h) if mode == "LSTM" else None
        product_n = torch.empty_like(h) if mode == "GRU" else None
        precision = _precision()
        layer = _layer(
            mode, precision, reverse, hard_gates, masks, x, h_0, c0=c_0, lengths=lengths, weight_ih=weight_ih,
            weight_hh=weight_hh, bias=bias, bias_n=bias_n, gate=gate, product_n=product_n, h=h, c=c,
        )  # fmt: skip
        lib: Any = extension()
        lib.vrnn_forward(ctypes.byref(layer))
        ctx.mode, ctx.precision, ctx.reverse, ctx.hard_gates = mode, precision, reverse, hard_gates
        ctx.lengths = lengths
        ctx.save_for_backward(
            x, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, gate, product_n, h, c, *masks
        )  # fmt: skip
        ctx.set_materialize_grads(False)
        last = 0 if reverse else steps - 1
        return h, h[last].clone(), None if c is None else c[last].clone()

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, dh_T: Tensor | None, dc_T: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # once, as torch.utils.checkpoint demands
        inputs, (gate, product_n, h, c), masks = saved[:7], saved[7:11], LayerMasks(*saved[11:])
        if torch.is_grad_enabled() or not is_plain(dh, dh_T, dc_T):
            return *(None,) * 5, *_gradients_by_reference(ctx, inputs, masks, (dh, dh_T, dc_T))
        x, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh = inputs
        dh, dh_T, dc_T = _in_memory(dh), _in_memory(dh_T), _in_memory(dc_T)
        dx = torch.empty_like(x) if ctx.needs_input_grad[5] else None
        dh_0, dc_0 = torch.empty_like(h_0), None if c_0 is None else torch.empty_like(c_0)
        dweight_ih, dweight_hh = torch.empty_like(weight_ih), torch.empty_like(weight_hh)
        has_bias = bias_ih is not None and bias_hh is not None
        dbias = x.new_empty(gate.size(-1)) if has_bias else None
        dbias_n = torch.empty_like(h_0[0]) if has_bias and ctx.mode == "GRU" else None
        layer = _layer(
            ctx.mode, ctx.precision, ctx.reverse, ctx.hard_gates, masks, x, h_0, c0=c_0,
            lengths=ctx.lengths, weight_ih=weight_ih, weight_hh=weight_hh, gate=gate, product_n=product_n, h=h, c=c,
            dh=dh, dh_T=dh_T, dc_T=dc_T, dx=dx, dh0=dh_0, dc0=dc_0, dweight_ih=dweight_ih, dweight_hh=dweight_hh,
            dbias=dbias, dbias_n=dbias_n,
        )  # fmt: skip
        lib: Any = extension()
        lib.vrnn_backward(ctypes.byref(layer))
        dbias_hh = dbias
        if dbias is not None and dbias_n is not None:
            dbias_hh = torch.cat([dbias[: 2 * h_0.size(1)], dbias_n])
        return *(None,) * 5, dx, dh_0, dc_0, dweight_ih, dweight_hh, dbias, dbias_hh


def _gradients_by_reference(
    ctx: Any, inputs: tuple[Tensor | None, ...], masks: LayerMasks, gradients: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """The gradients of `_Unroll` by the reference, with a graph where one is wanted."""

    def unroll(x: Tensor, h_0: Tensor, c_0: Tensor | None, *weights: Any) -> tuple[Tensor, ...]:
        state = (h_0,) if c_0 is None else (h_0, c_0)
        with torch.autocast("cpu", torch.bfloat16, enabled=ctx.precision == BF16):
            h, final = functional.unroll(
                ctx.mode, x, state, functional.Weights(*weights), masks, lengths=ctx.lengths, reverse=ctx.reverse,
                hard_gates=ctx.hard_gates,
            )  # fmt: skip
        return h, *final

    return differentiable_gradients(unroll, inputs, gradients[: 3 if ctx.mode == "LSTM" else 2])
