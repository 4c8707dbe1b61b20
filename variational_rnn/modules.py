"""Recurrent layers with the dropout of Gal & Ghahramani (2016), in the form of torch.nn's."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from variational_rnn import functional
from variational_rnn.masks import LayerMasks, RNNMasks, check_mask, check_probability, sample_mask
from variational_rnn.mc import DropoutModule


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


class VariationalDropout(DropoutModule):
    """Dropout of units with one mask per sequence, kept for every time step.

    For a network's output, for example before a softmax layer. Like torch.nn.Dropout on [B, F]; on [T, B, F] the mask
    is [1, B, F].

    Args:
        p: probability to drop.
        time_masks: "constant" keeps the mask over time; "fresh" draws one for every time step.

    Raises:
        ValueError: p is not in [0, 1), or time_masks is unknown.
    """

    def __init__(self, p: float, time_masks: Literal["constant", "fresh"] = "constant") -> None:
        super().__init__()
        _check_choice("time_masks", time_masks, ("constant", "fresh"))
        self.p = check_probability("p", p)
        self.time_masks = time_masks

    def sample_masks(
        self,
        batch_size: int,
        features: int,
        steps: int | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor | None:
        """Draw a mask [1, B, F], or [T, B, F] when fresh for every time step; None for p = 0.

        Raises:
            ValueError: fresh masks are asked for without the number of time steps.
        """
        if self.time_masks == "fresh" and steps is None:
            raise ValueError("time_masks='fresh' draws a mask for every time step: pass steps")
        times = steps or 1 if self.time_masks == "fresh" else 1
        return sample_mask(times, batch_size, features, p=self.p, device=device, dtype=dtype, generator=generator)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Drop units of x, [T, B, F] or [B, F]; the mask is sampled where dropout is live and none is given.

        Args:
            x: values.
            mask: of `sample_masks`, [T|1, B|1, F].

        Raises:
            ValueError: the mask has another shape.
        """
        if mask is None and self.dropout_is_live:
            steps = x.size(0) if x.dim() == 3 else 1
            mask = self.sample_masks(x.size(-2), x.size(-1), steps, device=x.device, dtype=x.dtype)
        if mask is None:
            return x
        check_mask("mask", mask, {1, x.size(0)} if x.dim() == 3 else {1}, {1, x.size(-2)}, {x.size(-1)})
        return x * (mask.squeeze(0) if x.dim() == 2 else mask)

    def extra_repr(self) -> str:  # noqa: D102
        return f"p={self.p}, time_masks={self.time_masks!r}"


class _VariationalBase(DropoutModule, nn.RNNBase):
    """What the three layers share: sampling masks, and running layers and directions over any form of input."""

    _gates: int
    _has_cell_state = False

    def _init_dropout(
        self, input_dropout: float, recurrent_dropout: float, gate_masks: str, time_masks: str, backend: str
    ) -> None:
        if not isinstance(self.bidirectional, bool):  # torch.nn has dropout in this place
            raise TypeError(f"bidirectional must be True or False, got {self.bidirectional!r}")
        _check_choice("gate_masks", gate_masks, ("tied", "untied"))
        _check_choice("time_masks", time_masks, ("constant", "fresh"))
        _check_choice("backend", backend, ("auto", "reference"))
        self.input_dropout = check_probability("input_dropout", input_dropout)
        self.recurrent_dropout = check_probability("recurrent_dropout", recurrent_dropout)
        self.memory_dropout = 0.0
        self.gate_masks = gate_masks
        self.time_masks = time_masks
        self.backend = backend

    def _step(self, masks: LayerMasks) -> functional.Step:
        raise NotImplementedError

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def sample_masks(
        self, batch_size: int, steps: int | None = None, *, generator: torch.Generator | None = None
    ) -> RNNMasks:
        """Draw the masks of all layers for `batch_size` sequences: one sample of the weights for each.

        Args:
            batch_size: number of sequences B. Row b of every mask belongs to sequence b as the caller orders them,
                for packed sequences too.
            steps: number of time steps T; needed only for time_masks="fresh".
            generator: source of randomness; torch's global one by default.

        Returns:
            Masks on the parameters' device and in their dtype.

        Raises:
            ValueError: time_masks is "fresh" and steps is missing.
        """
        if self.time_masks == "fresh" and steps is None:
            raise ValueError("time_masks='fresh' draws masks for every time step: pass steps")
        times = steps or 1 if self.time_masks == "fresh" else 1
        gates = self._gates if self.gate_masks == "untied" else 1
        weight: Tensor = self.all_weights[0][0]
        sample = partial(sample_mask, device=weight.device, dtype=weight.dtype, generator=generator)
        layers = []
        for layer in range(self.num_layers):
            features = self.input_size if layer == 0 else self.hidden_size * self._directions
            for _ in range(self._directions):
                input_mask = sample(times, gates, batch_size, features, p=self.input_dropout)
                recurrent = sample(times, gates, batch_size, self.hidden_size, p=self.recurrent_dropout)
                memory = sample(batch_size, self.hidden_size, p=self.memory_dropout)
                layers.append(LayerMasks(input_mask, recurrent, memory))
        return RNNMasks(tuple(layers))

    def forward(self, input: Tensor | PackedSequence, hx: Any = None, masks: RNNMasks | None = None) -> tuple[Any, Any]:
        """Run the network over sequences, as torch.nn.LSTM, GRU and RNN do.

        Args:
            input: [T, B, I] ([B, T, I] with batch_first), [T, I] for a single sequence, or a PackedSequence.
            hx: initial state: h [L*D, B, H], for the LSTM a pair (h, c); zeros by default.
            masks: of `sample_masks`, used whatever the mode. Without them they are sampled afresh in training and
                inside `mc_dropout`, and nothing is dropped otherwise.

        Returns:
            output: the last layer's h, in the form of the input, [T, B, D*H].
            state: the final state in the form of hx. Input and recurrent masks leave no trace on either, since they
                multiply what enters a product. Memory masks do: a removed cell has c = h = 0, a kept h is scaled.

        Raises:
            ValueError: masks do not fit this module or input.
            RuntimeError, ValueError: input or hx have the wrong form, as torch.nn raises them.
        """
        batch_size, steps = self._batch_and_steps(input)
        if masks is None and self.dropout_is_live:
            masks = self.sample_masks(batch_size, steps)
        if masks is not None:
            self._check_masks(masks, batch_size, steps)
        layers = (LayerMasks(),) * self.num_layers * self._directions if masks is None else masks.layers
        if self.backend == "auto" and all(mask is None for layer in layers for mask in layer):
            return super().forward(input, hx)  # nothing to drop: torch's own kernel
        return self._forward_reference(input, hx, layers)

    def _batch_and_steps(self, input: Tensor | PackedSequence) -> tuple[int, int]:
        if isinstance(input, PackedSequence):
            return int(input.batch_sizes[0]), input.batch_sizes.size(0)
        if input.dim() not in (2, 3):
            raise ValueError(f"{type(self).__name__}: expected input of 2 or 3 dimensions, got {input.dim()}")
        if input.dim() == 2:
            return 1, input.size(0)
        return (input.size(0), input.size(1)) if self.batch_first else (input.size(1), input.size(0))

    def _forward_reference(
        self, input: Tensor | PackedSequence, hx: Any, masks: tuple[LayerMasks, ...]
    ) -> tuple[Any, Any]:
        valid = None
        unbatched = False
        if isinstance(input, PackedSequence):
            x, lengths = pad_packed_sequence(input)
            valid = (torch.arange(x.size(0)).unsqueeze(1) < lengths).unsqueeze(-1).to(x.device)
        else:
            unbatched = input.dim() == 2
            x = input.unsqueeze(1) if unbatched else input.transpose(0, 1) if self.batch_first else input
        self.check_input(x, None)
        state = self._initial_state(x, hx, unbatched)

        finals: list[functional.State] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(self._directions):
                index = layer * self._directions + direction
                memory = masks[index].memory
                initial = tuple(s[index] if memory is None else s[index] * (memory != 0) for s in state)
                weight_ih, weight_hh, *biases = self.all_weights[index]
                bias_ih, bias_hh = biases or (None, None)
                output, final = functional.unroll(
                    self._step(masks[index]),
                    x,
                    initial,
                    weight_ih,
                    weight_hh,
                    bias_ih,
                    bias_hh,
                    masks[index],
                    valid=valid,
                    reverse=direction == 1,
                )
                outputs.append(output)
                finals.append(final)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

        h_n, *c_n = (torch.stack(parts) for parts in zip(*finals, strict=True))
        if unbatched:
            x, h_n, c_n = x.squeeze(1), h_n.squeeze(1), [c.squeeze(1) for c in c_n]
        output_state = (h_n, *c_n) if self._has_cell_state else h_n
        if isinstance(input, PackedSequence):
            return self._pack_like(input, x, lengths), output_state
        return x.transpose(0, 1) if self.batch_first and not unbatched else x, output_state

    def _initial_state(self, x: Tensor, hx: Any, unbatched: bool) -> tuple[Tensor, ...]:
        shape = (self.num_layers * self._directions, x.size(1), self.hidden_size)
        parts = 2 if self._has_cell_state else 1
        if hx is None:
            return (x.new_zeros(shape),) * parts
        state = hx if self._has_cell_state else (hx,)
        if unbatched:
            state = tuple(s.unsqueeze(1) for s in state)
        for name, part in zip(("h", "c"), state, strict=False):
            self.check_hidden_size(part, shape, f"Expected {name} of hx to be {{}}, got {{}}")
        return state

    def _check_masks(self, masks: RNNMasks, batch_size: int, steps: int) -> None:
        if len(masks.layers) != self.num_layers * self._directions:
            raise ValueError(
                f"masks are of {len(masks.layers)} layers and directions, "
                f"this {type(self).__name__} has {self.num_layers * self._directions}"
            )
        for index, layer in enumerate(masks.layers):
            features = self.input_size if index < self._directions else self.hidden_size * self._directions
            times, gates, batch = {1, steps}, {1, self._gates}, {1, batch_size}
            check_mask(f"input mask {index}", layer.input, times, gates, batch, {features})
            check_mask(f"recurrent mask {index}", layer.recurrent, times, gates, batch, {self.hidden_size})
            if layer.memory is not None and not self._has_cell_state:
                raise ValueError(f"memory mask {index} is given, but a {type(self).__name__} has no memory cells")
            check_mask(f"memory mask {index}", layer.memory, batch, {self.hidden_size})

    @staticmethod
    def _pack_like(input: PackedSequence, output: Tensor, lengths: Tensor) -> PackedSequence:
        """Pack output [T, B, F] in exactly the order of the input."""
        if input.sorted_indices is not None:
            output = output.index_select(1, input.sorted_indices)
            lengths = lengths[input.sorted_indices.cpu()]
        return PackedSequence(
            pack_padded_sequence(output, lengths).data, input.batch_sizes, input.sorted_indices, input.unsorted_indices
        )

    def extra_repr(self) -> str:
        parts = [super().extra_repr()]
        parts += [
            f"{name}={getattr(self, name)}"
            for name in ("input_dropout", "recurrent_dropout", "memory_dropout")
            if getattr(self, name)
        ]
        return ", ".join([*parts, f"gate_masks={self.gate_masks!r}", f"time_masks={self.time_masks!r}"])


class VariationalLSTM(_VariationalBase, nn.LSTM):
    """`torch.nn.LSTM` with dropout on inputs and recurrent connections, one mask per sequence kept over time.

    Parameters, their names, gate order and state_dict are those of torch.nn.LSTM; with every p = 0, or in eval mode,
    outputs, states and gradients are too.

    Args:
        input_size: number of features of x.
        hidden_size: number of features of h.
        num_layers: layers on top of each other.
        bias: whether the layers have b_ih and b_hh.
        batch_first: input and output are [B, T, features] instead of [T, B, features].
        bidirectional: also run backwards in time; outputs are concatenated.
        input_dropout: probability to drop a unit of every layer's input.
        recurrent_dropout: probability to drop a unit of h_{t-1} where it enters the recurrent product.
        memory_dropout: probability to remove a memory cell (Moon et al. 2015; equation 9 of the paper).
        gate_masks: "tied": one mask for all gates (equations 6 and 7); "untied": one for each (equations 4 and 5).
        time_masks: "constant": one draw per sequence (variational); "fresh": a new one at every time step (naive).
        backend: "reference" is the readable one; "auto" takes torch's own kernel where nothing is dropped.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a probability is not in [0, 1), or a choice is unknown.

    Example:
        >>> import torch
        >>> lstm = VariationalLSTM(10, 20, input_dropout=0.35, recurrent_dropout=0.2)
        >>> masks = lstm.sample_masks(batch_size=3)
        >>> output, (h_n, c_n) = lstm(torch.randn(7, 3, 10), masks=masks)
        >>> output.shape
        torch.Size([7, 3, 20])
    """

    _gates = 4
    _has_cell_state = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        *,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        memory_dropout: float = 0.0,
        gate_masks: Literal["tied", "untied"] = "tied",
        time_masks: Literal["constant", "fresh"] = "constant",
        backend: Literal["auto", "reference"] = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, 0.0, bidirectional, device=device, dtype=dtype
        )
        self._init_dropout(input_dropout, recurrent_dropout, gate_masks, time_masks, backend)
        self.memory_dropout = check_probability("memory_dropout", memory_dropout)

    def _step(self, masks: LayerMasks) -> functional.Step:
        return partial(functional.lstm_step, memory=masks.memory)


class VariationalGRU(_VariationalBase, nn.GRU):
    """`torch.nn.GRU` with dropout on inputs and recurrent connections, one mask per sequence kept over time.

    The GRU is torch's: the reset gate multiplies the recurrent product. The mask multiplies h where it enters that
    product, not the h that the update gate carries on. Arguments are those of `VariationalLSTM` without memory_dropout.

    Raises:
        ValueError: a probability is not in [0, 1), or a choice is unknown.
    """

    _gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        *,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        gate_masks: Literal["tied", "untied"] = "tied",
        time_masks: Literal["constant", "fresh"] = "constant",
        backend: Literal["auto", "reference"] = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, 0.0, bidirectional, device=device, dtype=dtype
        )
        self._init_dropout(input_dropout, recurrent_dropout, gate_masks, time_masks, backend)

    def _step(self, masks: LayerMasks) -> functional.Step:
        return functional.gru_step


class VariationalRNN(_VariationalBase, nn.RNN):
    """`torch.nn.RNN` with dropout on inputs and recurrent connections, one mask per sequence kept over time.

    Arguments are those of `VariationalLSTM` without memory_dropout; with one gate, tied and untied are the same.

    Args:
        nonlinearity: "tanh" or "relu".

    Raises:
        ValueError: a probability is not in [0, 1), or a choice is unknown.
    """

    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        *,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        gate_masks: Literal["tied", "untied"] = "tied",
        time_masks: Literal["constant", "fresh"] = "constant",
        backend: Literal["auto", "reference"] = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, 0.0, bidirectional,
            device=device, dtype=dtype,
        )  # fmt: skip
        self._init_dropout(input_dropout, recurrent_dropout, gate_masks, time_masks, backend)

    def _step(self, masks: LayerMasks) -> functional.Step:
        return functional.rnn_tanh_step if self.nonlinearity == "tanh" else functional.rnn_relu_step
