"""Dropout of a network's output."""

from __future__ import annotations

import torch
from torch import Tensor

from variational_rnn.masks import (
    Choice,
    MaskSharing,
    Probability,
    Seed,
    TimeMasks,
    check_mask,
    generator_of,
    sample_mask,
)
from variational_rnn.mc import DropoutModule


class VariationalDropout(DropoutModule):
    """Dropout of units with one mask per sequence, kept for every time step.

    For a network's output, for example before a softmax layer. On [T, B, F] the mask is [1, B, F]. Two dimensions are
    [B, F], values without time, where it is like torch.nn.Dropout; a single sequence is [T, 1, F].

    Args:
        p: probability to drop.
        time_masks: "constant" keeps the mask over time; "fresh" draws one for every time step.
        batch_first: three-dimensional values are [B, T, F] instead of [T, B, F]; masks stay [T|1, B|1, F].
        mask_sharing: "sequence" draws for each sequence, "batch" once for all of a call.

    Raises:
        ValueError: p is not in [0, 1), or a choice is unknown.
    """

    p = Probability()
    time_masks = Choice("constant", "fresh")
    mask_sharing = Choice("sequence", "batch")

    def __init__(
        self,
        p: float,
        time_masks: TimeMasks = "constant",
        *,
        batch_first: bool = False,
        mask_sharing: MaskSharing = "sequence",
    ) -> None:
        super().__init__()
        self.p = p
        self.time_masks = time_masks
        self.batch_first = batch_first
        self.mask_sharing = mask_sharing

    def sample_masks(
        self,
        batch_size: int,
        features: int,
        steps: int | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        generator: Seed = None,
    ) -> Tensor | None:
        """Draw a mask [1, B, F], or [T, B, F] when fresh for every time step; None for p = 0.

        Args:
            batch_size: number of sequences B; one row is drawn for all of them with mask_sharing="batch".
            features: F.
            steps: number of time steps T; needed only for time_masks="fresh".
            device: of the mask.
            dtype: of the mask.
            generator: source of randomness, a generator on the device or a seed; torch's global one by default.

        Raises:
            ValueError: fresh masks are asked for without the number of time steps.
        """
        if self.time_masks == "fresh" and steps is None:
            raise ValueError("time_masks='fresh' draws a mask for every time step: pass steps")
        times = 1 if steps is None or self.time_masks == "constant" else steps
        rows = batch_size if self.mask_sharing == "sequence" else 1
        device = torch.device(device)
        source = generator_of(generator, device)
        return sample_mask(times, rows, features, p=self.p, device=device, dtype=dtype, generator=source)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Drop units. Without a mask, one is sampled where dropout is live.

        Args:
            x: values, [T, B, F] ([B, T, F] with batch_first) or [B, F].
            mask: of `sample_masks`, [T|1, B|1, F].

        Raises:
            TypeError: x is not a tensor.
            ValueError: x or the mask has another form.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}; unpack packed sequences first")
        if mask is None and not (self.dropout_is_live and self.p):
            return x
        if x.dim() not in (2, 3):
            expected = "[B, T, F] or [B, F]" if self.batch_first else "[T, B, F] or [B, F]"
            raise ValueError(f"{type(self).__name__}: expected {expected}, got {list(x.shape)}")
        x_TBF = x.unsqueeze(0) if x.dim() == 2 else x.transpose(0, 1) if self.batch_first else x
        steps, batch_size, features = x_TBF.shape
        if mask is None:
            mask = self.sample_masks(batch_size, features, steps, device=x.device, dtype=x.dtype)
        assert mask is not None
        check_mask("mask", mask, x, time=(1, steps), batch=(1, batch_size), features=features)
        dropped_TBF = x_TBF * mask
        return (
            dropped_TBF.squeeze(0) if x.dim() == 2 else dropped_TBF.transpose(0, 1) if self.batch_first else dropped_TBF
        )

    def extra_repr(self) -> str:  # noqa: D102
        shown = f"p={self.p}, time_masks={self.time_masks!r}, mask_sharing={self.mask_sharing!r}"
        return f"{shown}, batch_first=True" if self.batch_first else shown
