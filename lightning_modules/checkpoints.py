"""Checkpoints that survive whatever ends a run: in time, whole or not there at all, the one before kept."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
STOPS = (signal.SIGTERM, signal.SIGUSR1)
"""What ends a run that may go on later; Slurm is asked for the second before its time limit."""

CHECK_EVERY = 10
"""Batches after which several processes agree on whether to save; a single one asks itself after each."""


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place before it takes it, and refuses to read a damaged one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file so that it is there as a whole or not at all, whenever process or power fail.

        Raises:
            OSError: it cannot be written; a file that was there still is.
        """
        path = Path(path)
        part = path.with_name(f"{path.name}.part")  # in the same folder: what is moved from another one may be copied
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OSError(
                f"the checkpoint {path} of {content.tell() / 1e6:,.0f} MB cannot be written ({error.strerror}). When "
                "there is room, or the right to write, start the same command again: it goes on from the checkpoint "
                "before."
            ) from error

    def load_checkpoint(self, path: Any, *options: Any, **more: Any) -> dict[str, Any]:
        """Read a file that is whole.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged.
        """
        check_whole(Path(path))
        return super().load_checkpoint(path, *options, **more)


def check_whole(path: Path) -> None:
    """Compare a checkpoint with the checksums in it, which torch.load does not do.

    Raises:
        ValueError: it is damaged, or no checkpoint at all.
    """
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError(f"the checkpoint {path} is damaged or none: {error}") from error
    if damaged:
        raise ValueError(f"the checkpoint {path} is damaged: its part {damaged} has another content than was written")


def find_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a run goes on from: the last one, or the one before where the last one is damaged.

    Raises:
        ValueError: all that are there are damaged.
    """
    damages = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            check_whole(path)
        except ValueError as error:
            damages.append(str(error))
            continue
        if damages:
            rank_zero_only(print)(f"{damages[0]}: going on from the one before, {path}", flush=True)
        return path
    if damages:
        raise ValueError(f"{'; '.join(damages)}. Delete {folder} to begin anew.")
    return None


class LastCheckpoint(Checkpoint):
    """Saves the run at the end of each epoch, every so many minutes in between, and when it is asked to stop.

    A run is asked by SIGTERM or SIGUSR1 to any of its processes; each of them ends its batch, saves its part, and ends
    with 128 plus the number of the signal. The checkpoint before the last one is kept.

    Args:
        folder: of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stop = 0
        self._saved = 0.0
        self._has_trained = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take over the signals: Lightning would act on them in the middle of a step."""
        self._saved = time.monotonic()
        for number in STOPS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self._stop = number

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save if it is time, or if a process was asked to stop."""
        self._has_trained = True
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.is_last_batch:
            return  # gradients are not in a checkpoint; and the end of the epoch will save
        if trainer.world_size > 1 and (batch_idx + 1) // trainer.accumulate_grad_batches % CHECK_EVERY:
            return
        is_due = time.monotonic() - self._saved >= 60 * trainer.checkpoint_minutes
        if asked := self._highest(trainer, self._stop or int(is_due)):
            self._save(trainer)
            self._end_if_asked(trainer, asked)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Save, after the best epoch is chosen."""
        self._save(trainer)
        self._end_if_asked(trainer, self._highest(trainer, self._stop))

    @staticmethod
    def _highest(trainer: Any, value: int) -> int:
        """Of all processes."""
        return int(trainer.strategy.reduce(torch.tensor(value, device=trainer.strategy.root_device), reduce_op="max"))

    def _save(self, trainer: Any) -> None:
        last = self.folder / LAST
        if trainer.is_global_zero and last.exists():
            last.replace(self.folder / PREVIOUS)
        trainer.save_checkpoint(last)
        self._saved = time.monotonic()

    def _end_if_asked(self, trainer: Any, asked: int) -> None:
        if asked in STOPS:
            name = signal.Signals(asked).name
            trainer.print(f"stopped by {name}: the same command goes on from {self.folder / LAST}")
            sys.exit(128 + asked)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Nothing is saved in a test: end at once."""
        for number in STOPS:
            signal.signal(number, self._end)

    def _end(self, number: int, frame: Any) -> None:
        if number == signal.SIGUSR1 and not self._has_trained:
            raise ValueError("the time limit came before the end of a test, which begins anew each time: give it more")
        sys.exit(128 + number)


def checkpoints(folder: Path, monitor: str) -> list[Callback]:
    """Callbacks that keep the best epoch and the last state of a run.

    Args:
        folder: to write to.
        monitor: metric, lower is better, of the best epoch.
    """
    best = ModelCheckpoint(
        folder, filename="best", monitor=monitor, save_on_train_epoch_end=True, enable_version_counter=False
    )
    return [best, LastCheckpoint(folder)]  # in this order, so that the last one holds the state of the best
