"""Dropout of whole words from the embedding."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from variational_rnn.masks import (
    Choice,
    MaskSharing,
    Probability,
    Seed,
    check_mask,
    generator_of,
    sample_mask,
)
from variational_rnn.mc import DropoutModule


class VariationalEmbedding(DropoutModule, nn.Embedding):
    """`torch.nn.Embedding` that drops word types.

    The input of an embedding is a one-hot vector, so a row of the embedding matrix belongs to a word type. Dropping
    rows means: a dropped type is dropped at each of its occurrences in the sequence (section 4.2 of the paper), drawn
    for every sequence. A kept word's vector is divided by 1-p.

    Masks act on what is looked up; the matrix itself stays whole. It can therefore be shared with a softmax layer
    (``softmax.weight = embedding.weight``), whose rows are not dropped then.

    Args:
        num_embeddings: number of word types V.
        embedding_dim: size of the vectors.
        word_dropout: probability to drop a word.
        word_masks: "type" draws once per sequence and word type, as the paper defines it; "token" draws for every
            position, as the code behind the paper's Table 1 did.
        mask_sharing: "sequence" draws for each sequence; "batch" once for all of a call, as the code behind the paper's
            sentiment experiment did.
        batch_first: words are [B, T] instead of [T, B].
        kwargs: those of torch.nn.Embedding.

    Raises:
        ValueError: word_dropout is not in [0, 1), or a choice is unknown.

    Example:
        >>> import torch
        >>> embedding = VariationalEmbedding(3, 4, word_dropout=0.5)
        >>> the, cat, sat = 0, 1, 2
        >>> words = torch.tensor([[the], [cat], [sat], [the], [cat]])  # one sequence of five words, [T, B]
        >>> mask = torch.tensor([[2.0, 0.0, 2.0]])  # it is without "cat"
        >>> (embedding(words, mask) / embedding.weight[words])[:, 0, 0].round().tolist()
        [2.0, 0.0, 2.0, 2.0, 0.0]
    """

    word_dropout = Probability()
    word_masks = Choice("type", "token")
    mask_sharing = Choice("sequence", "batch")

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        word_dropout: float = 0.0,
        word_masks: Literal["type", "token"] = "type",
        mask_sharing: MaskSharing = "sequence",
        batch_first: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, **kwargs)
        self.word_dropout = word_dropout
        self.word_masks = word_masks
        self.mask_sharing = mask_sharing
        self.batch_first = batch_first

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, **dropout: Any) -> VariationalEmbedding:
        """Drop words of an existing embedding, for example a pretrained one.

        Args:
            embedding: its matrix is shared, not copied: training one trains the other, and a softmax layer tied to it
                stays tied.
            dropout: word_dropout, word_masks, mask_sharing and batch_first, as in the constructor.

        Raises:
            TypeError: embedding is not a torch.nn.Embedding.

        Example:
            >>> import torch
            >>> glove = torch.nn.Embedding.from_pretrained(torch.randn(1000, 50))
            >>> VariationalEmbedding.from_embedding(glove, word_dropout=0.2).weight is glove.weight
            True
        """
        if not isinstance(embedding, nn.Embedding):
            raise TypeError(f"embedding must be a torch.nn.Embedding, got {type(embedding).__name__}")
        shared = cls(
            embedding.num_embeddings,
            embedding.embedding_dim,
            padding_idx=embedding.padding_idx,
            max_norm=embedding.max_norm,
            norm_type=embedding.norm_type,
            scale_grad_by_freq=embedding.scale_grad_by_freq,
            sparse=embedding.sparse,
            device="meta",  # nothing to fill: the matrix is the given one
            **dropout,
        )
        shared.weight = embedding.weight
        return shared.train(embedding.training)

    def sample_masks(self, batch_size: int, steps: int | None = None, *, generator: Seed = None) -> Tensor | None:
        """Draw a mask for `batch_size` sequences: [B, V] for "type", [T, B] for "token", None for p = 0.

        Args:
            batch_size: number of sequences B; one is drawn for all of them with mask_sharing="batch".
            steps: number of time steps T; needed only for word_masks="token".
            generator: source of randomness, a generator on the matrix's device or a seed; by default torch's
                global one.

        Raises:
            ValueError: "token" masks are asked for without the number of time steps.
        """
        if self.word_masks == "token" and steps is None:
            raise ValueError("word_masks='token' draws a mask for every position: pass steps")
        rows = batch_size if self.mask_sharing == "sequence" else 1
        shape = (rows, self.num_embeddings) if self.word_masks == "type" else (steps or 0, rows)
        weight = self.weight
        source = generator_of(generator, weight.device)
        return sample_mask(*shape, p=self.word_dropout, device=weight.device, dtype=weight.dtype, generator=source)

    def forward(self, words: Tensor, mask: Tensor | None = None) -> Tensor:
        """Look words up.

        Args:
            words: ids, [T, B] ([B, T] with batch_first), or [T] for a single sequence; any form if nothing is dropped.
            mask: of `sample_masks`. Without one, it is sampled where dropout is live; otherwise nothing is dropped.

        Returns:
            Vectors, the form of words with embedding_dim added.

        Raises:
            ValueError: words have another form, or the mask another shape than `sample_masks` gives for them.
            IndexError: a word is not in [0, V).
        """
        vectors = super().forward(words)
        if mask is None and not (self.dropout_is_live and self.word_dropout):
            return vectors
        if words.dim() not in (1, 2):
            expected = "[B, T] or [T]" if self.batch_first else "[T, B] or [T]"
            raise ValueError(f"{type(self).__name__}: expected words {expected}, got {list(words.shape)}")
        words_TB = words.unsqueeze(1) if words.dim() == 1 else words.t() if self.batch_first else words
        steps, batch_size = words_TB.shape
        if mask is None:
            mask = self.sample_masks(batch_size, steps)
        assert mask is not None
        if self.word_masks == "type":
            check_mask("word mask", mask, self.weight, batch=(1, batch_size), words=self.num_embeddings)
            scale_TB = mask.expand(batch_size, -1).gather(1, words_TB.t().long()).t()
        else:
            check_mask("word mask", mask, self.weight, time=(1, steps), batch=(1, batch_size))
            scale_TB = mask.expand(steps, batch_size)
        scale = scale_TB.squeeze(1) if words.dim() == 1 else scale_TB.t() if self.batch_first else scale_TB
        return vectors * scale.unsqueeze(-1)

    def extra_repr(self) -> str:  # noqa: D102
        shown = (
            f"{super().extra_repr()}, word_dropout={self.word_dropout}, word_masks={self.word_masks!r}, "
            f"mask_sharing={self.mask_sharing!r}"
        )
        return f"{shown}, batch_first=True" if self.batch_first else shown
