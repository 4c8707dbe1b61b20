from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from datasets import Dataset, DatasetDict
from lightning.pytorch.callbacks import Checkpoint

from datamodules.rated_sequences import RatedSequences
from datamodules.streams import TokenStreams
from lightning_modules import LanguageModel, SentimentRegressor
from training.recorder import recorder_of
from training.trainer import Trainer


class RandomStreams(TokenStreams):
    """A text of random words: 3 training windows, 2 validation windows, 22 test predictions in 5 windows."""

    def __init__(
        self,
        batch_size: int = 4,
        window: int = 5,
        train_eval_windows: int = 0,
        vocab_size: int = 11,
        sizes: tuple[int, int, int] = (83, 61, 23),
        sliding_test: bool = False,
    ) -> None:
        super().__init__(batch_size, window, train_eval_windows, sliding_test)
        self.vocab_size = vocab_size
        self.sizes = sizes

    def build(self) -> None:
        generator = torch.Generator().manual_seed(1)
        splits = zip(("train", "validation", "test"), self.sizes, strict=True)
        self.ids = {split: torch.randint(self.vocab_size, (n,), generator=generator) for split, n in splits}


class RandomReviews(RatedSequences):
    """Random words rated from 0 to 1; the rating depends on the last word.

    Args:
        batch_size: as in `RatedSequences`.
        eval_batch_size: as in `RatedSequences`.
        train_eval_chunks: as in `RatedSequences`.
        num_train: number of training texts, beside 13 test texts.
        validation: number of validation texts; 0 for no such split.
        chunks_per_review: so many texts that follow on each other are of one review, of which the last one may be
            shorter. All have its rating.
        pads: how many words of the i-th text are pads: i modulo this.
    """

    def __init__(
        self,
        batch_size: int = 8,
        eval_batch_size: int = 5,
        train_eval_chunks: int = 6,
        num_train: int = 20,
        validation: int = 0,
        chunks_per_review: int = 1,
        pads: int = 1,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, train_eval_chunks)
        self.sizes = {"train": num_train, "test": 13} | ({"validation": validation} if validation else {})
        self.chunks_per_review = chunks_per_review
        self.pads = pads

    def build(self) -> None:
        generator = torch.Generator().manual_seed(2)
        parts = {}
        for split, n in self.sizes.items():
            words = torch.randint(1, 30, (n, 6), generator=generator)
            noise = torch.rand(n, generator=generator)
            ratings = (words[:, -1] / 30 + noise) / 2
            for i, text in enumerate(words):
                text[: i % self.pads] = 0
            first_chunks = [i - i % self.chunks_per_review for i in range(n)]
            parts[split] = Dataset.from_dict(
                {
                    "words": words.tolist(),
                    "rating": ratings[first_chunks].tolist(),
                    "review": [100 - i for i in first_chunks],
                }
            )
        self.chunks = DatasetDict(parts)


@pytest.fixture
def streams() -> type[RandomStreams]:
    return RandomStreams


@pytest.fixture
def reviews() -> type[RandomReviews]:
    return RandomReviews


@pytest.fixture
def language_model() -> Callable[..., LanguageModel]:
    """A small language model in double precision, so that comparisons can be tight."""

    def build(**changes: Any) -> LanguageModel:
        options = {"vocab_size": 11, "hidden_size": 6, "init_scale": 0.5} | changes
        return LanguageModel(**options).double()  # type: ignore[arg-type]

    return build


@pytest.fixture
def regressor() -> Callable[..., SentimentRegressor]:
    def build(**changes: Any) -> SentimentRegressor:
        return SentimentRegressor(**{"vocab_size": 30, "embedding_size": 7, "hidden_size": 5} | changes)

    return build


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """A silent trainer on the CPU that writes nothing."""

    def build(*callbacks: L.Callback, **changes: Any) -> Trainer:
        options = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
            "accelerator": "cpu",
            "devices": 1,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path / "run",
            "callbacks": list(callbacks),
        }
        return Trainer(**options | changes)

    return build


def curve_of(model: Any) -> list[dict[str, float]]:
    """What the trainer has recorded of the model's training."""
    return recorder_of(model.trainer).curve


class Gradients(L.Callback):
    """Keeps the loss and the unclipped gradients of every training step, and the learning rate of every epoch."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].clone())


@pytest.fixture
def recorder() -> Gradients:
    return Gradients()
