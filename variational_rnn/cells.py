"""Single time steps of recurrent layers, for your own loops."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from variational_rnn import functional
from variational_rnn.functional import CELLS
from variational_rnn.masks import GateMasks, LayerMasks, MemoryScale, Seed, check_choice, generator_of
from variational_rnn.modules import RecurrentDropout


class VariationalCellBase(RecurrentDropout, nn.RNNCellBase):
    """Base of the cells: sampling masks, and one step under them."""

    def sample_masks(self, batch_size: int, *, generator: Seed = None) -> LayerMasks:
        """Draw the masks for `batch_size` sequences, once before the loop over time steps.

        Args:
            batch_size: number of sequences B; 1 gives masks that any batch can share.
            generator: source of randomness, a generator on the parameters' device or a seed; torch's global generator
                by default.

        Returns:
            Masks on the parameters' device and in their dtype.
        """
        weight = self.weight_ih
        source = generator_of(generator, weight.device)
        return self._sample_layer(1, batch_size, self.input_size, self.hidden_size, weight, source)

    def forward(self, input: Tensor, hx: Any = None, masks: LayerMasks | None = None) -> Any:
        """Run one time step, as torch.nn.LSTMCell, GRUCell and RNNCell do.

        Args:
            input: [B, I], or [I] for a single sequence.
            hx: state [B, H], for the LSTM a pair (h, c); zeros by default.
            masks: of `sample_masks`, the same ones at all time steps of a sequence; used whatever the mode.

        Returns:
            The next state, in the form of hx.

        Raises:
            TypeError: input, hx or masks are of the wrong type.
            ValueError: dropout is live and masks are missing, or masks do not fit.
            ValueError, RuntimeError: input or hx have the wrong form, as torch.nn raises them.
        """
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a tensor, got {type(input).__name__}")
        batch_size = self._check_sizes(input, hx)
        if masks is None:
            if self.dropout_is_live and (self.input_dropout or self.recurrent_dropout or self.memory_dropout):
                raise ValueError(
                    f"{type(self).__name__} cannot know where a sequence begins: draw masks = cell.sample_masks("
                    "batch_size) before the loop and pass them at every step; LayerMasks() drops nothing"
                )
            masks = LayerMasks()
        if not isinstance(masks, LayerMasks):
            raise TypeError(f"masks must be LayerMasks, as sample_masks returns them, got {type(masks).__name__}")
        self._check_layer("", masks, 1, batch_size, self.input_size, self.hidden_size, like=self.weight_ih)
        if CELLS[self.mode].torch_kernel is not None and all(mask is None for mask in masks):
            return super().forward(input, hx)

        has_memory = CELLS[self.mode].has_memory
        given = () if hx is None else hx if has_memory else (hx,)
        x = input.reshape(1, batch_size, self.input_size)
        state_size = (batch_size, self.hidden_size)
        state = (
            tuple(part.reshape(state_size) for part in given)
            if given
            else (x.new_zeros(state_size),) * (1 + has_memory)
        )
        weights = functional.Weights(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        _, state = functional.unroll(self.mode, x, state, weights, masks)
        if input.dim() == 1:
            state = tuple(part.squeeze(0) for part in state)
        return state if has_memory else state[0]

    def _check_sizes(self, input: Tensor, hx: Any) -> int:
        """Check input and state, with the exceptions and wording of torch.nn; return the number of sequences."""
        self._check_state_type(hx)
        name = type(self).__name__
        if input.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if input.size(-1) != self.input_size:
            raise RuntimeError(
                f"{name}: input has inconsistent input_size: got {input.size(-1)} expected {self.input_size}"
            )
        batch_size = input.size(0) if input.dim() == 2 else 1
        has_memory = CELLS[self.mode].has_memory
        for index, part in enumerate(() if hx is None else hx if has_memory else (hx,)):
            if part.dim() not in (1, 2):
                hidden = f"hx[{index}]" if has_memory else "hidden"
                raise ValueError(f"{name}: Expected {hidden} to be 1D or 2D, got {part.dim()}D instead")
            if part.dim() != input.dim():
                raise RuntimeError(f"{name}: For {input.dim()}D input, hidden{index} should also be {input.dim()}D")
            if part.size(-1) != self.hidden_size:
                raise RuntimeError(
                    f"{name}: hidden{index} has inconsistent hidden_size: got {part.size(-1)}, "
                    f"expected {self.hidden_size}"
                )
            if part.dim() == 2 and part.size(0) != batch_size:
                raise RuntimeError(
                    f"{name}: Input batch size {batch_size} doesn't match hidden{index} batch size {part.size(0)}"
                )
        return batch_size


class VariationalLSTMCell(VariationalCellBase, nn.LSTMCell):
    """`torch.nn.LSTMCell` with dropout on its input and on h.

    A cell sees one time step and cannot know where a sequence begins. Its masks are therefore drawn by the caller, once
    per sequence, and passed at every step; where dropout is live, a call without masks is refused.

    Args:
        input_size: number of features of x.
        hidden_size: number of features of h and c.
        bias: whether there are b_ih and b_hh.
        input_dropout: probability to drop a unit of x.
        recurrent_dropout: probability to drop a unit of h where it enters the recurrent product.
        memory_dropout: probability to remove a memory cell (Moon et al. 2015; equation 9 of the paper).
        memory_scale: "read": a kept cell counts 1/(1-p) times where it is read, by h; "loop": it is multiplied by
            1/(1-p) at every step, as equation 9 is written.
        gate_masks: "tied": one mask for all gates (equations 6 and 7); "untied": one for each (equations 4 and 5).
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a probability is not in [0, 1), or gate_masks is unknown.

    Example:
        >>> import torch
        >>> cell = VariationalLSTMCell(10, 20, input_dropout=0.35, recurrent_dropout=0.2)
        >>> x = torch.randn(7, 3, 10)
        >>> state = None
        >>> masks = cell.sample_masks(batch_size=3) if cell.dropout_is_live else None
        >>> for x_t in x:
        ...     state = cell(x_t, state, masks)
        >>> state[0].shape
        torch.Size([3, 20])
    """

    mode = "LSTM"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        memory_dropout: float = 0.0,
        memory_scale: MemoryScale = "read",
        gate_masks: GateMasks = "tied",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device=device, dtype=dtype)
        self._set_dropout(input_dropout, recurrent_dropout, gate_masks, memory_dropout, memory_scale)


class VariationalGRUCell(VariationalCellBase, nn.GRUCell):
    """`torch.nn.GRUCell` with dropout on its input and on h where it enters the recurrent product.

    Arguments and use are those of `VariationalLSTMCell`, without memory_dropout and memory_scale.

    Raises:
        ValueError: a probability is not in [0, 1), or gate_masks is unknown.
    """

    mode = "GRU"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        gate_masks: GateMasks = "tied",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device=device, dtype=dtype)
        self._set_dropout(input_dropout, recurrent_dropout, gate_masks)


class VariationalRNNCell(VariationalCellBase, nn.RNNCell):
    """`torch.nn.RNNCell` with dropout on its input and on h where it enters the recurrent product.

    Arguments and use are those of `VariationalLSTMCell`, without memory_dropout and memory_scale; with one gate,
    tied and untied are the same.

    Args:
        nonlinearity: "tanh" or "relu".

    Raises:
        ValueError: a probability is not in [0, 1), or a choice is unknown.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        *,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        gate_masks: GateMasks = "tied",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_choice("nonlinearity", nonlinearity, ("tanh", "relu"))  # torch.nn looks at it in the first step only
        super().__init__(input_size, hidden_size, bias, nonlinearity, device=device, dtype=dtype)
        self._set_dropout(input_dropout, recurrent_dropout, gate_masks)
        self.mode = f"RNN_{nonlinearity.upper()}"
