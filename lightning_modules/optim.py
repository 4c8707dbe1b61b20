"""The optimiser of the language-model experiments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class DecoupledSGD(torch.optim.SGD):
    """Plain SGD followed by weight decay on the already updated parameters: w <- w - lr*g, then w <- w - decay*w.

    The decay is not multiplied by the learning rate (protocol section 1.3), unlike that of torch.optim.SGD, which adds
    it to the gradient.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        decay: fraction that every parameter shrinks by in each step.

    Raises:
        ValueError: decay is not in [0, 1).
    """

    def __init__(self, params: Any, lr: float, decay: float = 0.0) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"weight_decay must lie in [0, 1), got {decay}")
        super().__init__(params, lr=lr)
        self.decay = decay

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters once."""
        loss = super().step(closure)
        if self.decay:
            with torch.no_grad():
                parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
                torch._foreach_mul_(parameters, 1.0 - self.decay)
        return loss
