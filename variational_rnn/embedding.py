"""Dropout of whole words from the embedding."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from variational_rnn.masks import check_mask, check_probability, sample_mask
from variational_rnn.mc import DropoutModule


class VariationalEmbedding(DropoutModule, nn.Embedding):
    """`torch.nn.Embedding` that drops word types.

    The input of an embedding is a one-hot vector, so a row of the embedding matrix belongs to a word type. Dropping
    rows means: a dropped type is dropped at each of its occurrences in the sequence (section 4.2 of the paper), drawn
    anew for every sequence. A kept word's vector is divided by 1-p.

    Args:
        num_embeddings: number of word types V.
        embedding_dim: size of the vectors.
        word_dropout: probability to drop a word.
        word_masks: "type" draws once per sequence and word type, as the paper defines it; "token" draws for every
            position, as the code behind the paper's Table 1 did.
        batch_first: words are [B, T] instead of [T, B].
        kwargs: those of torch.nn.Embedding.

    Raises:
        ValueError: word_dropout is not in [0, 1), or word_masks is unknown.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        word_dropout: float = 0.0,
        word_masks: Literal["type", "token"] = "type",
        batch_first: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, **kwargs)
        if word_masks not in ("type", "token"):
            raise ValueError(f"word_masks must be 'type' or 'token', got {word_masks!r}")
        self.word_dropout = check_probability("word_dropout", word_dropout)
        self.word_masks = word_masks
        self.batch_first = batch_first

    def sample_masks(
        self, batch_size: int, steps: int | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """Draw a mask for `batch_size` sequences: [B, V] for "type", [T, B] for "token", None for p = 0.

        Raises:
            ValueError: "token" masks are asked for without the number of time steps.
        """
        if self.word_masks == "token" and steps is None:
            raise ValueError("word_masks='token' draws a mask for every position: pass steps")
        shape = (batch_size, self.num_embeddings) if self.word_masks == "type" else (steps or 0, batch_size)
        weight = self.weight
        return sample_mask(*shape, p=self.word_dropout, device=weight.device, dtype=weight.dtype, generator=generator)

    def forward(self, words: Tensor, mask: Tensor | None = None) -> Tensor:
        """Look words up.

        Args:
            words: ids, [T, B] ([B, T] with batch_first).
            mask: of `sample_masks`. Without one it is sampled where dropout is live, else nothing is dropped.

        Returns:
            Vectors, [T, B, embedding_dim] ([B, T, embedding_dim] with batch_first).

        Raises:
            ValueError: the mask has another shape than `sample_masks` gives for these words.
        """
        words_TB = words.t() if self.batch_first else words
        if mask is None and self.dropout_is_live:
            mask = self.sample_masks(words_TB.size(1), words_TB.size(0))
        vectors = super().forward(words)
        if mask is None:
            return vectors
        steps, batch_size = words_TB.shape
        if self.word_masks == "type":
            check_mask("word mask", mask, {1, batch_size}, {self.num_embeddings})
            scale_TB = mask.expand(batch_size, -1).gather(1, words_TB.t()).t()
        else:
            check_mask("word mask", mask, {1, steps}, {1, batch_size})
            scale_TB = mask.expand(steps, batch_size)
        return vectors * (scale_TB.t() if self.batch_first else scale_TB).unsqueeze(-1)

    def extra_repr(self) -> str:  # noqa: D102
        return f"{super().extra_repr()}, word_dropout={self.word_dropout}, word_masks={self.word_masks!r}"
