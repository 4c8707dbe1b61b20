"""The optimiser of the language-model experiments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from datamodules.checks import check_number


class DecoupledSGD(torch.optim.Optimizer):
    """Plain SGD followed by weight decay on the already updated parameters: w <- w - lr*g, then w <- w - decay*w.

    The decay is not multiplied by the learning rate (protocol section 1.3), unlike that of torch.optim.SGD, which adds
    it to the gradient. Where torch's fused SGD can, it clips, updates and decays in one pass over the parameters.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        decay: fraction that every parameter shrinks by in each step.

    Raises:
        ValueError: lr is negative or not finite, or decay is not in [0, 1).
    """

    def __init__(self, params: Any, lr: float, decay: float = 0.0) -> None:
        [lr] = check_number(0, learning_rate=lr)
        [self.decay] = check_number(0, below=1, weight_decay=decay)
        super().__init__(params, {"lr": lr})
        self._gradient_divisor: Tensor | None = None

    def clip(self, norm: Tensor, max_norm: float) -> None:
        """Let the next step clip the gradients, which have this norm, as clip_grads_with_norm_ does."""
        self._gradient_divisor = ((norm + 1e-6) / max_norm).clamp(min=1.0).float()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            rate = group["lr"] * (1.0 - self.decay)
            if rate > 0.0 and all(map(_can_be_fused, parameters, gradients)):
                # (w - lr*g)(1 - decay) = w - rate*(g + decay/rate * w), which is what torch's fused SGD computes.
                torch._fused_sgd_(
                    parameters, gradients, [], weight_decay=self.decay / rate, momentum=0.0, lr=rate, dampening=0.0,
                    nesterov=False, maximize=False, is_first_step=False, grad_scale=self._gradient_divisor,
                )  # fmt: skip
                continue
            if self._gradient_divisor is not None:
                torch._foreach_div_(gradients, self._gradient_divisor)
            torch._foreach_add_(parameters, gradients, alpha=-group["lr"])
            torch._foreach_mul_(parameters, 1.0 - self.decay)
        self._gradient_divisor = None
        return loss


def _can_be_fused(parameter: Tensor, gradient: Tensor) -> bool:
    """The fused kernels read memory in order, and that of the CPU leaves parameters of lower precision as they are."""
    return (
        parameter.device.type in ("cpu", "cuda")
        and parameter.dtype in (torch.float32, torch.float64)
        and parameter.is_contiguous()
        and gradient.is_contiguous()
    )
