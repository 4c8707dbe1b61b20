"""What a run records about itself: its curve, its speed, its origin, and whether a checkpoint may resume it."""

from __future__ import annotations

import copy
import inspect
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, RichProgressBar
from torch import Tensor
from torchmetrics import Metric

from lightning_modules.loading import run_of

FIRST, LAST = 10, 50  # batches between which the speed is measured for the early estimate
OURS = ("lightning", "training.")  # packages whose callbacks and models log what is known here

PATHS = ("data_dir", "source", "vocabulary", "default_root_dir", "result", "ckpt_path")
MAY_CHANGE = {
    "paths, whose content is compared or does not matter": PATHS,
    "evaluation": (
        *("eval_batch_size", "train_eval_windows", "train_eval_chunks", "sliding_test", "tested_weights"),
        *("limit_val_batches", "limit_test_batches", "limit_predict_batches", "num_sanity_val_steps"),
        *("val_check_interval", "check_val_every_n_epoch", "inference_mode"),
    ),
    "length": ("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "epochs", "fast_dev_run"),
    "hardware": (
        *("accelerator", "devices", "num_nodes", "strategy", "plugins", "use_distributed_sampler", "sync_batchnorm"),
        *("benchmark", "deterministic", "model_registry"),
    ),
    "output": (
        *("logger", "callbacks", "log_every_n_steps", "enable_progress_bar", "enable_model_summary"),
        *("enable_checkpointing", "enable_autolog_hparams", "checkpoint_minutes", "detect_anomaly", "profiler"),
        *("barebones", "reload_dataloaders_every_n_epochs"),
    ),
}
"""Options of data, trainer and command line that a resumed run may change, by reason. All others must be the same."""


def options_that_count(run_config: dict[str, Any]) -> dict[str, Any]:
    """Options of data, trainer and command line that a resumed run must keep; the model compares its own.

    Args:
        run_config: the resolved configuration of a command.
    """
    others = {name: value for name, value in run_config.items() if name not in ("model", "data", "trainer", "config")}
    options = run_config.get("data", {}).get("init_args", {}) | run_config.get("trainer", {}) | others
    may_change = {name for names in MAY_CHANGE.values() for name in names}
    return {name: value for name, value in options.items() if name not in may_change}


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without files and folders of the machine it ran on."""
    return {
        name: without_paths(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in PATHS
    }


class Recorder(Checkpoint):
    """Records every epoch, measures words/s, and checks that a checkpoint may resume this run.

    It belongs to every `training.trainer.Trainer`; `recorder_of` adds it to a plain Lightning trainer. It saves nothing
    by itself. It is a `Checkpoint` because Lightning calls only these after the model's own `on_train_epoch_end`.

    Attributes:
        name: printed before each line; the model's class by default.
        curve: one entry for each finished epoch: its number from 1, every logged metric (gradient_norm: of the epoch's
            last step), the learning rate, words/s of training alone, and seconds with validation. It is part of the
            checkpoint, so an interrupted run keeps it.
        provenance: where this run was started, and where it was resumed; also part of the checkpoint.
        options: of data and trainer that a resumed run must keep, as `options_that_count` has them.
        words_per_second: of the current epoch.
    """

    def __init__(self) -> None:
        self.name = ""
        self.curve: list[dict[str, float]] = []
        self.provenance: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}
        self.words_per_second = 0.0
        self._words = 0
        self._epoch_start = 0.0
        self._seconds = 0.0  # of an interrupted epoch, before this process
        self._metrics: dict[str, Tensor] = {}  # restored from a checkpoint
        self._earlier: dict[str, Tensor] = {}  # metrics at the start of the epoch
        self._batches = 0  # of this process
        self._measured_from = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Name the run after its model, unless it has a name.

        Raises:
            ValueError: a callback monitors a metric that is never logged.
        """
        self.name = self.name or type(pl_module).__name__
        if stage == "fit":
            _check_monitors(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Continue the clock and the metrics of an epoch that was interrupted."""
        self._epoch_start = time.perf_counter() - self._seconds
        trainer.callback_metrics.update(self._metrics)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock, and remember the metrics of earlier epochs."""
        self._earlier = dict(trainer.callback_metrics)
        self._words = 0
        self._epoch_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch's words; after a few batches, print how long training will take."""
        self._words += batch[0].numel() * trainer.world_size  # [T, B], this process's share
        self.words_per_second = self._words / (time.perf_counter() - self._epoch_start)
        if self._batches == FIRST:
            self._measured_from = time.perf_counter()
        epochs = (trainer.max_epochs or 0) - trainer.current_epoch  # negative where there is no limit
        if self._batches == LAST and epochs > 0:
            per_batch = (time.perf_counter() - self._measured_from) / (LAST - FIRST)
            seconds = per_batch * (int(trainer.num_training_batches) * epochs - batch_idx)
            pl_module.print(f"{self.name}  training takes about {duration(seconds)}, evaluation not counted")
        self._batches += 1

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the epoch to the curve and print it."""
        pl_module.log("words_per_s", self.words_per_second)
        metrics = trainer.callback_metrics
        measured = {name: float(value) for name, value in metrics.items() if not self._is_earlier(name, value)}
        number = trainer.current_epoch + 1
        entry = {"epoch": number, **measured, "seconds": time.perf_counter() - self._epoch_start}
        self.curve.append(entry)
        pl_module.run = self.run  # type: ignore[assignment]
        shown = (name for name in entry if name not in ("epoch", "gradient_norm", "learning_rate"))
        values = "  ".join(f"{name} {_rounded(entry[name])}" for name in shown)
        epochs = trainer.max_epochs or -1
        of_all = f"/{epochs}" if epochs > 0 else ""
        left = f"  about {duration((epochs - number) * entry['seconds'])} left" if epochs > number else ""
        pl_module.print(f"{self.name}  epoch {number}{of_all}  {values}{left}")

    @property
    def run(self) -> dict[str, Any] | None:
        """What a saved model says of the run that trained it; None where that is unknown."""
        return run_of({"curve": self.curve, "provenance": self.provenance})

    def _is_earlier(self, name: str, value: Tensor) -> bool:
        """Whether a metric is left over from an earlier epoch; Lightning makes a new tensor when it is logged again."""
        return value is self._earlier.get(name)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the curve, the provenance, and what the epoch has measured so far."""
        metrics = trainer.callback_metrics
        means = getattr(pl_module, "training_means", ())
        checkpoint |= {
            "curve": self.curve,
            "provenance": self.provenance,
            "options": self.options,
            "corpus": _corpus(trainer),
            "metrics": dict(metrics),
            "earlier": [name for name, value in metrics.items() if self._is_earlier(name, value)],
            "words": self._words,
            "seconds": time.perf_counter() - self._epoch_start,
            "means": {name: _reduced(getattr(pl_module, name)) for name in means},
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check that training may resume from the checkpoint, then continue its records.

        Raises:
            ValueError: the checkpoint has no records, was trained with other options or on other texts, or is from a
                point at which Lightning cannot resume.
        """
        if "curve" not in checkpoint:
            raise ValueError("the checkpoint was not written by this repository: it has no curve of its run")
        _check_options(trainer, pl_module, self.options, checkpoint)
        _check_corpus(_corpus(trainer), checkpoint)
        _check_point(trainer, checkpoint)
        # Of an interrupted epoch; any other starts from nothing.
        self._metrics = checkpoint.get("metrics", {})
        self._earlier = {name: self._metrics[name] for name in checkpoint.get("earlier", ())}
        self._words, self._seconds = checkpoint.get("words", 0), checkpoint.get("seconds", 0.0)
        for name, states in checkpoint.get("means", {}).items() if trainer.is_global_zero else ():
            metric = getattr(pl_module, name)
            for state, value in states.items():
                setattr(metric, state, value.to(metric.device))
        self.curve = checkpoint["curve"]
        self.provenance = checkpoint["provenance"] + self.provenance


def recorder_of(trainer: L.Trainer) -> Recorder:
    """The trainer's recorder, added where it has none."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Recorder):
            return callback
    recorder = Recorder()
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    first = next((i for i, callback in enumerate(callbacks) if isinstance(callback, Checkpoint)), len(callbacks))
    callbacks.insert(first, recorder)  # what it has recorded is then in the checkpoints of the others
    return recorder


def duration(seconds: float) -> str:
    """Seconds for people: 90 s, 12 min, 3 h 5 min."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _check_monitors(trainer: Any, model: Any) -> None:
    """Refuse to monitor a metric that is never logged, which Lightning would notice after the first epoch."""
    if any(not type(part).__module__.startswith(OURS) for part in (model, *trainer.callbacks)):
        return  # other classes may log metrics of their own
    logged = [*model.training_metrics, "gradient_norm", "learning_rate", "words_per_s"]
    if trainer.limit_val_batches != 0:
        logged += model.validation_metrics()
    for callback in trainer.callbacks:
        is_strict = callback.strict if isinstance(callback, EarlyStopping) else type(callback) is ModelCheckpoint
        name = getattr(callback, "monitor", None)
        if is_strict and name is not None and name not in (*logged, "epoch", "step") and name[:3] != "lr-":
            raise ValueError(
                f"{type(callback).__name__} monitors {name!r}, which is not measured; there are: "
                f"{', '.join(sorted(logged))}"
            )


def _check_options(trainer: Any, model: Any, options: dict[str, Any], checkpoint: dict[str, Any]) -> None:
    # An option that is newer than the checkpoint had its default then.
    parts = [type(model)]
    if checkpoint.get("options"):
        parts += [L.Trainer, type(trainer), type(trainer.datamodule)]
    defaults = {name: p.default for part in parts for name, p in inspect.signature(part).parameters.items()}
    before = defaults | checkpoint["hyper_parameters"] | checkpoint.get("options", {})
    changed = [
        f"{name}: {_given(before[name])} in the checkpoint, {_given(value)} here"
        for name, value in (dict(model.hparams) | options).items()
        if not name.startswith("_") and name in before and before[name] != value
    ]
    if changed:
        raise ValueError(
            f"the checkpoint is of a run with other options ({'; '.join(changed)}): training cannot "
            "go on from it. Use the configuration it was trained with, or another folder for checkpoints "
            "(trainer.default_root_dir; RUNS=... for make)."
        )


def _check_corpus(texts: dict[str, str], checkpoint: dict[str, Any]) -> None:
    others = checkpoint.get("corpus") or texts
    if changed := sorted(name for name in texts | others if texts.get(name) != others.get(name)):
        raise ValueError(
            f"the checkpoint is of a run on other texts ({', '.join(changed)} had another SHA-256, or was not "
            "there): training cannot go on from it. Bring back what it was trained on, or use another folder "
            "for checkpoints (trainer.default_root_dir; RUNS=... for make)."
        )


def _check_point(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Refuse checkpoints at points from which Lightning would skip or repeat a part of the run."""
    # Lightning's finders restore a checkpoint of their own after some steps, which is not a resumption.
    if trainer.max_steps != -1 and trainer.global_step == 0:
        raise ValueError(
            f"trainer.max_steps={trainer.max_steps}: a run that is limited by steps cannot be resumed, "
            "since Lightning would end an epoch twice. Use trainer.max_epochs."
        )
    epochs = len(checkpoint["curve"])
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    begun = loop.get("epoch_progress", {}).get("current", {})
    is_at_last_batch = loop.get("epoch_loop.batch_progress", {}).get("is_last_batch", False)
    if is_at_last_batch and begun["processed"] < begun["ready"]:
        raise ValueError(
            f"the checkpoint was saved after the last batch of epoch {begun['ready']} and before its end, "
            "which Lightning would skip: resume from a checkpoint that was saved within an epoch or after its "
            "end, such as checkpoints/last.ckpt of main.py"
        )
    if begun.get("ready", epochs) > epochs == trainer.max_epochs:
        raise ValueError(
            f"the run is in the middle of epoch {epochs + 1}, past the end of epoch {epochs}: "
            f"let it end that epoch, epochs={epochs + 1} (EPOCHS={epochs + 1} for make)"
        )


def _corpus(trainer: Any) -> dict[str, str]:
    """SHA-256 of the data's files by name; empty for data that do not provide them."""
    _, hashes = getattr(getattr(trainer, "datamodule", None), "corpus", ("", {}))
    return dict(hashes)


def _reduced(metric: Metric) -> dict[str, Any]:
    """The states of a metric, over all processes."""
    with metric.sync_context():
        return copy.deepcopy(metric.metric_state)


def _given(value: Any) -> Any:
    return "not given" if value is None else value


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class Progress(RichProgressBar):
    """Lightning's rich progress bar with the training speed in words/s."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Add words/s to the metrics beside the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics | {"words/s": f"{recorder_of(trainer).words_per_second:,.0f}"}
