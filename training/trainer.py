"""Lightning's trainer with the entry points `reproduce` and `ablate`."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint

from datamodules.checks import check_count, check_number
from datamodules.rated_sequences import RatedSequences
from experiments.files import check_writable, write_atomically
from lightning_modules.experiment import Experiment
from lightning_modules.loading import read_checkpoint, weights_sha256
from training.ablation import ablate
from training.checkpoints import AtomicCheckpointIO
from training.provenance import corpus_of, provenance
from training.recorder import Recorder, recorder_of, without_paths
from training.reproduce import reproduce
from training.tracking import FOLDER


class Trainer(L.Trainer):
    """Lightning's trainer with two more entry points, `reproduce` and `ablate`.

    Args:
        args: those of Lightning's Trainer.
        tested_weights: which weights `reproduce` tests: those of the "last" epoch, or of the epoch with the "best"
            validation.
        checkpoint_minutes: after which a run is saved within an epoch, too.
        kwargs: those of Lightning's Trainer.

    Raises:
        ValueError: a number is out of range, devices is malformed, or a plugin would write the checkpoints.
    """

    run_config: dict[str, Any] = {}  # noqa: RUF012 -- set for each run by main.py
    """The resolved configuration, for the result file."""

    goes_on = False
    """Whether the same command, started again, goes on from the last checkpoint."""

    def __init__(
        self,
        *args: Any,
        tested_weights: Literal["last", "best"] = "last",
        checkpoint_minutes: float = 10.0,
        **kwargs: Any,
    ) -> None:
        check_number(0, checkpoint_minutes=checkpoint_minutes, gradient_clip_val=kwargs.get("gradient_clip_val") or 0)
        check_count(1, accumulate_grad_batches=kwargs.get("accumulate_grad_batches", 1))
        callbacks = _listed(kwargs.get("callbacks") or [])
        if not any(isinstance(callback, Recorder) for callback in callbacks):
            callbacks = [Recorder(), *callbacks]  # its records are then in the checkpoints of those after it
        kwargs["callbacks"] = callbacks
        try:
            super().__init__(*args, **kwargs)
        except (TypeError, ValueError) as error:
            devices = kwargs.get("devices", "auto")
            if devices == "auto" or not re.search("`devices`|invalid literal for int", str(error)):
                raise
            raise ValueError(
                "trainer.devices must be auto, a number of processes, or on GPUs their numbers, such as 0,2; "
                f"got {devices}"
            ) from error
        if any(isinstance(plugin, CheckpointIO) for plugin in _listed(kwargs.get("plugins"))):
            raise ValueError("trainer.plugins must not have a CheckpointIO: the trainer has a crash-safe one")
        self.tested_weights = tested_weights
        self.checkpoint_minutes = checkpoint_minutes
        self.strategy.checkpoint_io = AtomicCheckpointIO()
        environment = self._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment):
            environment.auto_requeue = False  # it would save in the middle of a step; LastCheckpoint does at its end

    @property
    def recorder(self) -> Recorder:
        """What the run records about itself."""
        return recorder_of(self)

    @property
    def checkpoint_callbacks(self) -> list[Checkpoint]:
        """Those that save checkpoints, which the recorder does not."""
        return [callback for callback in super().checkpoint_callbacks if not isinstance(callback, Recorder)]

    def reproduce(
        self, model: Experiment, datamodule: L.LightningDataModule, result: Path, epochs: int | None = None
    ) -> None:
        """Train, test, and write the result file, as `training.reproduce.reproduce` does."""
        reproduce(self, model, datamodule, result, epochs)

    def ablate(self, model: Experiment, datamodule: L.LightningDataModule, ckpt_path: str, result: Path) -> None:
        """Evaluate a finished language model by every choice at test time, as `training.ablation.ablate` does."""
        ablate(self, model, datamodule, ckpt_path, result)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Lightning's predict, which also writes predictions.pt below default_root_dir.

        The file holds a dictionary: `predictions` of each batch of the test data, those of the `validation` data if
        they are predicted too, `seed`, `mc_samples`, the `epoch` after which the weights were saved, `config`, and
        `provenance`: where the predictions were made, where the run was trained, and SHA-256 of weights and corpus.

        Raises:
            OSError: that file cannot be written.
            ValueError: ratings would be predicted by several processes, each of which has a part of them.
        """
        file = Path(self.default_root_dir) / "predictions.pt"
        check_writable(file, FOLDER)
        datamodule = kwargs.get("datamodule")
        if isinstance(datamodule, RatedSequences) and self.world_size > 1:
            raise ValueError(f"predict runs on one device, got {self.world_size} processes: use --trainer.devices 1")
        predictions = super().predict(*args, **kwargs)
        if predictions is not None and self.is_global_zero:
            model: Any = self.lightning_module
            checkpoint = read_checkpoint(Path(kwargs["ckpt_path"]), mmap=True) if kwargs.get("ckpt_path") else {}
            test, *validation = predictions if predictions and isinstance(predictions[0], list) else [predictions]
            content = {
                "predictions": test,
                **({"validation": validation[0]} if validation else {}),
                "seed": self.run_config.get("seed_everything"),
                "mc_samples": model.mc_samples,
                "epoch": len(checkpoint.get("curve", ())),
                "config": without_paths(self.run_config),
                "provenance": provenance(self.strategy.root_device, self.world_size)
                | corpus_of(datamodule)
                | {"run": checkpoint.get("provenance", []), "weights_sha256": weights_sha256(model)},
            }
            buffer = io.BytesIO()
            torch.save(content, buffer)
            write_atomically(file, buffer.getvalue())
            self.print(f"wrote {file}, a dictionary whose 'predictions' are those of each batch")
        return predictions

    def print(self, *values: object) -> None:
        """Print on the first process only."""
        if self.is_global_zero:
            print(*values, flush=True)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
