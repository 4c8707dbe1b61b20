"""What every data module needs: quiet loading, a check of the files' content, and this process's share of the work."""

import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
from lightning import LightningDataModule
from torch.utils.data import DataLoader

LARGEST_MEMBER = 100_000_000  # bytes


def read_published(file: Path, expected: str, where_to_get_it: str) -> bytes:
    """Read a file, and check that its content is the published one, byte for byte.

    Args:
        file: The file to read.
        expected: SHA-256 of the published file, in hexadecimal.
        where_to_get_it: Advice that ends the error message.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has another content.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist. {where_to_get_it}")
    content = file.read_bytes()
    check_content(content, str(file), expected, where_to_get_it)
    return content


def check_content(content: bytes, source: str, expected: str, where_to_get_it: str) -> None:
    """Check that the content of a file is byte for byte the published one.

    Args:
        content: What is to be checked.
        source: Where it comes from, for the error message.
        expected: SHA-256 of the published file, in hexadecimal.
        where_to_get_it: Advice that ends the error message.

    Raises:
        ValueError: It is another one.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(f"{source} has SHA-256 {found}, but {expected} is expected. {where_to_get_it}")


class ArchiveMember(tarfile.TarInfo):
    """A part of an archive; `tarfile` reads all of a long name or of a list of attributes when it comes to one."""

    @classmethod
    def frombuf(cls, *args: Any) -> "ArchiveMember":
        """Decode a header.

        Raises:
            ReadError: It is of a name, or of attributes, that would fill the memory.
        """
        member = super().frombuf(*args)
        if not member.isreg() and member.size > LARGEST_MEMBER:
            raise tarfile.ReadError(f"a name or attributes of {member.size / 1e6:,.0f} MB")
        return member


def read_archive(archive: Path, names: Iterable[str], where_to_get_it: str) -> dict[str, bytes]:
    """Read some files of a tar archive; what else there is in it is not unpacked.

    Args:
        archive: A tar file, compressed or not.
        names: Paths of the files in it.
        where_to_get_it: Advice that ends the error message.

    Raises:
        ValueError: The archive is damaged or none, has not all of these files, or any file that is far too large.
    """
    missing, found = set(names), {}
    try:
        with tarfile.open(archive, tarinfo=ArchiveMember) as tar:
            while missing and (member := tar.next()):
                if member.size > LARGEST_MEMBER:
                    raise ValueError(
                        f"{archive} has a file {member.name!r} of {member.size / 1e6:,.0f} MB, more than any of the "
                        f"published ones: it is another archive. {where_to_get_it}"
                    )
                if member.name in missing and member.isfile():
                    found[member.name] = tar.extractfile(member).read()  # type: ignore[union-attr]
                    missing.remove(member.name)
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        raise ValueError(f"{archive} is damaged, or no archive ({error}). {where_to_get_it}") from error
    if missing:
        raise ValueError(f"{archive} has no file {min(missing)!r}: it is another archive. {where_to_get_it}")
    return found


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


def accumulated(datamodule: LightningDataModule) -> int:
    """Number of parts of each batch whose gradients are added up before a step: trainer.accumulate_grad_batches."""
    return datamodule.trainer.accumulate_grad_batches if datamodule.trainer else 1


def batch_share(batch_size: int, world_size: int) -> int:
    """Number of sequences of a batch that one process takes.

    Raises:
        ValueError: The batch cannot be shared out evenly.
    """
    if batch_size % world_size:
        raise ValueError(
            f"batch_size={batch_size} cannot be shared evenly by {world_size} processes: "
            f"choose a batch_size divisible by {world_size}, or a number of processes that divides {batch_size}."
        )
    return batch_size // world_size


class TrainingLoader(DataLoader[Any]):
    """A loader that begins an epoch, resumed from a checkpoint, with the first batch that was not trained on.

    Attributes:
        trainer: set by the data module.
    """

    trainer: Any = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches of an epoch that are left."""
        is_training = self.trainer is not None and self.trainer.training
        # Lightning's count is that of the checkpoint in a resumed epoch and 0 in any other.
        seen = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready if is_training else 0
        yield from islice(super().__iter__(), seen, None)
