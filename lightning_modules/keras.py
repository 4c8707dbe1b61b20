"""The recurrent layers of Keras 0.1.2 (2015), which the sentiment experiment ran on (protocol section 2.2).

They differ from torch's in four ways, each of which can be switched off: gates are hard sigmoids; a GRU's reset gate
acts before the recurrent product, and its candidate is a logistic sigmoid; and dropout is not inverted: training
multiplies by 0 or 1, evaluation by 1-p. The last is the same as inverted dropout on weights that are 1-p times as
large, which is how it is computed. Each gate has one bias, `bias_ih`; `bias_hh` stays zero.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from variational_rnn import LayerMasks, RNNMasks, VariationalGRU, VariationalLSTM, functional
from variational_rnn.kernels import cpu, fast_twin
from variational_rnn.masks import Choice, GateMasks, TimeMasks
from variational_rnn.modules import Backend, outside_of_graphs

GateActivation = Literal["sigmoid", "hard_sigmoid"]
CandidateActivation = Literal["tanh", "sigmoid"]
ResetGate = Literal["after", "before"]
DropoutScale = Literal["training", "test"]


class KerasLSTM(VariationalLSTM):
    """One LSTM layer with the gates and the dropout of Keras 0.1.2.

    Args:
        input_size: I.
        hidden_size: H.
        gate_activation: "hard_sigmoid", min(max(0.2 x + 0.5, 0), 1), or "sigmoid".
        dropout_scale: "test" multiplies by 1-p in evaluation, "training" divides by 1-p in training.
        input_dropout: as in `VariationalLSTM`, like the following.
        recurrent_dropout: probability to drop a unit of h_{t-1}.
        gate_masks: "untied" or "tied".
        time_masks: "constant" or "fresh".
        backend: "auto" or "reference".

    Raises:
        ValueError: a probability is not in [0, 1), or a choice is unknown.
    """

    gate_activation = Choice("sigmoid", "hard_sigmoid")
    dropout_scale = Choice("training", "test")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        gate_activation: GateActivation = "hard_sigmoid",
        dropout_scale: DropoutScale = "test",
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        gate_masks: GateMasks = "untied",
        time_masks: TimeMasks = "constant",
        backend: Backend = "auto",
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            gate_masks=gate_masks,
            time_masks=time_masks,
            backend=backend,
        )
        self.gate_activation = gate_activation
        self.dropout_scale = dropout_scale
        _without_second_bias(self)

    @outside_of_graphs
    def forward(  # type: ignore[override]
        self, input: Tensor, hx: None = None, masks: RNNMasks | None = None
    ) -> tuple[Tensor, Any]:
        """Run over sequences from a state of zeros.

        Args:
            input: [T, B, I].
            hx: none can be given.
            masks: of `sample_masks`, inverted as everywhere; sampled where dropout is live, none otherwise.

        Returns:
            The hidden states [T, B, H], and the final (h, c), each [1, B, H].

        Raises:
            TypeError: masks are of the wrong type.
            ValueError: input has another form, masks do not fit, or a state is given.
        """
        weights, layer = _weights_and_masks(self, input, hx, masks)
        zeros = input.new_zeros(input.size(1), self.hidden_size)
        twin = fast_twin(input, (zeros, zeros), weights, layer) if self.backend == "auto" else None
        unroll: Callable[..., Any] = (twin or functional).unroll
        if self.gate_activation == "hard_sigmoid":  # which the fast backend for GPUs has not
            unroll = partial((cpu if twin is cpu else functional).unroll, hard_gates=True)
        output, (h, c) = unroll("LSTM", input, (zeros, zeros), weights, layer)
        return output, (h[None], c[None])


class KerasGRU(VariationalGRU):
    """One GRU layer with the gates and the dropout of Keras 0.1.2, step by step.

    h' = z * h + (1 - z) * act(W x + U (r * h * mask) + b), with act a sigmoid.

    Args:
        input_size: I.
        hidden_size: H.
        gate_activation: "hard_sigmoid" or "sigmoid", of r and z.
        candidate_activation: "sigmoid" or "tanh".
        reset_gate: "before": r multiplies what enters the recurrent product; "after": r multiplies the product.
        dropout_scale: "test" multiplies by 1-p in evaluation, "training" divides by 1-p in training.
        input_dropout: as in `VariationalGRU`, like the following.
        recurrent_dropout: probability to drop a unit of h_{t-1}.
        gate_masks: "untied" or "tied".
        time_masks: "constant" or "fresh".
        backend: "auto" or "reference".

    Raises:
        ValueError: a probability is not in [0, 1), or a choice is unknown.
    """

    gate_activation = Choice("sigmoid", "hard_sigmoid")
    dropout_scale = Choice("training", "test")
    candidate_activation = Choice("tanh", "sigmoid")
    reset_gate = Choice("after", "before")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        gate_activation: GateActivation = "hard_sigmoid",
        candidate_activation: CandidateActivation = "sigmoid",
        reset_gate: ResetGate = "before",
        dropout_scale: DropoutScale = "test",
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        gate_masks: GateMasks = "untied",
        time_masks: TimeMasks = "constant",
        backend: Backend = "auto",
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            gate_masks=gate_masks,
            time_masks=time_masks,
            backend=backend,
        )
        self.gate_activation = gate_activation
        self.candidate_activation = candidate_activation
        self.reset_gate = reset_gate
        self.dropout_scale = dropout_scale
        _without_second_bias(self)

    @outside_of_graphs
    def forward(  # type: ignore[override]
        self, input: Tensor, hx: None = None, masks: RNNMasks | None = None
    ) -> tuple[Tensor, Any]:
        """Run over sequences from a state of zeros; arguments and results are those of `KerasLSTM`, but for c."""
        weights, layer = _weights_and_masks(self, input, hx, masks)
        gate = functional.hard_sigmoid if self.gate_activation == "hard_sigmoid" else torch.sigmoid
        activation = torch.sigmoid if self.candidate_activation == "sigmoid" else torch.tanh
        size = self.hidden_size
        weight_rz, weight_n = weights.hh[: 2 * size], weights.hh[2 * size :]
        x_gates = functional.masked_linear(input, weights.ih, weights.bias_ih, layer.input)
        x_rz, x_n = x_gates[..., : 2 * size].unbind(0), x_gates[..., 2 * size :].unbind(0)
        h = input.new_zeros(input.size(1), size)
        outputs = []
        for t in range(len(input)):
            mask = None if layer.recurrent is None else layer.recurrent[t if layer.recurrent.size(0) > 1 else 0]
            mask_rz, mask_n = (mask, mask) if mask is None or mask.size(0) == 1 else (mask[:2], mask[2:])
            r, z = gate(x_rz[t] + functional.masked_linear(h, weight_rz, None, mask_rz)).chunk(2, dim=-1)
            if self.reset_gate == "before":
                recurrent = functional.masked_linear(r * h, weight_n, None, mask_n)
            else:
                recurrent = r * functional.masked_linear(h, weight_n, None, mask_n)
            candidate = activation(x_n[t] + recurrent)
            h = candidate + z * (h - candidate)
            outputs.append(h)
        return torch.stack(outputs), h[None]


def _without_second_bias(layer: VariationalLSTM | VariationalGRU) -> None:
    [[*_, bias_hh]] = layer.all_weights
    torch.nn.init.zeros_(bias_hh.requires_grad_(False))


def _weights_and_masks(
    layer: VariationalLSTM | VariationalGRU, input: Tensor, hx: None, masks: RNNMasks | None
) -> tuple[functional.Weights, LayerMasks]:
    if hx is not None:
        raise ValueError(f"{type(layer).__name__} starts from zeros: no hx can be given")
    if input.dim() != 3 or input.size(-1) != layer.input_size:
        raise ValueError(f"{type(layer).__name__}: expected input [T, B, {layer.input_size}], got {list(input.shape)}")
    steps, batch_size, _ = input.shape
    if masks is not None:
        layer._check_masks(masks, batch_size, steps)
    elif layer.dropout_is_live:
        masks = layer.sample_masks(batch_size, steps)
    scale_x, scale_h = (
        1.0 - p if layer.dropout_scale == "test" else 1.0 for p in (layer.input_dropout, layer.recurrent_dropout)
    )
    [[weight_ih, weight_hh, bias_ih, bias_hh]] = layer.all_weights
    weights = functional.Weights(weight_ih * scale_x, weight_hh * scale_h, bias_ih, bias_hh)
    return weights, LayerMasks() if masks is None else masks.layers[0]
