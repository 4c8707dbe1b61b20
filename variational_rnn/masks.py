"""What is random: dropout masks as plain values.

A mask is sampled outside the computation and passed in; no module stores one. The same masks can therefore be used for
several windows, moved to another device, inspected, or replaced by hand.

Every mask of a recurrent layer broadcasts against ``[T, G, B, features]`` (T time steps, G gates, B sequences); a size
of one says what is shared. ``[1, 1, B, H]`` is the paper's tied mask: one draw per sequence, kept for all time steps
and gates. ``[1, G, B, H]`` is untied, ``[T, 1, B, H]`` the naive dropout with fresh noise at every step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


def check_probability(name: str, p: float) -> float:
    """Return p if it is a probability to drop that leaves something, that is 0 <= p < 1.

    Raises:
        ValueError: names the argument, the value and what is allowed.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{name} is the probability to drop and must lie in [0, 1), got {p}")
    return p


def sample_mask(
    *shape: int,
    p: float,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> Tensor | None:
    """One draw of an inverted dropout mask: entries 0 with probability p, else 1/(1-p), so that the mean is 1.

    Args:
        shape: the mask's sizes.
        p: probability to drop.
        generator: source of randomness; torch's global one by default.

    Returns:
        The mask, or None for p = 0: nothing is multiplied where nothing is dropped.
    """
    if p == 0.0:
        return None
    return torch.empty(shape, device=device, dtype=dtype).bernoulli_(1.0 - p, generator=generator).div_(1.0 - p)


def check_mask(name: str, mask: Tensor | None, *allowed: set[int]) -> None:
    """Check a mask's shape, one set of allowed sizes for each dimension; None is no mask and fits everywhere.

    Raises:
        ValueError: names the mask, its shape and the expected one.
    """
    if mask is None:
        return
    if mask.dim() != len(allowed) or any(size not in sizes for size, sizes in zip(mask.shape, allowed, strict=True)):
        expected = ", ".join("|".join(map(str, sorted(sizes))) for sizes in allowed)
        raise ValueError(f"{name} has shape {list(mask.shape)}, expected [{expected}]")


class LayerMasks(NamedTuple):
    """The masks of one layer in one direction; None where nothing is dropped.

    Attributes:
        input: ``[T|1, G|1, B|1, I]``, multiplies x before the input product (z_x of equations 4 to 7).
        recurrent: ``[T|1, G|1, B|1, H]``, multiplies h_{t-1} before the recurrent product (z_h).
        memory: ``[B|1, H]``, LSTM only: removes memory cells (Moon et al., equation 9).
    """

    input: Tensor | None = None
    recurrent: Tensor | None = None
    memory: Tensor | None = None

    def to(self, *args: Any) -> LayerMasks:
        """Move the masks as `Tensor.to` does."""
        return LayerMasks(*(None if mask is None else mask.to(*args) for mask in self))


class RNNMasks(NamedTuple):
    """The masks of a whole recurrent module.

    Attributes:
        layers: one `LayerMasks` for each layer and direction, in torch's order (l0, l0_reverse, l1, ...).
    """

    layers: tuple[LayerMasks, ...]

    def to(self, *args: Any) -> RNNMasks:
        """Move the masks as `Tensor.to` does."""
        return RNNMasks(tuple(layer.to(*args) for layer in self.layers))
