"""Sequences of word ids with a rating each, for regression on the last state of a recurrent network."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

from datamodules.checks import check_count
from datamodules.common import TrainingLoader, accumulated, rank_and_world_size
from datamodules.reader import SPECIAL_WORDS, Reader

PAD, START, UNKNOWN = 0, 1, 2
SHORT = 200  # words of a chunk that any text may be padded to: the paper's


class RatedSequences(LightningDataModule):
    """Base of the data modules for sentiment: serves batches (words [T, B], ratings [B], reviews [B]).

    Ratings are in raw units, in float64; reviews are numbers that say which sequences belong together. Shorter
    sequences are padded with id 0 in front (protocol 2.1). The paper's curves are test and training error by epoch, so
    validation has two loaders, of the test sequences and of the first training sequences, and a third where there is a
    split "validation".
    The test has two, of the test sequences and of all training sequences, and that third. Training sequences are
    shuffled anew in each epoch, the last batch is kept.

    With several processes each one takes its part of every batch, and every sequence comes exactly once. Where
    gradients are accumulated over k batches, these are k parts of that part.

    Attributes:
        texts: Rated texts as published, with the columns "text" and "rating"; filled by `setup`.
        vocabulary: Words by id, without the rare ones that share the id 2; filled by `setup`.
        tokens: How texts are split, as in `Reader`.
        chunk_length: T, words of a sequence.
        chunks: What is served; splits "train", "test" and maybe "validation" with the columns "words" (T ids),
            "rating", and "review" (row of `texts`); filled by `setup`.

    Args:
        batch_size: B in training, over all processes.
        eval_batch_size: B in evaluation, over all processes.
        train_eval_chunks: Number of training sequences, from the first on, on which the training error is evaluated.

    Raises:
        ValueError: A number is out of range.
    """

    texts: Dataset
    tokens = "words"
    chunk_length: int

    def __init__(self, batch_size: int, eval_batch_size: int, train_eval_chunks: int) -> None:
        super().__init__()
        self.batch_size, self.eval_batch_size, self.train_eval_chunks = check_count(
            1, batch_size=batch_size, eval_batch_size=eval_batch_size, train_eval_chunks=train_eval_chunks
        )
        self.vocabulary: list[str] = []
        self.chunks = DatasetDict()

    def build(self) -> None:
        """Read the corpus and fill `texts`, `vocabulary` and `chunks`; for subclasses to implement."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Build the corpus once, for all stages."""
        if not self.chunks:
            self.build()

    @property
    def reader(self) -> Reader | None:
        """How a model of these data reads texts; None before `setup`."""
        return Reader(tuple(self.vocabulary), self.tokens, self.chunk_length) if self.vocabulary else None

    @property
    def rating_mean(self) -> float:
        """Mean rating of the training sequences."""
        return float(np.mean(self.chunks["train"]["rating"]))

    @property
    def rating_std(self) -> float:
        """Population standard deviation of the ratings of the training sequences."""
        return float(np.std(self.chunks["train"]["rating"]))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Training sequences, shuffled unless `overfit_batches` is set; the last batch may be smaller."""
        # Without a seed, the same batches come in every epoch.
        is_overfit = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        seed = None if is_overfit else int(os.environ.get("PL_GLOBAL_SEED", 0))  # Lightning's
        chunks = self.chunks["train"]
        batches = SharedBatches(len(chunks), self.batch_size, *rank_and_world_size(self), seed, accumulated(self))
        loader = TrainingLoader(_tensors(chunks), batch_size=None, sampler=batches, collate_fn=_time_first)
        loader.trainer = self.trainer
        return loader

    def val_dataloader(self) -> list[DataLoader[tuple[Tensor, ...]]]:
        """Loaders of the test sequences, of the first training sequences, and of the validation sequences if any."""
        train = self.chunks["train"]
        return self._evaluation_loaders(train.take(min(self.train_eval_chunks, len(train))))

    def test_dataloader(self) -> list[DataLoader[tuple[Tensor, ...]]]:
        """Loaders of the test sequences, of all training sequences, and of the validation sequences if any."""
        return self._evaluation_loaders(self.chunks["train"])

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Test sequences in order."""
        return self._in_order(self.chunks["test"])

    def _evaluation_loaders(self, train: Dataset) -> list[DataLoader[tuple[Tensor, ...]]]:
        validation = [self.chunks["validation"]] if "validation" in self.chunks else []
        return [self._in_order(chunks) for chunks in (self.chunks["test"], train, *validation)]

    def _in_order(self, chunks: Dataset) -> DataLoader[tuple[Tensor, ...]]:
        batches = SharedBatches(len(chunks), self.eval_batch_size, *rank_and_world_size(self))
        return DataLoader(_tensors(chunks), batch_size=None, sampler=batches, collate_fn=_time_first)


class SharedBatches(SequentialSampler):
    """Indices of the sequences of each batch that one process takes: a contiguous part of the batch.

    Not torch's DistributedSampler, which repeats sequences until all processes have equally many: here every sequence
    comes once, and batches are the same for any number of processes. It subclasses SequentialSampler because Lightning
    replaces any other sampler where `overfit_batches` is set.

    Args:
        length: number of sequences.
        batch_size: B, over all processes; the last batch may be smaller.
        rank: of this process.
        world_size: number of processes.
        seed: of the order, which is another one in each epoch; None for the order as it is.
        parts: that the process takes its part of a batch in, one after the other.

    Raises:
        ValueError: a batch has fewer sequences than there are parts.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = None,
        parts: int = 1,
    ) -> None:
        smallest = min(batch_size, length % batch_size or batch_size)
        if smallest < world_size * parts:
            accumulation = f" that accumulate gradients over {parts} parts each" if parts > 1 else ""
            raise ValueError(
                f"{length} sequences in batches of {batch_size} leave one of {smallest}, too few for {world_size} "
                f"processes{accumulation}: choose another batch_size, or fewer processes."
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size, self.parts = rank, world_size, parts
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def place(self, index: int) -> tuple[slice, int]:
        """Which sequences of a batch the index-th part of this process is, and how many the batch has."""
        batch, part = divmod(index, self.parts)
        size = min(self.batch_size, self.length - batch * self.batch_size)
        smaller, larger = divmod(size, self.world_size * self.parts)  # so many sequences each, so many have one more
        before = self.rank * self.parts + part
        first = before * smaller + min(before, larger)
        return slice(first, first + smaller + (before < larger)), size

    def __len__(self) -> int:
        return -(-self.length // self.batch_size) * self.parts

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        order = np.arange(self.length)
        if self.seed is not None:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        for index in range(len(self)):
            start = index // self.parts * self.batch_size
            yield order[start : start + self.batch_size][self.place(index)[0]].tolist()


def rank_words(texts: Iterable[list[str]], limit: int) -> list[str]:
    """List words by id: the special ones, then the most frequent ones, those of equal frequency as they appear.

    Args:
        texts: Words of the texts to count.
        limit: Length of the list at most.
    """
    counts = Counter(word for text in texts for word in text)
    frequent = counts.most_common(limit - len(SPECIAL_WORDS))
    return SPECIAL_WORDS + [word for word, _ in frequent]


def encode(texts: Iterable[list[str]], vocabulary: list[str]) -> list[list[int]]:
    """Encode texts as the start id and the ids of their words; words that `vocabulary` lacks become id 2."""
    index = {word: i for i, word in enumerate(vocabulary) if i >= len(SPECIAL_WORDS)}
    return [[START, *(index.get(word, UNKNOWN) for word in text)] for text in texts]


def pad_left(sequences: list[list[int]], length: int) -> np.ndarray:
    """Pad sequences with id 0 in front; shape [number of sequences, length]."""
    return np.array([[PAD] * (length - len(sequence)) + sequence for sequence in sequences])


def cut(texts: Sequence[list[int]], ratings: Sequence[float], reviews: Sequence[int], length: int) -> Dataset:
    """Cut texts into chunks of `length` ids, the last one padded; each has the rating of its text.

    Args:
        texts: Ids of each text.
        ratings: Of the texts.
        reviews: Their numbers.
        length: T.

    Returns:
        The columns "words", "review" and "rating".

    Raises:
        ValueError: Chunks would hardly be anything but padding, which takes memory and time.
    """
    longest = max(map(len, texts), default=0)
    if length > max(SHORT, 10 * longest):
        raise ValueError(
            f"chunk_length={length}, but the longest text has {longest} words, the start included: "
            f"set chunk_length={longest} or less (--data.init_args.chunk_length)"
        )
    chunks = [
        (ids[start : start + length], review, rating)
        for ids, review, rating in zip(texts, reviews, ratings, strict=True)  # a column of a table has labels
        for start in range(0, len(ids), length)
    ]
    return Dataset.from_dict(
        {
            "words": pad_left([words for words, _, _ in chunks], length),
            "review": [review for _, review, _ in chunks],
            "rating": [rating for _, _, rating in chunks],
        }
    )


def _tensors(chunks: Dataset) -> TensorDataset:
    columns = chunks.with_format("torch")[:]
    ratings = torch.tensor(chunks["rating"][:], dtype=torch.float64)  # with_format makes them float32
    return TensorDataset(columns["words"], ratings, columns["review"])


def _time_first(batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    words, ratings, reviews = batch
    return words.T.contiguous(), ratings, reviews
