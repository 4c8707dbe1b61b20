import hashlib
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels run on the CPU

settings.register_profile("deterministic", deadline=None, derandomize=True)
settings.load_profile("deterministic")
torch.set_num_threads(1)  # the tensors are tiny


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Outcome]:
    """Run main.py in this process, from an empty folder."""
    import datasets  # here, since few tests need them and they take seconds to load

    import main

    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # main sets it: this takes it back at the end
    monkeypatch.delenv("TRACEBACK", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        status = 0
        try:
            main.main(list(arguments))
        except SystemExit as end:
            status = int(end.code or 0)
        return Outcome(status, *capsys.readouterr())

    return run


@pytest.fixture
def tiny_treebank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a treebank of 12 word types, which passes for the real one."""
    from datamodules import penn_treebank

    words, source = [f"w{i}" for i in range(11)], random.Random(0)
    folder = tmp_path / "data" / "ptb"
    folder.mkdir(parents=True)
    hashes = {}
    for split, lines in (("train", 20), ("validation", 12), ("test", 8)):
        sentences = [words if i == 0 else source.choices(words, k=5) for i in range(lines)]
        text = "".join(f" {' '.join(sentence)} \n" for sentence in sentences)
        (folder / penn_treebank.FILES[split]).write_text(text)
        hashes[split] = hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setattr(penn_treebank, "SHA256", hashes)
    return folder
