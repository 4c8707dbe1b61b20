"""Fast twins of `functional.unroll`, one file for each kind of device; the reference is the oracle of all of them."""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType

import torch
from torch import Tensor

from variational_rnn import functional
from variational_rnn.kernels import cpu
from variational_rnn.kernels.autograd import is_plain
from variational_rnn.masks import LayerMasks

log = logging.getLogger(__name__)


def fast_twin(x: Tensor, state: functional.State, weights: functional.Weights, masks: LayerMasks) -> ModuleType | None:
    """The module whose `unroll` computes this layer fast, or None where it is left to the reference."""
    if x.size(1) == 0 or weights.hr is not None or masks.memory_in_loop is not None:
        return None
    if any(mask is not None and mask.requires_grad for mask in masks):
        return None
    if x.device.type == "cpu":
        return cpu if cpu.refusal_of(x, *state, *weights, *masks) is None else None
    if x.device.type != "cuda" or torch.version.hip or not is_plain(x, *state, *weights, *masks):
        return None
    parameters_are_float32 = all(tensor is None or tensor.dtype == torch.float32 for tensor in (*state, *weights))
    return cuda_twin(torch.cuda.get_device_capability(x.device)) if parameters_are_float32 else None


@functools.cache
def cuda_twin(capability: tuple[int, int]) -> ModuleType | None:
    """The backend for GPUs of a compute capability, or None where there is none; why is logged once."""
    reason = f"Triton's kernels need compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    if capability >= (8, 0):
        try:
            twin = importlib.import_module("variational_rnn.kernels.cuda")
            twin.try_out()
            return twin
        except Exception as error:  # whatever Triton, the compiler that it needs, or the driver raise
            reason = f"Triton does not work here ({type(error).__name__}: {error})"
    log.warning("variational_rnn: no fast CUDA backend, since %s; the reference is used", reason)
    return None
