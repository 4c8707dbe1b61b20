"""Files that are there as a whole or not at all, and the lock of a run's folder."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from pathlib import Path
from typing import IO

LOCK_FILE = "lock"  # in the run's folder


def check_writable(path: Path, option: str) -> None:
    """Find out before hours of work whether a file can be written.

    Args:
        path: of the file.
        option: by which its folder is chosen, for the message.

    Raises:
        OSError: it cannot.
    """
    there = next(folder for folder in path.absolute().parents if os.path.exists(folder))  # Path.exists may raise
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise OSError(
            f"{path} cannot be written, since no file can be made in {there} ({error.strerror}): "
            f"choose another folder ({option})"
        ) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either there as a whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".part{os.getpid()}")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error}): make room there, then start the same again") from error
    finally:
        part.unlink(missing_ok=True)


def replace_between(path: Path, begin: str, end: str, text: str, check: bool = False) -> None:
    """Replace what stands between two marker lines of a text file.

    Args:
        path: of the file.
        begin: the first marker.
        end: the second one.
        text: to stand between them.
        check: whether to compare only, and write nothing.

    Raises:
        ValueError: the file has not each of the two markers once, in this order; or with check, another text.
    """
    old = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    if old.count(begin) != 1 or old.count(end) != 1 or not pattern.search(old):
        raise ValueError(f"{path} must contain the line {begin} and, after it, the line {end}, once each")
    new = pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", old)
    if check and new != old:
        raise ValueError(f"{path}: the results are stale; run `make table`")
    if not check:
        write_atomically(path, new)


LOCKS: dict[Path, IO[str]] = {}
"""Files of the runs of this process, by folder: what others see by its end, however it ends."""


def lock_run_folder(root: Path) -> None:
    """Mark the run in a folder as one of this process, for as long as it lives.

    Raises:
        ValueError: it is one of another process.
        OSError: the folder cannot be written to.
    """
    if root in LOCKS:
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / LOCK_FILE).open("a", encoding="utf-8")
    except OSError as error:
        raise OSError(
            f"{root} cannot be written to ({error.strerror}): choose another folder for checkpoints and logs "
            "(--trainer.default_root_dir; RUNS=... for make)"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"{root} is the folder of a run that another process has not ended: "
            f"wait for it, or choose another folder (--trainer.default_root_dir; RUNS=... for make)"
        ) from error
    except OSError as error:
        print(f"{root / LOCK_FILE} cannot be locked ({error.strerror}): start no second run there", flush=True)
    LOCKS[root] = file


def is_running(root: Path) -> bool:
    """Whether a process still records a run in this folder."""
    if not (root / LOCK_FILE).is_file():
        return False
    with (root / LOCK_FILE).open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
    return False
