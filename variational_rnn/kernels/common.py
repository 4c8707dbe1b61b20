"""Shared by the kernels: the calls they can take, and gradients that can be differentiated again."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from variational_rnn.functional import Weights
from variational_rnn.masks import LayerMasks


def why_unsupported_layer(
    modes: Container[str], mode: str, x: Tensor, weights: Weights, masks: LayerMasks
) -> str | None:
    """Why a kernel that knows these modes cannot compute a layer, whatever the device, or None if it can."""
    if mode not in modes:
        return f"it has no cell {mode}"
    if x.size(1) == 0:
        return "the batch is empty"
    if weights.hr is not None:
        return "it has no projection"
    if masks.memory_in_loop is not None:
        return "it has no memory mask in the loop"
    if any(mask is not None and mask.requires_grad for mask in masks):
        return "it has no gradient of masks"
    return None


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether tensors are plain memory and calls on them are neither traced nor transformed.

    False under torch.compile, torch.export, torch.jit.trace, torch.func, forward-mode differentiation, make_fx,
    FakeTensorMode and any other dispatch mode, and for wrapper subclasses such as DTensor. Pointers would be null
    there, or the result would be recorded as a constant.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.maybe_current_level() is not None
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._ops._len_torch_dispatch_stack_pre_dispatch() > 0
    ) and all(tensor is None or _has_memory(tensor) for tensor in tensors)


def _has_memory(tensor: Tensor) -> bool:
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return False
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:  # batched and sparse tensors have no storage
        return False


def differentiable_gradients(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor | None], gradients: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Recompute a function and differentiate it by autograd, with a graph of the gradients under create_graph=True.

    Args:
        function: the same computation in operations of torch.
        inputs: its arguments.
        gradients: of its results; None where a result was not used.

    Returns:
        Gradients of the inputs; None for those that require none.
    """
    with torch.enable_grad():
        # One input may depend on another, as the second window's state does on the weights. Aliases cut that path.
        aliases = [
            tensor.view_as(tensor) if tensor is not None and tensor.requires_grad else tensor for tensor in inputs
        ]
        results = function(*aliases)
    used = [index for index, gradient in enumerate(gradients) if gradient is not None]
    wanted = [alias for alias in aliases if alias is not None and alias.requires_grad]
    found = iter(
        torch.autograd.grad(
            [results[index] for index in used],
            wanted,
            [gradients[index] for index in used],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    )
    return [next(found) if alias is not None and alias.requires_grad else None for alias in aliases]
