"""Where a result comes from: commit, time, hardware, versions."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

CODE = (
    "main.py",
    "pyproject.toml",
    "configs",
    "datamodules",
    "experiments",
    "lightning_modules",
    "training",
    "variational_rnn",
)
"""What a run depends on: uncommitted changes there make its provenance "dirty"."""

PACKAGES = ("torch", "lightning", "torchmetrics", "datasets", "numpy")


def provenance(device: torch.device, devices: int) -> dict[str, Any]:
    """What a result must say about where it came from: commit, time, hardware, versions.

    Args:
        device: what the run computes on.
        devices: how many of them.
    """
    status = _git("status", "--porcelain", "--", *CODE)
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": {"cuda": torch.cuda.get_device_name, "mps": lambda: "Apple GPU"}.get(device.type, lambda: None)(),
            "devices": devices,
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def corpus_of(datamodule: Any) -> dict[str, Any]:
    """Name of the corpus and SHA-256 of its files, where the data module knows them."""
    corpus = getattr(datamodule, "corpus", None)
    return {"corpus": {"name": corpus[0], "sha256": corpus[1]}} if corpus else {}
