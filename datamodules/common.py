"""What every data module needs: quiet loading, a check of the files' content, and this process's share of the work."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
from lightning import LightningDataModule


def check_sha256(file: Path, expected: str, where_to_get_it: str) -> None:
    """Check that `file` exists and is byte for byte the published one.

    Args:
        file: The file to check.
        expected: SHA-256 of the published file, in hexadecimal.
        where_to_get_it: Advice that ends the error message.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has another content.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist. {where_to_get_it}")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(f"{file} has SHA-256 {found}, but {expected} is expected. {where_to_get_it}")


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep the progress bars of `datasets` out of the training output."""
    was_enabled = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            enable_progress_bar()


def rank_and_world_size(datamodule: LightningDataModule) -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) for a data module without a trainer."""
    trainer = datamodule.trainer
    return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)


def batch_share(batch_size: int, world_size: int) -> int:
    """Part of a batch that one process takes, so that the number of processes does not change the optimisation.

    Raises:
        ValueError: The batch cannot be shared out evenly.
    """
    if batch_size % world_size:
        raise ValueError(
            f"batch_size={batch_size} cannot be shared evenly by {world_size} processes: "
            f"choose a batch_size divisible by {world_size}, or a number of processes that divides {batch_size}."
        )
    return batch_size // world_size
