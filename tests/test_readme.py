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
README, RESULTS, GUIDE = ((ROOT / name).read_text() for name in ("README.md", "RESULTS.md", "docs/guide.md"))


@pytest.mark.parametrize(
    ("file", "tables"),
    [
        ("README.md", ["--experiment", "ptb", "--size", "medium"]),
        ("RESULTS.md", ["--experiment", "ptb", "sentiment"]),
    ],
)
def test_tables_in_the_texts_are_those_of_the_result_files(file, tables):
    table(["--results", str(ROOT / "results"), *tables, "--readme", str(ROOT / file), "--check"])


def test_every_make_target_in_the_texts_exists():
    named = set(re.findall(r"`?make ([a-z][a-z-]+)", README + RESULTS + GUIDE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "test", "reproduce-ptb"} <= named
    assert named <= targets


@pytest.mark.parametrize(("text", "folder"), [(README, ROOT), (RESULTS, ROOT), (GUIDE, ROOT / "docs")])
def test_every_file_named_in_the_texts_exists(text, folder):
    links = re.findall(r"\]\((?!http)([^)]+)\)", text)
    names = re.findall(r"`((?:docs|configs|tests|examples)/[\w/.]+\.\w+|[A-Z]+\.md)`", text)
    assert links
    assert [link for link in links if not (folder / link).exists()] == []
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_readme_is_read_in_five_minutes():
    prose = re.sub(r"```.*?```|^\|.*?$|<details>.*?</details>", "", README, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) < 5 * 240  # words a minute


def test_the_example_in_the_readme_runs():
    [example] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names["samples"].shape == (10, 7, 3, 20)
    assert names["samples"].std(dim=0).max() > 0


def test_the_example_of_prediction_runs(tmp_path, monkeypatch):
    [example] = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
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
    [example] = [block for block in re.findall(r"```sh\n(.*?)```", GUIDE, flags=re.DOTALL) if "PlainText" in block]
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
