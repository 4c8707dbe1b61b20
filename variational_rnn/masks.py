"""Dropout masks as plain values.

A mask is sampled outside the computation and passed in; no module stores one. The same masks can therefore be used for
several windows, moved to another device, inspected, or replaced by hand.

Every mask of a recurrent layer broadcasts against ``[T, G, B, features]`` (T time steps, G gates, B sequences); a size
of one says what is shared. ``[1, 1, B, H]`` is the paper's tied mask: one draw per sequence, kept for all time steps
and gates. ``[1, G, B, H]`` is untied, ``[T, 1, B, H]`` the naive dropout with fresh noise at every step, and
``[1, 1, 1, H]`` one draw of the weights for the whole batch.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

GateMasks = Literal["tied", "untied"]
TimeMasks = Literal["constant", "fresh"]
MaskSharing = Literal["sequence", "batch"]
MemoryScale = Literal["read", "loop"]
Seed = torch.Generator | int | None
"""Source of randomness: a generator on the masks' device, a seed for one, or torch's global generator."""


def check_choice(name: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    """Check the value of an option.

    Raises:
        ValueError: names the argument, the value and what is allowed.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_probability(name: str, p: float) -> float:
    """Return p as a float if it is a probability to drop, 0 <= p < 1.

    Raises:
        ValueError: names the argument, the value and what is allowed.
    """
    if isinstance(p, bool) or not isinstance(p, Real) or not 0.0 <= p < 1.0:
        raise ValueError(f"{name} is the probability to drop and must lie in [0, 1), got {p!r}")
    return float(p)


class Probability:
    """Descriptor of a probability to drop, checked whenever it is set on a module."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, module: Any, owner: type | None = None) -> Any:
        return self if module is None else module.__dict__.get(self.name, 0.0)

    def __set__(self, module: Any, p: float) -> None:
        module.__dict__[self.name] = check_probability(self.name, p)


class Choice:
    """Descriptor of an option with fixed values, checked whenever it is set on a module."""

    def __init__(self, *allowed: str) -> None:
        self.allowed = allowed  # the default first: layers that were pickled without the option have it

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, module: Any, owner: type | None = None) -> Any:
        return self if module is None else module.__dict__.get(self.name, self.allowed[0])

    def __set__(self, module: Any, value: str) -> None:
        check_choice(self.name, value, self.allowed)
        module.__dict__[self.name] = value


def generator_of(seed: Seed, device: torch.device) -> torch.Generator | None:
    """The generator to draw masks from: the given one, or one made from a seed.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(seed, Integral):
        return torch.Generator(device).manual_seed(int(seed))
    if seed is not None and not isinstance(seed, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or a seed, got {type(seed).__name__}")
    return seed


def sample_mask(
    *shape: int,
    p: float,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> Tensor | None:
    """Draw an inverted dropout mask: entries are 0 with probability p, else 1/(1-p), so that their mean is 1.

    Args:
        shape: the mask's sizes.
        p: probability to drop.
        device: of the mask.
        dtype: of the mask.
        generator: source of randomness; torch's global one by default.

    Returns:
        The mask, or None for p = 0.
    """
    if p == 0.0:
        return None
    # Not in place, which torch.vmap(randomness="different") refuses.
    return torch.empty(shape, device=device, dtype=dtype).bernoulli(1.0 - p, generator=generator).div_(1.0 - p)


def check_mask(name: str, mask: Tensor | None, like: Tensor, **axes: int | tuple[int, int]) -> None:
    """Check a mask's shape, dtype and device; None always passes.

    Args:
        name: of the mask, for the message.
        mask: the mask, or None.
        like: a tensor of the dtype and on the device that the mask must have.
        axes: for each axis its name and the size, or the two sizes, allowed.

    Raises:
        TypeError: the mask is no tensor.
        ValueError: names the mask, its property and the expected one.
    """
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a tensor or None, got {type(mask).__name__}")
    sizes = [(size,) if isinstance(size, int | torch.SymInt) else size for size in axes.values()]
    if mask.dim() != len(sizes) or any(size not in allowed for size, allowed in zip(mask.shape, sizes, strict=True)):
        expected = ", ".join(
            f"{axis} {'|'.join(map(str, dict.fromkeys(allowed)))}" for axis, allowed in zip(axes, sizes, strict=True)
        )
        raise ValueError(f"{name} has shape {list(mask.shape)}, expected [{expected}]")
    for what in ("dtype", "device"):
        got, expected = getattr(mask, what), getattr(like, what)
        if got != expected:
            raise ValueError(f"{name} has {what} {got}, expected {expected}: convert masks by their method `to`")


class LayerMasks(NamedTuple):
    """The masks of one layer in one direction, or of a cell; None where nothing is dropped.

    Attributes:
        input: ``[T|1, G|1, B|1, I]``, multiplies x before the input product (z_x of equations 4 to 7).
        recurrent: ``[T|1, G|1, B|1, H]``, multiplies h_{t-1} before the recurrent product (z_h).
        memory: ``[B|1, H]``, LSTM only: removes memory cells (Moon et al., equation 9); kept ones are scaled where they
            are read.
        memory_in_loop: ``[B|1, H]``, LSTM only: multiplies c at every step, scale included (equation 9 by the letter).
    """

    input: Tensor | None = None
    recurrent: Tensor | None = None
    memory: Tensor | None = None
    memory_in_loop: Tensor | None = None

    @property
    def is_shared(self) -> bool:
        """Whether all sequences and time steps have the same masked weight matrices, and keep all memory cells."""
        return (
            self.memory is None
            and self.memory_in_loop is None
            and all(mask is None or (mask.size(0) == 1 and mask.size(2) == 1) for mask in (self.input, self.recurrent))
        )

    def to(self, *args: Any, **kwargs: Any) -> LayerMasks:
        """Move the masks as `Tensor.to` does."""
        return LayerMasks(*(None if mask is None else mask.to(*args, **kwargs) for mask in self))

    def select(self, sequences: Tensor | list[int]) -> LayerMasks:
        """The masks of some sequences; what the batch shares stays shared.

        Args:
            sequences: indices into the batch, [B'].
        """
        return LayerMasks(
            *(
                mask
                if mask is None or mask.size(-2) == 1
                else mask.index_select(-2, torch.as_tensor(sequences, device=mask.device))
                for mask in self
            )
        )


class RNNMasks(NamedTuple):
    """The masks of a whole recurrent module.

    Attributes:
        layers: one `LayerMasks` for each layer and direction, in torch's order (l0, l0_reverse, l1, ...).
    """

    layers: tuple[LayerMasks, ...]

    def to(self, *args: Any, **kwargs: Any) -> RNNMasks:
        """Move the masks as `Tensor.to` does."""
        return RNNMasks(tuple(layer.to(*args, **kwargs) for layer in self.layers))

    def select(self, sequences: Tensor | list[int]) -> RNNMasks:
        """The masks of some sequences, for example of one process's part of the batch.

        Args:
            sequences: indices into the batch, [B'].
        """
        return RNNMasks(tuple(layer.select(sequences) for layer in self.layers))
