"""The parts of both networks, in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from variational_rnn import RNNMasks


class NetworkMasks(NamedTuple):
    """One sample of the network for each of B sequences; None where nothing is dropped.

    Attributes:
        words: [B|1, V] by word type or [T, B|1] by token.
        rnn: of the recurrent layers.
        output: [T|1, B, H], before the last layer.
    """

    words: Tensor | None
    rnn: RNNMasks
    output: Tensor | None

    def select(self, sequences: list[int], by_token: bool = False) -> NetworkMasks:
        """The masks of some sequences; what the batch shares stays shared.

        Args:
            sequences: indices into the batch.
            by_token: whether `words` are.
        """
        words, axis = self.words, 1 if by_token else 0
        if words is not None and words.size(axis) > 1:
            words = words.index_select(axis, torch.tensor(sequences, device=words.device))
        output = None if self.output is None else self.output[:, sequences]
        return NetworkMasks(words, self.rnn.select(sequences), output)
