"""What the experiments share: the curve of a run, and a checkpoint that fits the model and resumes it."""

from __future__ import annotations

import copy
import inspect
import os
import time
from collections.abc import Iterable
from numbers import Integral
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint, ModelPruning
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from torchmetrics import Metric

from datamodules.rated_sequences import RatedSequences
from datamodules.reader import Reader
from datamodules.streams import TokenStreams
from lightning_modules.optim import DecoupledSGD
from variational_rnn import RNNMasks
from variational_rnn.masks import check_probability

FIRST, LAST = 10, 50  # batches between which is measured what the run will take
TRAINING, VALIDATION, TEST = range(3)  # what random numbers are for
MOST_SAMPLES = 1000  # of networks for a text; memory grows with them
OF_EVERY_EPOCH = ("gradient_norm", "learning_rate", "words_per_s")  # metrics that both models log


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


class Experiment(L.LightningModule):
    """Base of the LightningModules: records every epoch, measures words/s, and checks checkpoints before loading.

    Attributes:
        run_name: in front of what a run prints.
        monitor: the logged metric, lower is better, that chooses the best epoch.
        curve: one entry for each finished epoch: its number from 1, every logged metric (gradient_norm: of the epoch's
            last step), the learning rate, words/s of training alone, and seconds with validation. It is part of the
            checkpoint, so an interrupted run keeps it.
        options: of data and trainer that a resumed run must have kept.
        reader: how the model reads texts: of the data, or of the checkpoint; None if neither says.
        run: that trained the parameters: its number of epochs (`epoch`), `date`, `commit` and whether that was `dirty`;
            set by `load`, None if it is unknown.
        provenance: where this run was started, and where it was resumed; also part of the checkpoint.
        sampled_dropout: names of the probabilities that make sampled networks differ.
        training_means: names of the metrics that training fills in the course of an epoch.
        training_metrics: names that training logs in each epoch, beside `OF_EVERY_EPOCH`.
        words_per_second: of the current epoch, for the progress bar.
    """

    monitor: str
    rates_texts: bool
    run: dict[str, Any] | None = None
    sampled_dropout: tuple[str, ...]
    learning_rate: float
    reference_batch_size: int | None
    training_means: tuple[str, ...]
    training_metrics: tuple[str, ...]
    curve: list[dict[str, float]]

    def __init__(self) -> None:
        super().__init__()
        self.run_name = type(self).__name__
        self.curve = []
        self.provenance: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}
        self.reader: Reader | None = None
        self.words_per_second = 0.0
        self._words = 0
        self._epoch_start = 0.0
        self._seconds = 0.0  # that an interrupted epoch had taken
        self._learning_rate = 0.0
        self._metrics: dict[str, Tensor] = {}  # restored from a checkpoint
        self._earlier: dict[str, Tensor] = {}  # metrics at the start of the epoch
        self._gradient_norm: Tensor | None = None
        self._batches = 0  # of this process, until it has said what the run will take
        self._measured_from = 0.0

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
    def corpus(self) -> dict[str, str]:
        """SHA-256 of the files of the data, by their names; none where there are no data that say."""
        _, hashes = getattr(getattr(self._trainer, "datamodule", None), "corpus", ("", {}))
        return dict(hashes)

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
        self._check_monitors()

    def _check_monitors(self) -> None:
        """Refuse to monitor a metric that is never logged, which Lightning would notice after the first epoch."""
        trainer: Any = self.trainer
        if any(not type(part).__module__.startswith(("lightning", "main")) for part in (self, *trainer.callbacks)):
            return  # other classes may log metrics of their own
        there = [*self.training_metrics, *OF_EVERY_EPOCH]
        if trainer.limit_val_batches != 0:
            there += self.validation_metrics()
        for callback in trainer.callbacks:
            is_strict = callback.strict if isinstance(callback, EarlyStopping) else type(callback) is ModelCheckpoint
            name = getattr(callback, "monitor", None)
            if is_strict and name is not None and name not in (*there, "epoch", "step") and name[:3] != "lr-":
                raise ValueError(
                    f"{type(callback).__name__} monitors {name!r}, which is not measured; there are: "
                    f"{', '.join(sorted(there))}"
                )

    def on_train_start(self) -> None:
        """Go on with the clock of an epoch that was interrupted.

        Raises:
            ValueError: the last step of an epoch would be of a part of a batch.
        """
        batches, parts = int(self.trainer.num_training_batches), self.trainer.accumulate_grad_batches
        if batches % parts:
            raise ValueError(
                f"limit_train_batches leaves {batches} batches, each of them one of accumulate_grad_batches={parts} "
                f"parts of a step: choose a multiple of {parts}"
            )
        self._epoch_start = time.perf_counter() - self._seconds
        self.trainer.callback_metrics.update(self._metrics)
        self._learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_start(self) -> None:
        """Start the epoch's clock, and remember the metrics of earlier epochs."""
        self._earlier = dict(self.trainer.callback_metrics)
        for name in self.training_means:
            getattr(self, name).reset()
        self._words = 0
        self._epoch_start = time.perf_counter()
        self._learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]  # the schedule moves on before the end

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        """Say early on about how long training will take."""
        if self._batches == FIRST:
            self._measured_from = time.perf_counter()
        epochs = (self.trainer.max_epochs or 0) - self.current_epoch  # negative where there is no limit
        if self._batches == LAST and epochs > 0:
            per_batch = (time.perf_counter() - self._measured_from) / (LAST - FIRST)
            seconds = per_batch * (int(self.trainer.num_training_batches) * epochs - batch_index)
            self.print(f"{self.run_name}  training takes about {duration(seconds)}, evaluation not counted")
        self._batches += 1

    def count_words(self, words: Tensor) -> None:
        """Add a batch's words to the epoch's throughput; `words` [T, B] are one process's share."""
        self._words += words.numel() * self.trainer.world_size
        self.words_per_second = self._words / (time.perf_counter() - self._epoch_start)

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
        """Add the epoch to the curve and print it."""
        if self._gradient_norm is not None:  # not logged in every step, which takes Lightning 0.4 ms
            self.log("gradient_norm", self._gradient_norm)
        self.log("learning_rate", self._learning_rate)
        self.log("words_per_s", self.words_per_second)
        metrics = self.trainer.callback_metrics
        measured = {name: float(value) for name, value in metrics.items() if not self._is_earlier(name, value)}
        entry = {"epoch": self.current_epoch + 1, **measured, "seconds": time.perf_counter() - self._epoch_start}
        self.curve.append(entry)
        shown = (name for name in entry if name not in ("epoch", "gradient_norm", "learning_rate"))
        values = "  ".join(f"{name} {_rounded(entry[name])}" for name in shown)
        epochs = self.trainer.max_epochs or -1
        epochs_left = epochs - self.current_epoch - 1
        of_all = f"/{epochs}" if epochs > 0 else ""
        left = f"  about {duration(epochs_left * entry['seconds'])} left" if epochs_left > 0 else ""
        self.print(f"{self.run_name}  epoch {self.current_epoch + 1}{of_all}  {values}{left}")

    def _is_earlier(self, name: str, value: Tensor) -> bool:
        """Whether a metric is left over from an earlier epoch; Lightning makes a new tensor when it is logged again."""
        return value is self._earlier.get(name)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the curve, the provenance, and what the epoch has measured so far."""
        checkpoint["curve"] = self.curve
        checkpoint["provenance"] = self.provenance
        checkpoint["options"] = self.options
        checkpoint["corpus"] = self.corpus
        checkpoint["model"] = type(self).__name__
        checkpoint["reader"] = self.reader and self.reader.state()
        metrics = self.trainer.callback_metrics
        checkpoint["metrics"] = dict(metrics)
        checkpoint["earlier"] = [name for name, value in metrics.items() if self._is_earlier(name, value)]
        checkpoint["words"] = self._words
        checkpoint["seconds"] = time.perf_counter() - self._epoch_start
        checkpoint["means"] = {name: _reduced(getattr(self, name)) for name in self.training_means}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is of this model and that the data are read as it was, then take over its curve.

        Raises:
            ValueError: the checkpoint belongs to another model, the data have another vocabulary or are split or cut
                otherwise, or training would go on with other options or another text; names what differs.
        """
        if "curve" not in checkpoint:
            raise ValueError("the checkpoint was not written by this repository: it has no curve of its run")
        ours = self.state_dict()
        theirs = checkpoint["state_dict"] = upgrade(checkpoint["state_dict"], ours)
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
        if self.is_fitting:
            # An option that is newer than the checkpoint had its default then.
            defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
            before = defaults | checkpoint["hyper_parameters"] | checkpoint.get("options", {})
            changed = [
                f"{name}: {_given(before[name])} in the checkpoint, {_given(value)} here"
                for name, value in (dict(self.hparams) | self.options).items()
                if not name.startswith("_") and name in before and before[name] != value
            ]
            if changed:
                raise ValueError(
                    f"the checkpoint is of a run with other options ({'; '.join(changed)}): training cannot "
                    "go on from it. Use the configuration it was trained with, or another folder for checkpoints "
                    "(trainer.default_root_dir; RUNS=... for make)."
                )
            texts, others = self.corpus, checkpoint.get("corpus") or self.corpus
            if changed := sorted(name for name in texts | others if texts.get(name) != others.get(name)):
                raise ValueError(
                    f"the checkpoint is of a run on other texts ({', '.join(changed)} had another SHA-256, or was not "
                    "there): training cannot go on from it. Bring back what it was trained on, or use another folder "
                    "for checkpoints (trainer.default_root_dir; RUNS=... for make)."
                )
            # Lightning's finders restore a checkpoint of their own after some steps, which is not a resumption.
            if self.trainer.max_steps != -1 and self.trainer.global_step == 0:
                raise ValueError(
                    f"trainer.max_steps={self.trainer.max_steps}: a run that is limited by steps cannot be resumed, "
                    "since Lightning would end an epoch twice. Use trainer.max_epochs."
                )
            epochs, last = len(checkpoint["curve"]), self.trainer.max_epochs
            loop = checkpoint.get("loops", {}).get("fit_loop", {})
            begun = loop.get("epoch_progress", {}).get("current", {})
            is_at_last_batch = loop.get("epoch_loop.batch_progress", {}).get("is_last_batch", False)
            if is_at_last_batch and begun["processed"] < begun["ready"]:
                raise ValueError(
                    f"the checkpoint was saved after the last batch of epoch {begun['ready']} and before its end, "
                    "which Lightning would skip: resume from a checkpoint that was saved within an epoch or after its "
                    "end, such as checkpoints/last.ckpt of main.py"
                )
            if begun.get("ready", epochs) > epochs == last:
                raise ValueError(
                    f"the run is in the middle of epoch {epochs + 1}, past the end of epoch {epochs}: "
                    f"let it end that epoch, epochs={epochs + 1} (EPOCHS={epochs + 1} for make)"
                )
            # Of an epoch that was interrupted; any other begins with nothing.
            self._metrics = checkpoint.get("metrics", {})
            self._earlier = {name: self._metrics[name] for name in checkpoint.get("earlier", ())}
            self._words, self._seconds = checkpoint.get("words", 0), checkpoint.get("seconds", 0.0)
            for name, states in checkpoint.get("means", {}).items() if self.global_rank == 0 else ():
                metric = getattr(self, name)
                for state, value in states.items():
                    setattr(metric, state, value.to(metric.device))
        if state := checkpoint.get("reader"):  # older checkpoints have none
            reader = Reader(**state)
            if len(reader.vocabulary) > len(ours["embedding.weight"]):
                raise ValueError(
                    f"the checkpoint's vocabulary of {len(reader.vocabulary):,} words is larger than its embedding"
                )
            self.reader = _agreed(reader, self.reader)
        self.curve = checkpoint["curve"]
        self.provenance = checkpoint["provenance"] + self.provenance


def upgrade(state_dict: dict[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Rename parameters that were saved without the prefix "network.".

    Args:
        state_dict: of a checkpoint or a saved folder.
        own: names of the parameters of the model that loads it.
    """
    names = {name.removeprefix("network."): name for name in own}
    return {names.get(name, name): value for name, value in state_dict.items()}


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


def _reduced(metric: Metric) -> dict[str, Any]:
    """The states of a metric, over all processes."""
    with metric.sync_context():
        return copy.deepcopy(metric.metric_state)


def _given(value: Any) -> Any:
    return "not given" if value is None else value


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds for people: 90 s, 12 min, 3 h 5 min."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _shape(state_dict: dict[str, Tensor], name: str) -> list[int] | str:
    return list(state_dict[name].shape) if name in state_dict else "absent"
