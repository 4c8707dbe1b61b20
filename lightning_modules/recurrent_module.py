"""What both LightningModules share."""

from __future__ import annotations

import os
from numbers import Integral
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelPruning
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from datamodules.rated_sequences import RatedSequences
from datamodules.reader import Reader
from datamodules.streams import TokenStreams
from lightning_modules.optim import DecoupledSGD
from variational_rnn.masks import check_probability

TRAINING, VALIDATION, TEST = range(3)  # what random numbers are for
MOST_SAMPLES = 1000  # of networks for a text; memory grows with them


class RecurrentModule(L.LightningModule):
    """Base of the LightningModules: random numbers, clipping, and checks of data, trainer and checkpoints.

    Attributes:
        monitor: the logged metric, lower is better, that chooses the best epoch.
        reader: how the model reads texts: of the data, or of the checkpoint; None if neither says.
        run: that trained the parameters: its number of epochs (`epoch`), `date`, `commit` and whether that was `dirty`;
            set by `load`, None if it is unknown.
        sampled_dropout: names of the probabilities that make sampled networks differ.
        training_means: names of the metrics that training fills in the course of an epoch.
        training_metrics: names that training logs in each epoch, beside gradient_norm and learning_rate.
    """

    monitor: str
    rates_texts: bool
    run: dict[str, Any] | None = None
    sampled_dropout: tuple[str, ...]
    learning_rate: float
    reference_batch_size: int | None
    training_means: tuple[str, ...]
    training_metrics: tuple[str, ...]

    def __init__(self) -> None:
        super().__init__()
        self.reader: Reader | None = None
        self._learning_rate = 0.0
        self._gradient_norm: Tensor | None = None

    def generator(self, *key: int, seed: int | None = None) -> torch.Generator:
        """The random numbers of one batch, of the run's seed and a key alone.

        They are the same for every process, whatever the number of processes, and for a resumed run those that it
        would have drawn: each process draws the masks of the whole batch and takes those of its own sequences.

        Args:
            key: what they are for (TRAINING, ...), epoch, and batch.
            seed: of the run by default.
        """
        if seed is None:
            seed = int(os.environ.get("PL_GLOBAL_SEED") or torch.initial_seed())  # the first is Lightning's
        state = np.random.SeedSequence([seed, len(key), *key]).generate_state(1, np.uint64)
        return torch.Generator(self.device).manual_seed(int(state[0]) >> 1)

    @property
    def is_fitting(self) -> bool:
        """Whether the trainer is to train."""
        return self._trainer is not None and self._trainer.state.fn == "fit"

    def known_reader(self) -> Reader:
        """How the model reads texts.

        Raises:
            ValueError: that is not known.
        """
        if self.reader is None:
            raise ValueError(
                "the model does not say how it reads texts, since its checkpoint is older than that: set its `reader` "
                "to the one of the data module that it was trained on, after setup()"
            )
        return self.reader

    def checked_samples(self, mc_samples: int | None) -> int:
        """The number K of networks to sample for a text, by default 50, and 0 if the model has no dropout.

        Raises:
            ValueError: it is out of range, or the model has no dropout.
        """
        has_dropout = any(self.hparams[name] for name in self.sampled_dropout)
        if mc_samples is None:
            return 50 if has_dropout else 0
        is_count = isinstance(mc_samples, Integral) and not isinstance(mc_samples, bool)
        if not is_count or not (mc_samples == 0 or 2 <= mc_samples <= MOST_SAMPLES):
            raise ValueError(
                f"mc_samples must be 0 (the approximation alone) or from 2 to {MOST_SAMPLES}, got {mc_samples}"
            )
        if mc_samples and not has_dropout:
            raise ValueError(f"mc_samples={mc_samples}, but the model has no dropout: all its samples would be alike")
        return int(mc_samples)

    def check_data(self, datamodule: L.LightningDataModule) -> None:
        """Check that the data are of the model's kind.

        Raises:
            ValueError: they have ratings and the model is of running text, or the other way round.
        """
        if isinstance(datamodule, TokenStreams if self.rates_texts else RatedSequences):
            served, needed, others = "ratings", "running text", "PlainText, PennTreebank and SnippetLanguage"
            if self.rates_texts:
                served, needed, others = needed, served, "RatedText, FilmReviews and SnippetRatings"
            raise ValueError(
                f"{type(datamodule).__name__} serves {served}, {type(self).__name__} needs {needed}, as {others} of "
                "datamodules serve: change --data or --model"
            )

    def validation_metrics(self) -> list[str]:
        """Names that each validation logs, given the trainer's data."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Check the data and the trainer's options, and take over how the data read texts.

        Raises:
            ValueError: the data are for the other kind of model; the model was trained on another vocabulary, or on
                texts that were split or cut differently; batches must be divided, but not by one of our data modules;
                or an option of the trainer would give wrong numbers or none.
        """
        data = getattr(self.trainer, "datamodule", None)
        if data:
            self.check_data(data)
        self._check_trainer()
        if reader := getattr(data, "reader", None):
            self.reader = _agreed(self.reader, reader)

    def _check_trainer(self) -> None:
        """Refuse options that would not train or measure what they say."""
        trainer: Any = self.trainer
        if trainer.precision not in (allowed := ("32-true", "64-true", "bf16-mixed", "16-mixed")):
            raise ValueError(
                f"trainer.precision={trainer.precision} would round ratings and metrics, too: "
                f"choose {' or '.join(allowed)}"
            )
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise ValueError(
                f"trainer.strategy must be auto or ddp, got {type(trainer.strategy).__name__}: clipping "
                "gradients and writing checkpoints need all parameters in each process"
            )
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, TokenStreams | RatedSequences):
            if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
                raise ValueError(
                    "trainer.use_distributed_sampler must be false: the data module gives each process its part of "
                    "every batch, and Lightning's sampler would divide it again"
                )
        elif trainer.world_size * trainer.accumulate_grad_batches > 1:
            raise ValueError(
                "several processes, and accumulate_grad_batches, need a data module that shares out each batch, such "
                f"as {'RatedText' if self.rates_texts else 'PlainText'}: use Trainer.fit(model, datamodule=...), or "
                "one process without accumulation"
            )
        if not self.is_fitting:
            return
        for callback in trainer.callbacks:
            if isinstance(callback, GradientAccumulationScheduler):
                raise ValueError(
                    "the callback GradientAccumulationScheduler is not supported: a language model "
                    "cannot accumulate gradients, and all batches of reviews are divided by accumulate_grad_batches"
                )
            if isinstance(callback, ModelPruning):
                raise ValueError(
                    "the callback ModelPruning is not supported: it prunes when a layer is called, and the layers here "
                    "are also used without a call, where that is faster"
                )

    def on_train_start(self) -> None:
        """Check that every step has all its parts, and note the learning rate.

        Raises:
            ValueError: the last step of an epoch would be of a part of a batch.
        """
        batches, parts = int(self.trainer.num_training_batches), self.trainer.accumulate_grad_batches
        if batches % parts:
            raise ValueError(
                f"limit_train_batches leaves {batches} batches, each of them one of accumulate_grad_batches={parts} "
                f"parts of a step: choose a multiple of {parts}"
            )
        self._learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_start(self) -> None:
        """Reset the epoch's means, and note the learning rate."""
        for name in self.training_means:
            getattr(self, name).reset()
        self._learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]  # the schedule moves on before the end

    def scaled_learning_rate(self) -> float:
        """The learning rate for the batch size of the data."""
        reference = self.reference_batch_size
        if reference is None:
            return self.learning_rate
        batch_size = getattr(getattr(self.trainer, "datamodule", None), "batch_size", None)
        if batch_size is None:
            raise ValueError(
                f"reference_batch_size={reference} needs a data module with a batch_size, as in "
                "Trainer.fit(model, datamodule=...): leave it out, and set the learning rate for your batches"
            )
        rate = self.learning_rate * batch_size / reference
        self.print(f"learning_rate {self.learning_rate:g} is for {reference} sequences: {rate:g} for {batch_size}")
        return rate

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer was told to, and keep the global L2 norm before clipping."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._gradient_norm = norm.detach()
        if gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val and isinstance(optimizer, DecoupledSGD):
            optimizer.clip(norm, gradient_clip_val)
        elif gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val, norm)

    def on_train_epoch_end(self) -> None:
        """Log the gradient norm of the last step, and the learning rate."""
        if self._gradient_norm is not None:  # not logged in every step, which takes Lightning 0.4 ms
            self.log("gradient_norm", self._gradient_norm)
        self.log("learning_rate", self._learning_rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the name of the model and how it reads texts."""
        checkpoint["model"] = type(self).__name__
        checkpoint["reader"] = self.reader and self.reader.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is of this model and that the data are read as it was.

        Raises:
            ValueError: the checkpoint belongs to another model, or the data have another vocabulary or are split or cut
                otherwise; names what differs.
        """
        if not {"model", "curve"} & checkpoint.keys():
            raise ValueError("the checkpoint was not written by this repository: it does not name its model")
        ours = self.state_dict()
        theirs = checkpoint["state_dict"]
        differences = [f"{name}: {_shape(theirs, name)} in the checkpoint, {_shape(ours, name)} here"
                       for name in sorted(theirs.keys() | ours.keys())
                       if _shape(theirs, name) != _shape(ours, name)]  # fmt: skip
        if differences:
            raise ValueError(
                f"the checkpoint is of another model than this {type(self).__name__} "
                f"({'; '.join(differences[:3])}{'; ...' if len(differences) > 3 else ''}). "
                "Use the configuration that the checkpoint was trained with."
            )
        if any(theirs[name].dtype == torch.float64 for name, _ in self.named_parameters()):
            self.double()  # before they are taken over: float32 would round them
        if state := checkpoint.get("reader"):  # older checkpoints have none
            reader = Reader(**state)
            if len(reader.vocabulary) > len(ours["embedding.weight"]):
                raise ValueError(
                    f"the checkpoint's vocabulary of {len(reader.vocabulary):,} words is larger than its embedding"
                )
            self.reader = _agreed(reader, self.reader)


def check_probabilities(**options: float) -> list[float]:
    """Check probabilities to drop, given by name, and return them as Python floats.

    Raises:
        ValueError: one is not in [0, 1).
    """
    return [check_probability(name, p) for name, p in options.items()]


def _agreed(of_model: Reader | None, of_data: Reader | None) -> Reader | None:
    """The reader of the data, or of the model if there are none."""
    if of_model and of_data and (difference := of_model.difference(of_data)):
        part, change = difference
        raise ValueError(
            f"the data differ in their {part} from those that the model was trained on (the model's, then the data's: "
            f"{change}): use the data that it was trained on, or give these its {part} (--data.init_args.{part}, if "
            "they have that option)."
        )
    return of_data or of_model


def _shape(state_dict: dict[str, Tensor], name: str) -> list[int] | str:
    return list(state_dict[name].shape) if name in state_dict else "absent"
