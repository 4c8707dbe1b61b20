from pathlib import Path

import torch

from datamodules.streams import TokenStreams


class RandomText(TokenStreams):
    """Random words in place of the Penn Treebank, for runs in processes of their own."""

    def __init__(
        self,
        data_dir: Path = Path(),
        batch_size: int = 2,
        window: int = 5,
        vocab_size: int = 12,
        train_eval_windows: int = 0,
        words: int = 200,
    ) -> None:
        super().__init__(batch_size, window, train_eval_windows)
        self.vocab_size = vocab_size
        self.words = words

    def build(self) -> None:
        generator = torch.Generator().manual_seed(1)
        sizes = {"train": self.words, "validation": 61, "test": 23}
        self.ids = {split: torch.randint(self.vocab_size, (n,), generator=generator) for split, n in sizes.items()}
