"""The softmax layer and its loss: half of the work of a language model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from variational_rnn.backends import cpu

ROWS = 64  # for fewer, torch's product is faster


def softmax_nll(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of targets under softmax(hidden W^T + b).

    On the CPU the gradient is computed along with the loss, in the memory of the logits: one [N, V] buffer instead of
    three. Elsewhere torch's own functions are used. Under autocast, logits are rounded (one of 10 by up to 0.03 in
    bfloat16) only by torch's functions and only where there is a gradient.

    Args:
        hidden: [N, H].
        weight: [V, H].
        bias: [V].
        targets: word ids, [N].
        scale: what the sum is multiplied by.

    Returns:
        Their scaled sum, in nats, which has a gradient, and each of them, [N], which has none.
    """
    rows = len(targets)
    if (rows >= ROWS or torch.is_autocast_enabled("cpu")) and cpu.refusal_of(hidden, weight, bias) is None:
        with_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (hidden, weight, bias))
        return _SoftmaxNLL.apply(hidden.float(), weight, bias, targets, scale, with_gradient)
    if torch.is_grad_enabled():
        logits = F.linear(hidden, weight, bias)
    else:
        with torch.autocast(hidden.device.type, enabled=False):
            logits = F.linear(hidden.to(weight.dtype), weight, bias)
    nll = F.cross_entropy(logits, targets, reduction="none")
    return nll.sum() * scale, nll.detach()


class _SoftmaxNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, scale: float, with_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        logits = cpu.matmul(hidden, weight.t(), bias.contiguous())
        nll = cpu.softmax_nll_(logits, targets, scale if with_gradient else None)
        if with_gradient:
            gradients = cpu.matmul(logits, weight), cpu.matmul(logits.t(), hidden), logits.sum(dim=0)
            ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(nll)
        return nll.sum() * scale, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        if dloss.item() != 1.0:  # it is 1 where this is the loss, which spares a pass over the gradients
            gradients = tuple(gradient * dloss for gradient in gradients)
        return *gradients, None, None, None
