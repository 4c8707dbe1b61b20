"""Weights & Biases: a run online, offline where nobody is logged in, or none where no disk is."""

from __future__ import annotations

import logging
import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import wandb

PROJECT = "variational-rnn"
FAILURES = (wandb.errors.Error, OSError)  # of W&B, its process, its server, the disk

SETTINGS: dict[str, Any] = {
    "init_timeout": 30.0,  # seconds; a server that does not answer must not hold up a run
    "finish_timeout": 300.0,  # what is not uploaded by then stays on disk
    "x_transaction_log_flush_interval": 1.0,  # what a run that is killed can lose
}
TEARDOWN_TIMEOUT = 10.0  # seconds


def start(**init: Any) -> Any:
    """`wandb.init`, offline where nobody is logged in or no server answers, and without records where no disk is.

    Args:
        init: of `wandb.init`; `dir` is required. WANDB_MODE is respected, but for a server that cannot be reached.

    Returns:
        The W&B run.
    """
    where = Path(init["dir"]).absolute() / "wandb"
    os.environ.setdefault("WANDB_DATA_DIR", str(where))  # of artifacts until they are uploaded; else in the home folder
    # W&B's own messages go to its log. Where the log or its process is gone, Python would print tracebacks instead.
    logging.raiseExceptions = False
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    home = os.path.expanduser("~")  # without one, W&B's process prints its log
    os.environ["HOME"] = home if os.path.isdir(home) else str(where)
    reason = "no account is logged in."
    try:
        where.mkdir(parents=True, exist_ok=True)
        if "WANDB_MODE" in os.environ or wandb.login(prompt=False):
            return wandb.init(**init, settings=wandb.Settings(**SETTINGS))
    except wandb.errors.Error as error:
        teardown()  # or what failed would be asked again
        reason = first_line(error)
    except OSError as error:
        return without_records(error)
    try:
        run = wandb.init(**init, mode="offline", settings=wandb.Settings(**SETTINGS, silent=True))
    except FAILURES as error:
        return without_records(error)
    runs = Path(__file__).resolve().parents[1] / "runs"  # where `make sync` looks unless told otherwise
    elsewhere = "" if where.resolve().is_relative_to(runs) else f" RUNS={where.parent}"
    print(f"W&B: {reason} The run is recorded offline in {where}; `make sync{elsewhere}` uploads it later.", flush=True)
    return run


def teardown() -> None:
    """`wandb.teardown`, which waits for all that W&B's process has still to ask of a server, but not for ever."""

    def end() -> None:
        with suppress(*FAILURES):  # W&B's process may have ended already
            wandb.teardown()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(TEARDOWN_TIMEOUT)


def without_records(error: Exception) -> Any:
    """Say why, and return a run that records nothing."""
    print(
        f"W&B: {first_line(error)} Nothing more is recorded there; result file and CSV are not concerned.", flush=True
    )
    teardown()  # otherwise this process ends with a traceback where that of W&B has died
    return wandb.init(mode="disabled")


def first_line(error: Exception) -> str:
    """The first line of an error's message, as a sentence."""
    return f"{(str(error).strip() or type(error).__name__).splitlines()[0].rstrip('.')}."


def artifact_name(name: str) -> str:
    """A name that W&B accepts for an artifact: other characters become hyphens, and the end of a long name is kept."""
    return re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)[-128:]
