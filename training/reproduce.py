"""A run from its first step to its result file."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, StochasticWeightAveraging, Timer

from datamodules.checks import check_count
from experiments.files import check_writable, lock_run_folder, write_atomically
from experiments.runs import Run
from lightning_modules.experiment import Experiment
from lightning_modules.loading import read_checkpoint, weights_sha256
from lightning_modules.sentiment_regressor import SentimentRegressor
from training.checkpoints import LAST, BestCheckpoint, add_to_checkpoint, find_checkpoint
from training.provenance import corpus_of, provenance
from training.recorder import options_that_count, without_paths
from training.tracking import RunWandbLogger

if TYPE_CHECKING:
    from training.trainer import Trainer

NOT_IN_A_RESULT = (BatchSizeFinder, LearningRateFinder, StochasticWeightAveraging)
"""Callbacks that do not train as the configuration says."""

RESULT = "--result; RESULTS=... for make"
"""How the folder of a result is chosen."""


def reproduce(
    trainer: Trainer,
    model: Experiment,
    datamodule: L.LightningDataModule,
    result: Path,
    epochs: int | None = None,
) -> None:
    """Train, test, and write the result file. An interrupted run goes on from its last checkpoint that is whole.

    Args:
        trainer: with the options of the run.
        model: to be trained.
        datamodule: the data.
        result: the file to write, RESULTS/EXPERIMENT/GROUP/ROW/seedK.json.
        epochs: stop after this many epochs of the schedule that trainer.max_epochs defines.

    Raises:
        ValueError: epochs is less than 1, an option of the trainer leaves out a part of the run, result has another
            form, another process is at this run, or all its checkpoints are damaged.
        OSError: result cannot be written.
    """
    if epochs is not None:
        check_count(1, epochs=epochs)
    _check_is_whole(trainer)
    result = Path(os.path.expanduser(result))
    run = Run.parse(result)
    check_seed(trainer, result, run.seed)
    if trainer.is_global_zero:
        check_writable(result, RESULT)
        lock_run_folder(Path(trainer.default_root_dir))
    recorder = trainer.recorder
    recorder.provenance = [provenance(trainer.strategy.root_device, trainer.world_size)]
    recorder.options = options_that_count(trainer.run_config) | {"seed": run.seed}
    trainer.goes_on = True
    planned_epochs = trainer.max_epochs or 0
    trainer.fit_loop.max_epochs = min(epochs or planned_epochs, planned_epochs)
    [checkpoints] = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestCheckpoint)]
    folder = Path(checkpoints.dirpath or "")
    last = find_checkpoint(folder)
    recorder.name = f"{run.row_name} seed {run.seed}"
    hardware = recorder.provenance[0]["hardware"]
    parameters = sum(p.numel() for p in model.parameters())
    if result.exists() and not last:
        trainer.print(f"{result} will be replaced: there is no checkpoint {folder / LAST} to go on from")
    trainer.print(
        f"{recorder.name}: {trainer.max_epochs} of {planned_epochs} epochs, {parameters / 1e6:.2f}M parameters, "
        f"on {hardware['gpu'] or hardware['cpu']}, "
        + (f"resumed from {last}" if last else f"checkpoints and logs in {trainer.default_root_dir}")
    )
    trainer.fit(model, datamodule=datamodule, ckpt_path=last)

    curve, attempts = recorder.curve, recorder.provenance
    best = None
    if trainer.tested_weights == "best":
        best = checkpoints.best_model_path
        if not Path(best).is_file():
            raise FileNotFoundError(f"the checkpoint of the best epoch, {best!r}, is not there: it cannot be tested")
    test_start = time.perf_counter()
    parts = trainer.test(model, datamodule=datamodule, ckpt_path=best, verbose=False)  # one for each loader
    test_metrics = {name: value for part in parts for name, value in part.items()}
    test_seconds = time.perf_counter() - test_start
    tested_epoch = (read_checkpoint(Path(best))["curve"] if best else curve)[-1]

    values = "  ".join(f"{metric} {value:.5g}" for metric, value in test_metrics.items())
    trainer.print(f"{recorder.name}  tested after epoch {tested_epoch['epoch']:.0f}  {values}")
    if not trainer.is_global_zero:
        return
    if isinstance(model, SentimentRegressor) and model.noise:
        add_to_checkpoint(Path(best or folder / LAST), {"noise": model.noise})
    report = {
        **asdict(run),
        "epochs": len(curve),
        "planned_epochs": planned_epochs,
        "tested_epoch": tested_epoch["epoch"],
        "parameters": parameters,
        "metrics": _finite({k: v for k, v in tested_epoch.items() if k != "epoch"} | test_metrics),
        "curve": [_finite(entry) for entry in curve],
        "config": without_paths(trainer.run_config),
        "provenance": attempts[0]
        | corpus_of(datamodule)
        | {
            "weights_sha256": weights_sha256(model),
            "wall_time_s": sum(entry["seconds"] for entry in curve) + test_seconds,
            "resumed": attempts[1:],
        },
    }
    write_atomically(result, json.dumps(report, indent=2) + "\n")
    trainer.print(f"wrote {result}")
    for logger in trainer.loggers:
        if isinstance(logger, RunWandbLogger):
            saved = {"best": Path(checkpoints.best_model_path), "last": folder / LAST}
            logger.log_result(result, {name: file for name, file in saved.items() if file.is_file()})


def _check_is_whole(trainer: Any) -> None:
    """Refuse options that leave out epochs or data, or that train differently from what a result would say."""
    if trainer.max_epochs is None or trainer.max_epochs < 1:
        raise ValueError(f"reproduce needs a number of epochs: trainer.max_epochs is {trainer.max_epochs}")
    needed = {
        "fast_dev_run": (trainer.fast_dev_run, False),
        "max_steps": (trainer.max_steps, -1),
        "overfit_batches": (trainer.overfit_batches or 0.0, 0.0),
        "val_check_interval": (trainer.val_check_interval, 1.0),
        "check_val_every_n_epoch": (trainer.check_val_every_n_epoch, 1),
        "limit_val_batches": (trainer.limit_val_batches, 1.0),
        "limit_test_batches": (trainer.limit_test_batches, 1.0),
    }
    for name, (value, whole) in needed.items():
        if str(value) != str(whole):  # 1 is one batch, 1.0 are all
            raise ValueError(
                f"trainer.{name} must be {whole} for reproduce, got {value}: a result is of whole epochs, each "
                "with its validation, and of the whole test. Use fit for a trial, and epochs for a shorter run."
            )
    if not any(isinstance(callback, BestCheckpoint) for callback in trainer.checkpoint_callbacks):
        raise ValueError("reproduce writes checkpoints: leave out trainer.enable_checkpointing and barebones")
    if any(isinstance(callback, Timer) for callback in trainer.callbacks):
        raise ValueError("reproduce cannot stop in mid-epoch: leave out trainer.max_time and the callback Timer")
    if changed := [name for name in ("optimizer", "lr_scheduler") if trainer.run_config.get(name)]:
        raise ValueError(f"--{changed[0]} is not for reproduce, whose models have their own: use fit")
    if others := [type(c).__name__ for c in trainer.callbacks if isinstance(c, NOT_IN_A_RESULT)]:
        raise ValueError(
            f"the callback {others[0]} is not for reproduce: the configuration in a result would not say how it "
            "was trained, and the run could not be resumed. Use fit."
        )


def check_seed(trainer: Trainer, result: Path, seed: int) -> None:
    """Check that the run was started with the seed of its result file.

    Raises:
        ValueError: it was started with another one.
    """
    if trainer.run_config.get("seed_everything", seed) != seed:
        raise ValueError(f"{result} is for seed {seed}, but seed_everything is {trainer.run_config['seed_everything']}")


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """JSON has no nan and no infinity: a diverged value is null."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
