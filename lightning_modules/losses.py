"""Softmax layer and loss in one function, for speed: they are half of the work of a language model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from variational_rnn.kernels import build, softmax
from variational_rnn.kernels.common import differentiable_gradients, is_plain

ROWS = 64  # for fewer, torch's product is faster
TEMPERATURE = 20.0  # tau of the augmented loss


def softmax_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float = 1.0,
    embedding: Tensor | None = None,
    gamma: float = 0.0,
    learn_expected: bool = False,
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of targets under softmax(hidden W^T + b).

    With gamma > 0, the loss of Inan et al. (2016) is added: gamma * tau * KL(y || q) for each target, where
    q = softmax((hidden W^T + b) / tau), y = softmax(E e / tau) with the target's vector e = E[target], and tau = 20.
    It rewards words that are similar to the target. No gradient goes through y, unless `learn_expected`.

    On the CPU the gradient is computed along with the loss, in the memory of the logits: one [N, V] buffer, where
    torch's functions take several. gamma adds a buffer with a row for each type among the targets, `learn_expected`
    another one. On other devices, and for create_graph=True, torch's own functions are used.
    Under autocast, only torch's functions round logits (10 by up to 0.03 in bfloat16), and only if there is a gradient.

    Args:
        hidden: [N, H].
        weight: [V, H].
        bias: [V], or None.
        targets: word ids, [N].
        scale: factor of the sum.
        embedding: E, [V, H], needed with gamma.
        gamma: weight of the added loss.
        learn_expected: whether the added loss has a gradient with respect to E.

    Returns:
        The scaled sum of the losses, in nats, and the negative log-likelihood of each target, [N], without gradient.
    """
    if not gamma:
        embedding = None
    is_worth_it = len(targets) >= ROWS or torch.is_autocast_enabled("cpu")
    if is_worth_it and is_plain(targets) and build.why_unsupported(hidden, weight, bias, embedding) is None:
        with_gradient = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias, embedding)
        )
        if embedding is not None and not learn_expected:
            embedding = embedding.detach()
        return _SoftmaxNLL.apply(hidden.float(), weight, bias, targets, scale, embedding, gamma, with_gradient)
    return _by_torch(hidden, weight, bias, targets, scale, embedding, gamma, learn_expected)


def _by_torch(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float,
    embedding: Tensor | None,
    gamma: float,
    learn_expected: bool,
) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled():
        logits = F.linear(hidden, weight, bias)
    else:
        with torch.autocast(hidden.device.type, enabled=False):
            logits = F.linear(hidden.to(weight.dtype), weight, bias)
    nll = F.cross_entropy(logits, targets, reduction="none")
    loss = nll.sum()
    if embedding is not None:
        with torch.set_grad_enabled(torch.is_grad_enabled() and learn_expected):
            expected = F.log_softmax(F.linear(embedding[targets], embedding) / TEMPERATURE, dim=1)
        predicted = F.log_softmax(logits / TEMPERATURE, dim=1)
        loss = loss + gamma * TEMPERATURE * F.kl_div(predicted, expected, reduction="sum", log_target=True)
    return loss * scale, nll.detach()


class _SoftmaxNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        embedding: Tensor | None,
        gamma: float,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        logits = softmax.matmul(hidden, weight.t(), bias)
        dembedding = None
        factor, with_sum = scale if with_gradient else None, with_gradient and bias is not None
        if embedding is None:
            nll, _, gradient, dbias = softmax.softmax_nll_(logits, targets, factor, with_sum=with_sum)
            loss = nll.sum()
        else:
            types, which, counts = targets.unique(return_inverse=True, return_counts=True)
            vectors = embedding[types]
            expected, mean_logits = softmax.matmul(vectors, embedding.t()), None
            if with_gradient and ctx.needs_input_grad[5]:
                # KL(y || q), summed over equal targets, is that many times KL(y || softmax(mean logits / tau)), but for
                # what has no gradient through y; and the mean logits are those of the mean hidden state.
                mean_hidden = hidden.new_zeros(vectors.shape).index_add_(0, which, hidden).div_(counts[:, None])
                mean_logits = softmax.matmul(mean_hidden, weight.t(), bias)
            entropy, dproduct = softmax.softmax_(expected, TEMPERATURE, mean_logits, types)
            nll, cross_entropy, gradient, dbias = softmax.softmax_nll_(
                logits, targets, factor, expected, which, gamma, TEMPERATURE, with_sum
            )
            loss = nll.sum() + gamma * TEMPERATURE * (cross_entropy - entropy[which]).sum()
            if dproduct is not None:
                scales = (counts * (gamma * scale / TEMPERATURE))[:, None]
                dembedding = softmax.matmul(dproduct.t(), vectors * scales)
                dembedding.index_add_(0, types, softmax.matmul(dproduct, embedding) * scales)
        if with_gradient:
            gradients = softmax.matmul(gradient, weight), softmax.matmul(gradient.t(), hidden), dbias, dembedding
            ctx.save_for_backward(*gradients, hidden, weight, bias, embedding, targets)
            ctx.scale, ctx.gamma = scale, gamma
        ctx.mark_non_differentiable(nll)
        return loss * scale, nll

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *gradients, hidden, weight, bias, embedding, targets = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_plain(dloss):

            def loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, embedding: Tensor | None) -> tuple[Tensor]:
                with torch.autocast("cpu", enabled=False):
                    learned = embedding is not None and embedding.requires_grad
                    return _by_torch(hidden, weight, bias, targets, ctx.scale, embedding, ctx.gamma, learned)[:1]

            gradients = differentiable_gradients(loss, [hidden, weight, bias, embedding], [dloss])
        elif dloss.item() != 1.0:  # it is 1 where this is the loss, which spares a pass over the gradients
            gradients = [None if gradient is None else gradient * dloss for gradient in gradients]
        dhidden, dweight, dbias, dembedding = gradients
        return dhidden, dweight, dbias, None, None, dembedding, None, None
