"""Fast implementations of `functional.unroll`, one module for each kind of device, tested against that reference.

A kernel is a module with `why_unsupported(mode, x, state, weights, masks)`, which is None if it can compute the layer,
and `unroll`, with the arguments and results of `functional.unroll`.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from variational_rnn import functional
from variational_rnn.kernels import cpu
from variational_rnn.kernels.common import is_plain
from variational_rnn.masks import LayerMasks

log = logging.getLogger(__name__)


def choose_kernel(
    mode: str, x: Tensor, state: functional.State, weights: functional.Weights, masks: LayerMasks
) -> Callable[..., Any]:
    """The fastest `unroll` for these arguments: a kernel's, or the reference `functional.unroll`."""
    kernel: ModuleType | None = None
    if x.device.type == "cpu":
        kernel = cpu
    elif x.device.type == "cuda" and not torch.version.hip and is_plain(x):
        kernel = cuda_kernel(torch.cuda.get_device_capability(x.device))
    if kernel is None or kernel.why_unsupported(mode, x, state, weights, masks) is not None:
        return functional.unroll
    return kernel.unroll


@functools.cache
def cuda_kernel(capability: tuple[int, int]) -> ModuleType | None:
    """The kernel for GPUs of a compute capability, or None where there is none; the reason is logged once."""
    reason = f"Triton's kernels need compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    if capability >= (8, 0):
        try:
            kernel = importlib.import_module("variational_rnn.kernels.cuda")
            kernel.try_out()
            return kernel
        except Exception as error:  # from Triton, its compiler or the driver
            reason = f"Triton does not work here ({type(error).__name__}: {error})"
    log.warning("variational_rnn: no fast CUDA kernels, since %s; the reference is used", reason)
    return None
