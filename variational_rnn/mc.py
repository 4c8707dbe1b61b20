"""Monte Carlo dropout: keep dropout on at test time, and average what the sampled networks predict."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class DropoutModule(nn.Module):
    """Base of this library's modules: their dropout is live in training and inside `mc_dropout`."""

    _mc_dropout = False

    @property
    def dropout_is_live(self) -> bool:
        """Whether a forward pass without given masks samples masks."""
        return self.training or self._mc_dropout


@contextmanager
def mc_dropout(module: ModuleT) -> Iterator[ModuleT]:
    """Keep the dropout of this library live inside `module`, although `module.eval()` was called.

    Each forward pass draws new masks, that is a new sample of the weights from the approximate posterior (section 3 of
    the paper). `module.training` is not touched, so other layers stay in the mode they are in and a trainer's
    bookkeeping of train and eval mode has no effect. Contexts nest; the former setting comes back when one is left,
    also by an exception.

    Raises:
        ValueError: there is no dropout of this library in `module`; every pass would give the same.
    """
    modules = [m for m in module.modules() if isinstance(m, DropoutModule)]
    if not modules:
        raise ValueError(
            f"mc_dropout found no module of variational_rnn in {type(module).__name__}: there is nothing to sample"
        )
    before = [m._mc_dropout for m in modules]
    for m in modules:
        m._mc_dropout = True
    try:
        yield module
    finally:
        for m, was_live in zip(modules, before, strict=True):
            m._mc_dropout = was_live


def log_mean_exp(log_probs: Tensor, dim: int = 0) -> Tensor:
    """Log of the mean of probabilities given by their logs: ln((1/K) sum_k p_k), stable for any magnitude.

    This is what MC dropout averages: perplexity = exp(-mean_t ln((1/K) sum_k p_k(y_t))). The mean of logs would give
    another, larger perplexity.

    Args:
        log_probs: log probabilities of K samples along `dim`.
        dim: the dimension of samples.
    """
    return torch.logsumexp(log_probs, dim) - math.log(log_probs.size(dim))
