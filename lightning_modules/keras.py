"""The recurrent layers of Keras 0.1.2 (2015), which the original sentiment experiment used (protocol section 2.2).

They differ from torch's in four ways, each with an option: gates are hard sigmoids; a GRU's reset gate acts before the
recurrent product, and its candidate is a logistic sigmoid; and dropout is not inverted: training multiplies by 0 or 1,
evaluation by 1-p. The last equals inverted dropout on weights that are 1-p times as large, which is how it is computed.
Each gate has one bias, `bias_ih`; `bias_hh` stays zero.

The options of gates choose a cell in `functional.CELLS`, where the forms of the GRU are added.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from variational_rnn import LayerMasks, RNNMasks, VariationalGRU, VariationalLSTM, functional
from variational_rnn.functional import CELLS, Cell, State, Weights
from variational_rnn.kernels import choose_kernel
from variational_rnn.masks import Choice, GateMasks, TimeMasks
from variational_rnn.modules import Backend, VariationalBase, outside_of_graphs

GateActivation = Literal["sigmoid", "hard_sigmoid"]
CandidateActivation = Literal["tanh", "sigmoid"]
ResetGate = Literal["after", "before"]
DropoutScale = Literal["training", "test"]


SIGMOIDS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "hard_sigmoid": functional.hard_sigmoid}
CANDIDATES: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}


def gru_step(
    x_gates: Tensor, state: State, weights: Weights, masks: LayerMasks, *, gate: str, candidate: str, reset_gate: str
) -> State:
    """One step of Keras' GRU: h' = z * h + (1 - z) * act(W x + U (r * h * mask) + b)."""
    [h] = state
    rz_n = [2 * h.size(1), h.size(1)]
    x_rz, x_n = x_gates.split(rz_n, dim=-1)
    weight_rz, weight_n = weights.hh.split(rz_n)
    mask = masks.recurrent
    mask_rz, mask_n = (mask, mask) if mask is None or mask.size(0) == 1 else (mask[:2], mask[2:])
    r, z = SIGMOIDS[gate](x_rz + functional.masked_linear(h, weight_rz, None, mask_rz)).chunk(2, dim=-1)
    if reset_gate == "before":
        recurrent = functional.masked_linear(r * h, weight_n, None, mask_n)
    else:
        recurrent = r * functional.masked_linear(h, weight_n, None, mask_n)
    n = CANDIDATES[candidate](x_n + recurrent)
    return (n + z * (h - n),)


def _gru_mode(*options: str) -> str:
    return "_".join(("KERAS_GRU", *options))


CELLS |= {
    _gru_mode(gate, candidate, reset_gate): Cell(
        3, partial(gru_step, gate=gate, candidate=candidate, reset_gate=reset_gate)
    )
    for gate, candidate, reset_gate in itertools.product(SIGMOIDS, CANDIDATES, ("after", "before"))
}


class _KerasLayer(VariationalBase):
    gate_activation = Choice("sigmoid", "hard_sigmoid")
    dropout_scale = Choice("training", "test")

    @property
    def _cell_mode(self) -> str:
        raise NotImplementedError

    def _init_keras(self, gate_activation: GateActivation, dropout_scale: DropoutScale) -> None:
        self.gate_activation = gate_activation
        self.dropout_scale = dropout_scale
        [[*_, bias_hh]] = self.all_weights
        torch.nn.init.zeros_(bias_hh.requires_grad_(False))

    @outside_of_graphs
    def forward(  # type: ignore[override]
        self, input: Tensor, hx: None = None, masks: RNNMasks | None = None
    ) -> tuple[Tensor, Any]:
        """Run over sequences from a state of zeros.

        Args:
            input: [T, B, I].
            hx: must be None.
            masks: of `sample_masks`, inverted as everywhere; sampled where dropout is live, none otherwise.

        Returns:
            The hidden states [T, B, H], and the final state: h of a GRU, (h, c) of an LSTM, each [1, B, H].

        Raises:
            TypeError: masks are of the wrong type.
            ValueError: input has another form, masks do not fit, or a state is given.
        """
        name = type(self).__name__
        if hx is not None:
            raise ValueError(f"{name} starts from zeros: no hx can be given")
        if input.dim() != 3 or input.size(-1) != self.input_size:
            raise ValueError(f"{name}: expected input [T, B, {self.input_size}], got {list(input.shape)}")
        steps, batch_size, _ = input.shape
        if masks is not None:
            self._check_masks(masks, batch_size, steps)
        elif self.dropout_is_live:
            masks = self.sample_masks(batch_size, steps)
        layer = LayerMasks() if masks is None else masks.layers[0]
        scale_x, scale_h = (
            1.0 - p if self.dropout_scale == "test" else 1.0 for p in (self.input_dropout, self.recurrent_dropout)
        )
        [[weight_ih, weight_hh, bias_ih, bias_hh]] = self.all_weights
        weights = Weights(weight_ih * scale_x, weight_hh * scale_h, bias_ih, bias_hh)
        mode = self._cell_mode
        zeros = (input.new_zeros(batch_size, self.hidden_size),) * (1 + CELLS[mode].has_memory)
        unroll = choose_kernel(mode, input, zeros, weights, layer) if self.backend == "auto" else functional.unroll
        output, state = unroll(mode, input, zeros, weights, layer)
        return output, self._in_torchs_form([part[None] for part in state])


class KerasLSTM(_KerasLayer, VariationalLSTM):  # type: ignore[misc]
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
            input_size, hidden_size, input_dropout=input_dropout, recurrent_dropout=recurrent_dropout,
            gate_masks=gate_masks, time_masks=time_masks, backend=backend,
        )  # fmt: skip
        self._init_keras(gate_activation, dropout_scale)

    @property
    def _cell_mode(self) -> str:
        return "HARD_LSTM" if self.gate_activation == "hard_sigmoid" else "LSTM"


class KerasGRU(_KerasLayer, VariationalGRU):  # type: ignore[misc]
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
            input_size, hidden_size, input_dropout=input_dropout, recurrent_dropout=recurrent_dropout,
            gate_masks=gate_masks, time_masks=time_masks, backend=backend,
        )  # fmt: skip
        self.candidate_activation = candidate_activation
        self.reset_gate = reset_gate
        self._init_keras(gate_activation, dropout_scale)

    @property
    def _cell_mode(self) -> str:
        return _gru_mode(self.gate_activation, self.candidate_activation, self.reset_gate)
