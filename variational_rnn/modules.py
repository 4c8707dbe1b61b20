"""Recurrent layers with the dropout of Gal & Ghahramani (2016), in the form of torch.nn's."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from variational_rnn import functional
from variational_rnn.functional import CELLS
from variational_rnn.kernels import build, choose_kernel
from variational_rnn.masks import (
    Choice,
    GateMasks,
    LayerMasks,
    MaskSharing,
    MemoryScale,
    Probability,
    RNNMasks,
    Seed,
    TimeMasks,
    check_mask,
    generator_of,
    sample_mask,
)
from variational_rnn.mc import DropoutModule

Backend = Literal["auto", "reference"]
ForwardT = TypeVar("ForwardT", bound=Callable[..., Any])

# Without bf16 products torch's LSTM raises in bfloat16 on a CPU. Read once, since the call cannot be traced.
CPU_HAS_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()

LONG = 64  # time steps; from here on torch's gradient of packed sequences is slow on a CPU


def outside_of_graphs(forward: ForwardT) -> ForwardT:
    """Keep a forward pass out of torch.compile's graphs, as those of torch.nn's recurrent layers are.

    Compiling it would unroll the time steps, which takes a minute for each length and runs slower than the kernels.
    With `torch._dynamo.config.allow_rnn` it is compiled nevertheless.
    """
    left_out = functools.cache(torch.compiler.disable)

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        dynamo: Any = sys.modules.get("torch._dynamo")  # its import takes a second, and nothing is compiled before it
        if dynamo is None or torch.compiler.is_compiling() or dynamo.config.allow_rnn:
            return forward(*args, **kwargs)
        return left_out(forward)(*args, **kwargs)

    return cast(ForwardT, call)


class RecurrentDropout(DropoutModule):
    """Base of layers and cells: the probabilities, and drawing and checking the masks of one layer."""

    mode: str
    hidden_size: int
    input_dropout = Probability()
    recurrent_dropout = Probability()
    memory_dropout = Probability()
    gate_masks = Choice("tied", "untied")
    memory_scale = Choice("read", "loop")

    def _set_dropout(
        self,
        input_dropout: float,
        recurrent_dropout: float,
        gate_masks: GateMasks,
        memory_dropout: float = 0.0,
        memory_scale: MemoryScale = "read",
    ) -> None:
        self.input_dropout = input_dropout
        self.recurrent_dropout = recurrent_dropout
        self.gate_masks = gate_masks
        self.memory_dropout = memory_dropout
        self.memory_scale = memory_scale

    def _sample_layer(
        self,
        steps: int,
        batch_size: int,
        input_size: int,
        output_size: int,
        like: Tensor,
        generator: torch.Generator | None,
    ) -> LayerMasks:
        sample = partial(sample_mask, device=like.device, dtype=like.dtype, generator=generator)
        gates = CELLS[self.mode].gates if self.gate_masks == "untied" else 1
        input = sample(steps, gates, batch_size, input_size, p=self.input_dropout)
        recurrent = sample(steps, gates, batch_size, output_size, p=self.recurrent_dropout)
        memory = sample(batch_size, self.hidden_size, p=self.memory_dropout)
        if self.memory_scale == "loop":
            return LayerMasks(input, recurrent, memory_in_loop=memory)
        return LayerMasks(input, recurrent, memory)

    def _check_layer(
        self,
        where: str,
        masks: LayerMasks,
        steps: int,
        batch_size: int,
        input_size: int,
        output_size: int,
        like: Tensor,
    ) -> None:
        shared = {"time": (1, steps), "gates": (1, CELLS[self.mode].gates), "batch": (1, batch_size)}
        check_mask(f"input mask{where}", masks.input, like, **shared, features=input_size)
        check_mask(f"recurrent mask{where}", masks.recurrent, like, **shared, features=output_size)
        for mask in (masks.memory, masks.memory_in_loop):
            if mask is not None and not CELLS[self.mode].has_memory:
                raise ValueError(f"memory mask{where} is given, but a {type(self).__name__} has no memory cells")
            check_mask(f"memory mask{where}", mask, like, batch=(1, batch_size), features=self.hidden_size)

    def _check_state_type(self, hx: Any) -> None:
        if CELLS[self.mode].has_memory:
            fits = isinstance(hx, tuple | list) and len(hx) == 2 and all(isinstance(part, Tensor) for part in hx)
            expected = "a pair of tensors (h, c)"
        else:
            fits, expected = isinstance(hx, Tensor), "a tensor"
        if hx is not None and not fits:
            raise TypeError(f"hx of a {type(self).__name__} must be {expected}, got {type(hx).__name__}")

    def extra_repr(self) -> str:  # noqa: D102
        parts = [super().extra_repr()]
        parts += [
            f"{name}={getattr(self, name)}"
            for name in ("input_dropout", "recurrent_dropout", "memory_dropout")
            if getattr(self, name)
        ]
        return ", ".join([*parts, f"gate_masks={self.gate_masks!r}"])


def _refuse_projection(proj_size: int) -> None:
    if proj_size:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")  # torch.nn's words


class VariationalBase(RecurrentDropout, nn.RNNBase):
    """Base of the layers: sampling masks, and running layers and directions over any form of input."""

    weight_ih_l0: Tensor
    time_masks = Choice("constant", "fresh")
    mask_sharing = Choice("sequence", "batch")
    backend = Choice("auto", "reference")

    def _init_dropout(
        self,
        time_masks: TimeMasks,
        mask_sharing: MaskSharing,
        backend: Backend,
        dropout: float,
        surplus: tuple[Any, ...],
        **probabilities_and_gates: Any,
    ) -> None:
        if surplus or not isinstance(self.bidirectional, bool):
            allowed = "True or False, and the last positional argument" if surplus else "True or False"
            got = ", ".join(map(repr, (self.bidirectional, *surplus)))
            raise TypeError(
                f"bidirectional must be {allowed}, got {got}; torch.nn has dropout in this place: use input_dropout "
                "instead, and name arguments behind batch_first"
            )
        if dropout != 0:
            raise ValueError(
                f"dropout={dropout!r} is torch.nn's fresh noise between layers, here it must be 0: use input_dropout, "
                "which drops every layer's input by one mask per sequence or, with time_masks='fresh', by another at "
                "every time step"
            )
        self._set_dropout(**probabilities_and_gates)
        self.time_masks = time_masks
        self.mask_sharing = mask_sharing
        self.backend = backend

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _output_size(self) -> int:
        return self.proj_size or self.hidden_size

    def _input_size(self, index: int) -> int:
        return self.input_size if index < self._directions else self._output_size * self._directions

    def sample_masks(self, batch_size: int, steps: int | None = None, *, generator: Seed = None) -> RNNMasks:
        """Draw the masks of all layers for `batch_size` sequences: one sample of the weights for each.

        Args:
            batch_size: number of sequences B. Row b of every mask belongs to sequence b as the caller orders them,
                for packed sequences too. With mask_sharing="batch" there is one row for all of them.
            steps: number of time steps T; needed only for time_masks="fresh".
            generator: source of randomness, a generator on the parameters' device or a seed; torch's global generator
                by default.

        Returns:
            Masks on the parameters' device and in their dtype.

        Raises:
            ValueError: time_masks is "fresh" and steps is missing.
        """
        if self.time_masks == "fresh" and steps is None:
            raise ValueError("time_masks='fresh' draws masks for every time step: pass steps")
        weight = self.weight_ih_l0
        source = generator_of(generator, weight.device)
        times = 1 if steps is None or self.time_masks == "constant" else steps
        rows = batch_size if self.mask_sharing == "sequence" else 1
        return RNNMasks(
            tuple(
                self._sample_layer(times, rows, self._input_size(index), self._output_size, weight, source)
                for index in range(self.num_layers * self._directions)
            )
        )

    @outside_of_graphs
    def forward(self, input: Tensor | PackedSequence, hx: Any = None, masks: RNNMasks | None = None) -> tuple[Any, Any]:
        """Run the network over sequences, as torch.nn.LSTM, GRU and RNN do.

        Args:
            input: [T, B, I] ([B, T, I] with batch_first), [T, I] for a single sequence, or a PackedSequence.
            hx: initial state: h [L*D, B, H], for the LSTM a pair (h, c); without B for a single sequence; zeros by
                default. With proj_size P, h is [L*D, B, P].
            masks: of `sample_masks`, used whatever the mode. Without them they are sampled afresh in training and
                inside `mc_dropout`, and nothing is dropped otherwise.

        Returns:
            output: the last layer's h, in the form of the input, [T, B, D*H] (D*P with proj_size).
            state: the final state in the form of hx. Input and recurrent masks leave no trace on either, since they
                multiply what enters a product. Memory masks do: a removed cell has c = h = 0, a kept h is scaled.

        Raises:
            TypeError: input, hx or masks are of the wrong type.
            ValueError: masks do not fit this module or input.
            RuntimeError, ValueError: input or hx have the wrong form, as torch.nn raises them.
        """
        batch_size, steps = self._check_input(input)
        self._check_state_type(hx)
        if masks is None and self.dropout_is_live:
            masks = self.sample_masks(batch_size, steps)
        if masks is None:
            layers: tuple[LayerMasks, ...] = (LayerMasks(),) * (self.num_layers * self._directions)
        else:
            self._check_masks(masks, batch_size, steps)
            layers = masks.layers
        all_is_kept = all(mask is None for layer in layers for mask in layer)
        takes_torchs_kernel = (
            self.backend == "auto"
            and CELLS[self.mode].torch_kernel is not None
            and not (self._torch_refuses(input) or self._torch_is_slow(input))
        )
        if takes_torchs_kernel and all_is_kept and hx is None:
            return super().forward(input)
        state = self._checked_state(input, hx, batch_size)
        if takes_torchs_kernel and all_is_kept:
            return super().forward(input, hx)
        is_native = takes_torchs_kernel and all(layer.is_shared for layer in layers)
        run = self._run_torchs_kernel if is_native else self._run_steps
        if isinstance(input, PackedSequence):  # sorted by length, the longest first
            data, batch_sizes, order, original_order = input
            if order is not None:
                state = tuple(part.index_select(1, order) for part in state)
                layers = tuple(layer.select(order) for layer in layers)
            output, final = run(data, batch_sizes, state, layers)
            if original_order is not None:
                final = [part.index_select(1, original_order) for part in final]
            return input._replace(data=output), self._in_torchs_form(final)
        batch_dimension = 0 if self.batch_first else 1
        x = input.unsqueeze(batch_dimension) if input.dim() == 2 else input
        output, final = run(x, None, state, layers)
        if input.dim() == 2:
            output, final = output.squeeze(batch_dimension), [part.squeeze(1) for part in final]
        return output, self._in_torchs_form(final)

    def _torch_refuses(self, input: Tensor | PackedSequence) -> bool:
        # Its LSTM raises for bfloat16 on a CPU without such products.
        x = input[0] if isinstance(input, PackedSequence) else input
        if CPU_HAS_BF16 or self.mode != "LSTM" or x.device.type != "cpu":
            return False
        is_cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        return is_cast or x.dtype == torch.bfloat16

    def _torch_is_slow(self, input: Tensor | PackedSequence) -> bool:
        # Training on long packed sequences on a CPU: torch's time per step grows with the number of steps.
        if not isinstance(input, PackedSequence) or self.proj_size or not torch.is_grad_enabled():
            return False
        data, batch_sizes = input[:2]
        weights = (weight for of_layer in self.all_weights for weight in of_layer)
        return len(batch_sizes) >= LONG and build.why_unsupported(data, *weights) is None

    # The two ways to run all layers, on x of [T, B, I], [B, T, I] with batch_first, or packed with its batch sizes.

    def _run_torchs_kernel(
        self, x: Tensor, batch_sizes: Tensor | None, state: functional.State, layers: tuple[LayerMasks, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        """Run torch's own kernel on weights with masked columns, which is exact where the batch shares the masks."""
        weights = []
        for (weight_ih, weight_hh, *others), masks in zip(self.all_weights, layers, strict=True):
            weights += [functional.masked_weight(weight_ih, masks.input)]
            weights += [functional.masked_weight(weight_hh, masks.recurrent), *others]
        # The kernel's flag for training only lets cuDNN prepare for a backward pass, since its own dropout is 0.
        options = (self.bias, self.num_layers, 0.0, torch.is_grad_enabled(), self.bidirectional)
        kernel: Any = CELLS[self.mode].torch_kernel
        hx = self._in_torchs_form(state)
        if batch_sizes is not None:
            output, *final = kernel(x, batch_sizes, hx, weights, *options)
        else:
            output, *final = kernel(x, hx, weights, *options, self.batch_first)
        return output, final

    def _run_steps(
        self, x: Tensor, batch_sizes: Tensor | None, state: functional.State, layers: tuple[LayerMasks, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        lengths = steps_of_each = None
        if batch_sizes is not None:
            x, lengths = pad_packed_sequence(PackedSequence(x, batch_sizes))
            steps_of_each = lengths.to(x.device)
        elif self.batch_first:
            x = x.transpose(0, 1)
        outputs: list[Tensor] = []
        finals: list[functional.State] = []
        for index, (weight_ih, weight_hh, *others) in enumerate(self.all_weights):
            bias_ih, bias_hh = others[:2] if self.bias else (None, None)
            weight_hr = others[-1] if self.proj_size else None
            weights = functional.Weights(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
            arguments = self.mode, x, tuple(part[index] for part in state), weights, layers[index]
            unroll = choose_kernel(*arguments) if self.backend == "auto" else functional.unroll
            output, final = unroll(*arguments, lengths=steps_of_each, reverse=index % self._directions == 1)
            outputs.append(output)
            finals.append(final)
            if len(outputs) == self._directions:
                x, outputs = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1), []
        if lengths is not None:
            x = pack_padded_sequence(x, lengths).data
        elif self.batch_first:
            x = x.transpose(0, 1)
        return x, [torch.stack(parts) for parts in zip(*finals, strict=True)]

    def _in_torchs_form(self, state: Any) -> Any:
        return tuple(state) if CELLS[self.mode].has_memory else state[0]

    def _checked_state(self, input: Tensor | PackedSequence, hx: Any, batch_size: int) -> functional.State:
        x = input.data if isinstance(input, PackedSequence) else input
        unbatched = isinstance(input, Tensor) and input.dim() == 2
        has_memory = CELLS[self.mode].has_memory
        sizes = (self._output_size, self.hidden_size) if has_memory else (self._output_size,)
        shapes = [(self.num_layers * self._directions, batch_size, size) for size in sizes]
        if hx is None:
            return tuple(self.weight_ih_l0.new_zeros(shape) for shape in shapes)
        state = []
        dim = 2 if unbatched else 3
        for index, (part, shape) in enumerate(zip(hx if has_memory else (hx,), shapes, strict=True)):
            name = f"hidden[{index}]" if has_memory else "hidden"  # as torch.nn calls it
            if part.dim() != dim:
                raise RuntimeError(
                    f"For {'unbatched' if unbatched else 'batched'} {dim}-D input, {name} should also be {dim}-D "
                    f"but got {part.dim()}-D tensor"
                )
            if part.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
                raise RuntimeError(f"Expected {name} to have the dtype of the input, {x.dtype}, got {part.dtype}")
            if part.device != x.device:
                raise RuntimeError(f"Expected {name} on the device of the input, {x.device}, got {part.device}")
            part = part.unsqueeze(1) if unbatched else part
            self.check_hidden_size(part, shape, f"Expected {name} size {{}}, got {{}}")
            state.append(part.to(self.weight_ih_l0.dtype))
        return tuple(state)

    def _check_input(self, input: Tensor | PackedSequence) -> tuple[int, int]:
        if isinstance(input, PackedSequence):
            self.check_input(input.data, input.batch_sizes)
            return int(input.batch_sizes[0]), input.batch_sizes.size(0)
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a tensor or a PackedSequence, got {type(input).__name__}")
        if input.dim() not in (2, 3):
            raise ValueError(
                f"{type(self).__name__}: Expected input to be 2D or 3D, got {input.dim()}D instead: {list(input.shape)}"
            )
        batched = input.unsqueeze(1) if input.dim() == 2 else input
        self.check_input(batched, None)
        if input.device != self.weight_ih_l0.device:
            raise RuntimeError(f"input is on device {input.device}, the parameters are on {self.weight_ih_l0.device}")
        steps, batch_size = batched.shape[:2]
        if self.batch_first and input.dim() == 3:
            steps, batch_size = batch_size, steps
        if steps == 0:
            raise RuntimeError(
                f"{type(self).__name__}: Expected sequence length to be larger than 0, got input {list(input.shape)}"
            )
        return batch_size, steps

    def _check_masks(self, masks: RNNMasks, batch_size: int, steps: int) -> None:
        if not isinstance(masks, RNNMasks):
            raise TypeError(f"masks must be RNNMasks, as sample_masks returns them, got {type(masks).__name__}")
        for layer in masks.layers if isinstance(masks.layers, tuple) else (masks.layers,):
            if not isinstance(layer, LayerMasks):
                raise TypeError(
                    "RNNMasks hold a tuple with a LayerMasks for each layer and direction, "
                    f"got {type(layer).__name__} in its place"
                )
        if len(masks.layers) != self.num_layers * self._directions:
            raise ValueError(
                f"masks are of {len(masks.layers)} layers and directions, "
                f"this {type(self).__name__} has {self.num_layers * self._directions}"
            )
        for index, layer in enumerate(masks.layers):
            name = f"l{index // self._directions}{'_reverse' if index % self._directions else ''}"
            self._check_layer(
                f" of {name}",
                layer,
                steps,
                batch_size,
                self._input_size(index),
                self._output_size,
                like=self.weight_ih_l0,
            )

    def extra_repr(self) -> str:  # noqa: D102
        shown = f"{super().extra_repr()}, time_masks={self.time_masks!r}, mask_sharing={self.mask_sharing!r}"
        return shown if self.backend == "auto" else f"{shown}, backend={self.backend!r}"


class CellRNNBase(nn.RNNBase):
    """`torch.nn.RNNBase` for a cell of `CELLS` that torch does not have: its parameters have G*H rows.

    `class VariationalX(VariationalBase, CellRNNBase)` passes its mode in front of the arguments of torch.nn's layers.
    """

    def __init__(self, mode: str, input_size: int, hidden_size: int, *args: Any, **kwargs: Any) -> None:
        super().__init__("RNN_TANH", input_size, hidden_size, *args, **kwargs)  # makes the parameters of one gate
        self.mode = mode
        for name in self._flat_weights_names:
            rows, *columns = getattr(self, name).shape
            parameter = getattr(self, name).new_empty(CELLS[mode].gates * rows, *columns)
            setattr(self, name, nn.Parameter(parameter))
        self.reset_parameters()


class VariationalLSTM(VariationalBase, nn.LSTM):
    """`torch.nn.LSTM` with dropout on inputs and recurrent connections, one mask per sequence kept over time.

    Parameters, their names, gate order and state_dict are those of torch.nn.LSTM; with every p = 0, or in eval mode,
    outputs, states and gradients are too. Torch's own kernel computes them, except for gradients of packed sequences of
    64 steps and more on a CPU, where it is slow: there the fast CPU kernel does, and results differ by rounding.

    Args:
        input_size: number of features of x.
        hidden_size: number of features of h, and of memory cells.
        num_layers: layers on top of each other.
        bias: whether the layers have b_ih and b_hh.
        batch_first: input and output are [B, T, features] instead of [T, B, features].
        bidirectional: also run backwards in time; outputs are concatenated. In this position torch.nn has
            `dropout`.
        proj_size: if not 0, h is projected to so many features by a matrix W_hr. Nothing is dropped from what it reads.
        input_dropout: probability to drop a unit of every layer's input.
        recurrent_dropout: probability to drop a unit of h_{t-1} where it enters the recurrent product.
        memory_dropout: probability to remove a memory cell (Moon et al. 2015; equation 9 of the paper).
        memory_scale: "read": a kept cell counts 1/(1-p) times where it is read, by h; "loop": it is multiplied by
            1/(1-p) at every step, as equation 9 is written, and only the forget gate can make up for that.
        gate_masks: "tied": one mask for all gates (equations 6 and 7); "untied": one for each (equations 4 and 5).
        time_masks: "constant": one draw per sequence (variational); "fresh": a new one at every time step (naive).
        mask_sharing: "sequence": one draw for each sequence, as in the paper; "batch": one draw for all sequences of a
            call. The gradient then is noisier, but the layer is torch.nn.LSTM with masked weights, at its full speed.
        backend: "reference" is the readable loop over time; "auto" takes torch's own kernel where nothing is dropped
            or the batch shares its masks, else the fast kernel for the device if it can compute the layer, else the
            reference.
        dropout: torch.nn's noise between layers; must be 0.
        surplus: must be empty: further positional arguments, as in calls written for torch.nn, raise TypeError.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a probability is not in [0, 1), or a choice is unknown.
        TypeError: bidirectional is not a bool, or positional arguments follow it, as in calls written for torch.nn.

    Limitations:
        * `torch.compile` leaves the layer out of its graphs, as it does torch.nn.LSTM: the layer and the function that
          calls it run uncompiled. With `torch._dynamo.config.allow_rnn` the reference is compiled, its time steps
          unrolled, which takes long for each new length and runs slower than the fast kernels.
        * `torch.export` and `torch.onnx.export` fix the number of time steps, as they do for torch.nn.LSTM, not the
          number of sequences. In eval mode ONNX gets its LSTM operator; masks given as an input, or drawn in the graph,
          give an unrolled graph.
        * `torch.jit.script` refuses the layer; `torch.jit.trace` works in eval mode.
        * Tools that look for torch.nn.LSTM by its exact type miss this layer: `quantize_dynamic` silently leaves it
          in float. Load its state_dict into a torch.nn.LSTM first. Opacus accepts the layer, but training stops:
          use Opacus' DPLSTM, which has no variational dropout.
        * `torch.fx.symbolic_trace` treats torch.nn's layers as leaves. For this one, use a Tracer whose is_leaf_module
          does too.
        * Double backward works with and without the fast kernels: the reference computes the gradient that is
          differentiated again. With nothing dropped it works where torch.nn.LSTM's does (not with cuDNN).
        * Tensors without memory of their own (fake tensors, DTensor and other wrapper subclasses), torch.func and
          dispatch modes are left to the reference.

    Example:
        >>> import torch
        >>> lstm = VariationalLSTM(10, 20, input_dropout=0.35, recurrent_dropout=0.2)
        >>> masks = lstm.sample_masks(batch_size=3)
        >>> output, (h_n, c_n) = lstm(torch.randn(7, 3, 10), masks=masks)
        >>> output.shape
        torch.Size([7, 3, 20])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        *surplus: Any,
        proj_size: int = 0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        memory_dropout: float = 0.0,
        memory_scale: MemoryScale = "read",
        gate_masks: GateMasks = "tied",
        time_masks: TimeMasks = "constant",
        mask_sharing: MaskSharing = "sequence",
        backend: Backend = "auto",
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, 0.0, bidirectional, proj_size,
            device=device, dtype=dtype,
        )  # fmt: skip
        self._init_dropout(
            time_masks, mask_sharing, backend, dropout, surplus, input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout, gate_masks=gate_masks, memory_dropout=memory_dropout,
            memory_scale=memory_scale,
        )  # fmt: skip


class VariationalGRU(VariationalBase, nn.GRU):
    """`torch.nn.GRU` with dropout on inputs and recurrent connections, one mask per sequence kept over time.

    The GRU is torch's: the reset gate multiplies the recurrent product. The mask multiplies h where it enters that
    product, not the h that the update gate carries on. Arguments and limitations are those of `VariationalLSTM`,
    without memory_dropout and memory_scale; proj_size must be 0.

    Raises:
        ValueError: a probability is not in [0, 1), or a choice is unknown.
        TypeError: bidirectional is not a bool, or positional arguments follow it, as in calls written for torch.nn.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        *surplus: Any,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        gate_masks: GateMasks = "tied",
        time_masks: TimeMasks = "constant",
        mask_sharing: MaskSharing = "sequence",
        backend: Backend = "auto",
        dropout: float = 0.0,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _refuse_projection(proj_size)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, 0.0, bidirectional, device=device, dtype=dtype
        )
        self._init_dropout(
            time_masks, mask_sharing, backend, dropout, surplus, input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout, gate_masks=gate_masks,
        )  # fmt: skip


class VariationalRNN(VariationalBase, nn.RNN):
    """`torch.nn.RNN` with dropout on inputs and recurrent connections, one mask per sequence kept over time.

    Arguments and limitations are those of `VariationalLSTM`, without memory_dropout and memory_scale; proj_size must be
    0; with one gate, tied and untied are the same.

    Args:
        nonlinearity: "tanh" or "relu", in the place where torch.nn.RNN has it.

    Raises:
        ValueError: a probability is not in [0, 1), or a choice is unknown.
        TypeError: bidirectional is not a bool, or positional arguments follow it, as in calls written for torch.nn.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        *surplus: Any,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        gate_masks: GateMasks = "tied",
        time_masks: TimeMasks = "constant",
        mask_sharing: MaskSharing = "sequence",
        backend: Backend = "auto",
        dropout: float = 0.0,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _refuse_projection(proj_size)
        super().__init__(
            input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, 0.0, bidirectional,
            device=device, dtype=dtype,
        )  # fmt: skip
        self._init_dropout(
            time_masks, mask_sharing, backend, dropout, surplus, input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout, gate_masks=gate_masks,
        )  # fmt: skip
