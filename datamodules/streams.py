"""A text as parallel streams, cut into windows for truncated back-propagation through time."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from datamodules.checks import check_count
from datamodules.common import TrainingLoader, batch_share, rank_and_world_size
from datamodules.reader import EOS, UNKNOWN, Reader


def frequent_words(words: Iterable[str], vocab_size: int, source: str) -> list[str]:
    """List words by id: <unk>, <eos>, then the most frequent ones, those of equal frequency as they appear.

    Args:
        words: The text to count.
        vocab_size: Length of the list.
        source: Where the text is from; for the error message.

    Raises:
        ValueError: The text has fewer word types.
    """
    counts = Counter(words)
    del counts[UNKNOWN], counts[EOS]
    vocabulary = [UNKNOWN, EOS, *(word for word, _ in counts.most_common(vocab_size - 2))]
    if len(vocabulary) < vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size}, but {source} has only {len(vocabulary)} word types, {UNKNOWN} and {EOS} "
            f"included: set vocab_size={len(vocabulary)} or less (--data.init_args.vocab_size); the model follows."
        )
    return vocabulary


def encode_stream(words: Iterable[str], vocabulary: list[str]) -> Tensor:
    """Encode a text as word ids, shape [n]; words that `vocabulary` lacks become id 0."""
    index = {word: i for i, word in enumerate(vocabulary)}
    return torch.from_numpy(np.fromiter((index.get(word, 0) for word in words), dtype=np.int64))


def split_streams(ids: Tensor, num_streams: int) -> Tensor:
    """Split a text into parallel streams of equal length, as the published Lua code does (protocol 1.1).

    Of n tokens every stream takes R = floor(n / B), and stream i starts at token i * n / B, rounded half up. The few
    tokens that fall between two streams are not used.

    Args:
        ids: Token ids of the text, shape [n].
        num_streams: B, the number of streams.

    Returns:
        The streams as columns, shape [R, B].

    Raises:
        ValueError: There are more streams than tokens.
    """
    n = len(ids)
    if num_streams > n:
        raise ValueError(
            f"a text of {n} tokens is too short for batch_size={num_streams} streams: use a longer text or a smaller "
            "batch_size (--data.init_args.batch_size)"
        )
    length = n // num_streams
    # Integer arithmetic, because round() takes halves to the even number: 464794, not 464795, for stream 10 of the PTB.
    starts = [(2 * i * n + num_streams) // (2 * num_streams) for i in range(num_streams)]
    return torch.stack([ids[start : start + length] for start in starts], dim=1)


class StreamWindows(Dataset[tuple[Tensor, Tensor]]):
    """Consecutive windows over parallel streams; a window predicts every token from the one before it.

    Item i is a pair (inputs, targets), both of shape [T, B]: rows i*T ... i*T+T-1 of the streams, and the rows that
    follow them by one. Windows are meant to be visited in order, with the recurrent state carried on.

    Attributes:
        num_steps: R - 1, the number of predictions that each stream allows. The published code divides the validation
            loss by num_steps / T and not by the number of windows (protocol 1.6).

    Args:
        streams: Token ids, shape [R, B].
        window: T, rows of a window.
        keep_remainder: Whether to end with a shorter window, so that every token but the first is predicted.

    Raises:
        ValueError: The streams are too short for a single window.
    """

    def __init__(self, streams: Tensor, window: int, keep_remainder: bool = False) -> None:
        self.streams = streams
        self.window = window
        self.num_steps = len(streams) - 1
        self.num_windows = -(-self.num_steps // window) if keep_remainder else self.num_steps // window
        if self.num_windows < 1:
            raise ValueError(
                f"streams of {len(streams)} tokens are too short for a window of {window} and its targets: "
                "use a longer text, a smaller batch_size (fewer, longer streams) or a smaller window."
            )

    def __len__(self) -> int:
        return self.num_windows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = index * self.window
        stop = min(start + self.window, self.num_steps)
        return self.streams[start:stop], self.streams[start + 1 : stop + 1]


class SlidingWindows(Dataset[tuple[Tensor, Tensor]]):
    """Every window of T words of a text, moved on by one word at a time, and the word after it.

    Item i is a pair (inputs, targets) of up to `columns` windows side by side: [T, B] and [1, B].

    Args:
        ids: Token ids of the text, shape [n].
        window: T, words that each prediction is made from.
        columns: Windows of an item, B.

    Raises:
        ValueError: The text is too short for a single window.
    """

    def __init__(self, ids: Tensor, window: int, columns: int = 512) -> None:
        if len(ids) <= window:
            raise ValueError(
                f"a text of {len(ids)} tokens is too short for a window of {window} and its target: "
                "use a longer text or a smaller window."
            )
        self.windows = ids.unfold(0, window + 1, 1).T  # [T + 1, n - T], a view
        self.columns = columns

    def __len__(self) -> int:
        return -(-self.windows.size(1) // self.columns)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        windows = self.windows[:, index * self.columns : (index + 1) * self.columns]
        return windows[:-1].contiguous(), windows[-1:].contiguous()


class TokenStreams(LightningDataModule):
    """Base of the data modules for language models: serves a text as windows (inputs, targets), each [T, B].

    Training and validation text are split into `batch_size` streams. Validation has a second loader, of the first
    training windows, if `train_eval_windows` asks for it: both errors with dropout off show overfitting. The test text
    is one stream (B = 1) whose last window may be shorter, so that all tokens but the first are predicted. The test has
    a second loader, of `SlidingWindows`, if `sliding_test` asks for it. Windows come in order, in every epoch.

    With several processes each one gets a contiguous block of the training and validation streams, so that recurrent
    states can be carried on; all processes get the same test stream.

    Attributes:
        vocabulary: Words by id; filled by `setup`.
        tokens: How lines are split, as in `Reader`.
        ids: Token ids of the splits "train", "validation" and "test", shape [n] each; filled by `setup`.

    Args:
        batch_size: B, the number of streams over all processes.
        window: T, tokens of a window.
        train_eval_windows: Number of training windows, from the first on, on which the training error is evaluated.
        sliding_test: Whether test words are also predicted from the `window` words before them alone.

    Raises:
        ValueError: A number is out of range.
    """

    tokens = "spaces"

    def __init__(self, batch_size: int, window: int, train_eval_windows: int = 0, sliding_test: bool = False) -> None:
        super().__init__()
        self.batch_size, self.window = check_count(1, batch_size=batch_size, window=window)
        [self.train_eval_windows] = check_count(0, train_eval_windows=train_eval_windows)
        self.sliding_test = sliding_test
        self.vocabulary: list[str] = []
        self.ids: dict[str, Tensor] = {}

    def build(self) -> None:
        """Read the corpus and fill `vocabulary` and `ids`; for subclasses to implement."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Build the corpus once, for all stages."""
        if not self.ids:
            self.build()

    @property
    def reader(self) -> Reader | None:
        """How a model of these data reads texts; None before `setup`."""
        return Reader(tuple(self.vocabulary), self.tokens, window=self.window) if self.vocabulary else None

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Windows over this process's streams of the training text."""
        loader = TrainingLoader(self._parallel_windows("train"), batch_size=None)
        loader.trainer = self.trainer
        return loader

    def val_dataloader(self) -> list[DataLoader[tuple[Tensor, Tensor]]]:
        """Windows over this process's streams of the validation text, and the first training windows if wanted."""
        loaders = [_in_order(self._parallel_windows("validation"))]
        if self.train_eval_windows:
            train = self._parallel_windows("train")
            loaders.append(_in_order(Subset(train, range(min(self.train_eval_windows, len(train))))))
        return loaders

    def test_dataloader(self) -> list[DataLoader[tuple[Tensor, Tensor]]]:
        """Windows over the whole test text as one stream, the shorter last one included, and sliding ones if wanted."""
        loaders = self.predict_dataloader()[:1]
        if self.sliding_test:
            loaders.append(_in_order(SlidingWindows(self.ids["test"], self.window)))
        return loaders

    def predict_dataloader(self) -> list[DataLoader[tuple[Tensor, Tensor]]]:
        """Windows over the whole test text as one stream, the shorter last one included; the same of validation."""
        texts = (self.ids[split][:, None] for split in ("test", "validation"))
        return [_in_order(StreamWindows(text, self.window, keep_remainder=True)) for text in texts]

    def _parallel_windows(self, split: str) -> StreamWindows:
        rank, world_size = rank_and_world_size(self)
        share = batch_share(self.batch_size, world_size)
        streams = split_streams(self.ids[split], self.batch_size)
        return StreamWindows(streams[:, rank * share : (rank + 1) * share].contiguous(), self.window)


def _in_order(windows: Dataset[tuple[Tensor, Tensor]]) -> DataLoader[tuple[Tensor, Tensor]]:
    return DataLoader(windows, batch_size=None, shuffle=False)
