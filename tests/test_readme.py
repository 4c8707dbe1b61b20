"""The README says what is true."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datamodules import snippets
from datamodules.reader import Reader
from lightning_modules import SentimentRegressor
from reproduction.table import main as table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_tables_in_the_readme_are_those_of_the_result_files():
    table(
        [
            "--results",
            str(ROOT / "results"),
            "--experiment",
            "ptb",
            "sentiment",
            "--readme",
            str(ROOT / "README.md"),
            "--check",
        ]
    )


def test_every_make_target_in_the_readme_exists():
    named = set(re.findall(r"`?make ([a-z][a-z-]+)", README))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "test", "reproduce-ptb"} <= named
    assert named <= targets


def test_every_file_named_in_the_readme_exists():
    named = re.findall(r"\]\((?!http)([^)]+)\)|`((?:docs|configs|tests)/[\w/.]+|[A-Z]+\.md)`", README)
    files = [one or other for one, other in named]
    assert "docs/protocol.md" in files
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_example_in_the_readme_runs():
    example, _ = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names["samples"].shape == (10, 7, 3, 20)
    assert names["samples"].std(dim=0).max() > 0


def test_the_example_of_prediction_runs(tmp_path, monkeypatch):
    _, example = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    words = ["<pad>", "<start>", "<unk>", "<unused>", "a", "warm", ",", "funny", "film", "dull"]
    model = SentimentRegressor(10, embedding_size=5, hidden_size=4, output_dropout=0.5)
    [path] = re.findall(r'load\("(.*?)"\)', example)
    (tmp_path / path).parent.mkdir(parents=True)
    checkpoint = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "model": "SentimentRegressor",
        "reader": Reader(tuple(words), "words", chunk_length=4).state(),
        "curve": [],
        "provenance": [],
    }
    torch.save(checkpoint, tmp_path / path)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(example, names)
    assert names["ratings"].samples.shape == (50, 2)
    assert names["ratings"].std.min() > 0


@pytest.mark.slow
def test_the_example_on_texts_of_ones_own_runs(tmp_path):
    [example] = [block for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL) if "PlainText" in block]
    for here, there in (
        (".venv/bin/python", sys.executable),
        (" main.py", f" {ROOT}/main.py"),
        (" configs/", f" {ROOT}/configs/"),
    ):
        example = example.replace(here, there)
    file = tmp_path / "data/snippets" / snippets.FILE
    file.parent.mkdir(parents=True)
    source, words = random.Random(0), [f"w{i}" for i in range(3000)]
    lines = [f"{i}\t{source.uniform(-4, 4)}\t{' '.join(source.choices(words, k=4))}" for i in range(10_605)]
    file.write_text("\r\n".join(lines))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(
        ["bash", "-e", "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "#### mine, text" in done.stdout
    assert "#### mine, reviews" in done.stdout
    assert "| Constant predictor " in done.stdout
