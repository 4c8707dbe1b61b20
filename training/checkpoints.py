"""Checkpoints that survive whatever ends a run: in time, whole or not there at all, the one before kept."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from lightning_modules.loading import read_checkpoint
from training.recorder import recorder_of

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What ends a run that may go on later: Ctrl-C; whoever shuts down; and Slurm, asked for it, before the time limit."""

CHECK_EVERY = 10
"""Batches after which several processes agree on whether to save; a single one asks itself after each."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place before it takes it, and reads by `read_checkpoint`.

    The checkpoint before `last.ckpt` is kept as `previous.ckpt`.
    """

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
            if path.name == LAST and path.exists():
                path.replace(path.with_name(PREVIOUS))
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OSError(
                f"the checkpoint {path} of {content.tell() / 1e6:,.0f} MB cannot be written ({error.strerror}). Make "
                "room, or give the right to write there, and go on from the checkpoint before, which is whole."
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint onto the CPU, as `read_checkpoint` does.

        Raises:
            ValueError: what is in it is to be executed (weights_only=False).
        """
        if weights_only is False:
            raise ValueError(f"weights_only=False would execute what is in the checkpoint {path}: leave it out")
        return read_checkpoint(Path(path))


def add_to_checkpoint(path: Path, entries: dict[str, Any]) -> None:
    """Write a checkpoint anew, with further entries.

    Raises:
        OSError: it cannot be written; the file that was there still is.
        ValueError: it is damaged.
    """
    AtomicCheckpointIO().save_checkpoint(read_checkpoint(path) | entries, path)


def find_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a run goes on from: the last one, or the one before where the last one is damaged.

    Raises:
        ValueError: all that are there are damaged.
        UnpicklingError: one is refused, as by `read_checkpoint`.
    """
    damages = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            read_checkpoint(path, mmap=True)
        except ValueError as error:
            damages.append(str(error))
            continue
        if damages:
            put_aside(folder / LAST)  # or it would take the place of the whole one, as the previous
            rank_zero_only(print)(f"{damages[0]}: going on from the one before, {path}", flush=True)
        return path
    if damages:
        raise ValueError(f"{'; '.join(damages)}. Delete {folder} to begin anew.")
    return None


@rank_zero_only
def put_aside(path: Path) -> None:
    """Keep a damaged file under another name."""
    path.replace(path.with_name("damaged.ckpt"))


class BestCheckpoint(ModelCheckpoint):
    """Saves the best epoch that has a validation, and finds it again when the folder has been moved."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Save the epoch if it is the best; skip one without a validation."""
        if self.monitor in recorder_of(trainer).curve[-1]:
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state whose paths are those of the folder at that time."""

        def here(path: str) -> str:
            return str(Path(self.dirpath or "") / Path(path).name) if path else ""

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: here(state_dict[name]) for name in paths}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | moved | {"dirpath": self.dirpath, "best_k_models": best})


class LastCheckpoint(Checkpoint):
    """Saves the run at the end of each epoch, every so many minutes in between, and when it is asked to stop.

    A run is asked by SIGINT (Ctrl-C), SIGTERM or SIGUSR1 to any of its processes; each of them ends its batch, saves
    its part, and ends with 128 plus the number of the signal. A second SIGINT ends it at once.

    Args:
        folder: of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stop = 0  # number of the signal
        self._saved = 0.0
        self._has_trained = False
        self._is_global_zero = True
        self._is_finished = False  # early

    def state_dict(self) -> dict[str, bool]:
        """Whether the run was to stop early."""
        return {"is_finished": self._is_finished}

    def load_state_dict(self, state_dict: dict[str, bool]) -> None:
        """From a checkpoint."""
        self._is_finished = state_dict["is_finished"]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take over the signals: Lightning would act on them in the middle of a step."""
        trainer.should_stop = self._is_finished
        self._stop, self._saved, self._is_global_zero = 0, time.monotonic(), trainer.is_global_zero
        _handle(self._note)

    def _note(self, number: int, frame: Any) -> None:
        self._stop = number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            if self._is_global_zero:  # nothing that print() was doing is interrupted
                os.write(2, b"\nends after this batch or evaluation, and saves it; Ctrl-C again ends at once\n")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save if it is time or a process was asked to stop, unless a validation is due first."""
        self._has_trained = True
        loop = trainer.fit_loop
        if not loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            self._save_in_mid_epoch(trainer, batch_idx)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Save if it is time, or if a process was asked to stop."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save_in_mid_epoch(trainer, trainer.fit_loop.epoch_loop.batch_idx)

    def _save_in_mid_epoch(self, trainer: Any, batch_idx: int) -> None:
        steps, rest = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        if rest or trainer.is_last_batch:
            return  # gradients are not in a checkpoint; and the end of the epoch will save
        if trainer.world_size > 1 and steps % CHECK_EVERY:
            return
        is_due = time.monotonic() - self._saved >= 60 * trainer.checkpoint_minutes
        if trainer.strategy.reduce_boolean_decision(is_due or self._stop > 0, all=False):
            self._save(trainer)
            self._end_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Save, after the best epoch is chosen."""
        self._is_finished = trainer.should_stop
        self._save(trainer)
        self._end_if_asked(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Do not go on to the test if asked to stop."""
        self._end_if_asked(trainer)

    def _save(self, trainer: Any) -> None:
        if not trainer.fast_dev_run:
            trainer.save_checkpoint(self.folder / LAST, weights_only=False)
            self._saved = time.monotonic()

    def _end_if_asked(self, trainer: Any) -> None:
        """End all processes if one was asked to."""
        stop = self._stop
        if trainer.world_size > 1:
            stops = torch.tensor(stop, device=trainer.strategy.root_device)
            stop = int(trainer.strategy.reduce(stops, reduce_op="max"))
        if stop:
            last = self.folder / LAST
            how = "the same command" if trainer.goes_on else "the same command with --ckpt_path"
            trainer.print(f"stopped by {signal.Signals(stop).name}: {how} goes on from {last}")
            sys.exit(128 + stop)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Nothing is saved in a test: end at once."""
        _handle(self._end)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave Ctrl-C to who called the trainer, such as a notebook."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _end(self, number: int, frame: Any) -> None:
        if number == signal.SIGUSR1 and not self._has_trained:
            raise ValueError(
                "the time limit came before the end of a test, which begins anew each time: give the job more time"
            )
        sys.exit(128 + number)


def _handle(handler: Any) -> None:
    """Take over the signals; they are handled in the main thread, if anywhere."""
    if threading.current_thread() is threading.main_thread():
        for number in STOPS:
            signal.signal(number, handler)


def checkpoints(folder: Path, monitor: str) -> list[Callback]:
    """Callbacks that keep the best epoch and the last state of a run.

    Args:
        folder: to write to.
        monitor: metric, lower is better, of the best epoch.
    """
    best = BestCheckpoint(
        folder, filename="best", monitor=monitor, save_on_train_epoch_end=True, enable_version_counter=False
    )
    return [best, LastCheckpoint(folder)]  # in this order, so that the last one holds the state of the best
