"""The softmax layer on the CPU: its product, and losses with their gradients in the memory of the logits.

These functions have no gradient of their own. `build.why_unsupported` says which tensors they can take.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from variational_rnn.kernels.build import BF16, in_memory, loaded, precision


def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias; on many processors faster than torch's product.

    Under bfloat16 autocast a and b are rounded; the sums and the result stay float32.

    Args:
        a: [M, K], with any strides; with products in bfloat16, it may be in bfloat16 already.
        b: [K, N], with any strides.
        bias: [N].

    Returns:
        [M, N].
    """
    a, b, bias = a.resolve_neg(), b.resolve_neg(), in_memory(bias)
    if 1 not in a.stride():
        a = a.contiguous()
    out = b.new_empty(a.size(0), b.size(1))
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    loaded().vrnn_matmul(
        precision(), torch.get_num_threads(), integer(a.size(0)), integer(b.size(1)), integer(a.size(1)),
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
    """Negative log-likelihood of targets, in nats; if a scale is given, its gradient overwrites the logits.

    With `expected` probabilities, also their cross-entropy with q = softmax(logits / temperature), in nats, and
    gamma * (q - expected) is added to the gradient.

    Args:
        logits: [N, V], contiguous; overwritten if scale is not None.
        targets: ids in [0, V), [N].
        scale: of the gradient, or None for none.
        expected: rows of probabilities, [U, V], contiguous.
        which: the row of `expected` for each target, ids in [0, U), [N].
        gamma: weight of the cross-entropy in the gradient.
        temperature: divides the logits in q.
        with_sum: whether to sum the gradient over rows.

    Returns:
        Negative log-likelihoods [N]; cross-entropies [N], empty without `expected`; the gradient scale *
        (softmax(logits) - onehot(targets)), [N, V], in bfloat16 under its autocast, since products will round it; and
        the sum of the gradient over rows, [V], taken before rounding, or None.

    Raises:
        IndexError: a target is not in [0, V).
    """
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < logits.size(1):
        raise IndexError(f"targets must lie in [0, {logits.size(1)}), got {int(targets.min())} to {int(targets.max())}")
    targets = targets.to(torch.int64).contiguous()
    nll, cross_entropy = logits.new_empty(len(logits)), logits.new_empty(0 if expected is None else len(logits))
    threads, bf16 = torch.get_num_threads(), precision() == BF16
    sums = logits.new_zeros(threads, logits.size(1)) if with_sum else None
    integer, pointer, real = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
    loaded().vrnn_softmax_nll(
        int(bf16), threads, integer(logits.size(0)), integer(logits.size(1)), pointer(logits.data_ptr()),
        pointer(targets.data_ptr()), real(scale or 0.0), pointer(nll.data_ptr()), int(scale is not None),
        *(pointer(None if tensor is None else tensor.data_ptr()) for tensor in (sums, expected, which)),
        real(gamma), real(temperature), pointer(cross_entropy.data_ptr()),
    )  # fmt: skip
    gradient = logits.view(torch.bfloat16)[:, : logits.size(1)] if bf16 else logits
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
    entropy, bf16 = logits.new_empty(len(logits)), precision() == BF16
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    loaded().vrnn_softmax(
        int(bf16), torch.get_num_threads(), integer(logits.size(0)), integer(logits.size(1)),
        pointer(logits.data_ptr()), ctypes.c_float(temperature), pointer(entropy.data_ptr()),
        *(pointer(None if tensor is None else tensor.data_ptr()) for tensor in (others, near)),
    )  # fmt: skip
    if others is not None and bf16:
        others = others.view(torch.bfloat16)[:, : logits.size(1)]
    return entropy, others
