"""What is printed and written where standard output cannot encode every character."""

import ast
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments import print_any_text
from lightning_modules import SentimentRegressor
from reproduction import table

ROOT = Path(__file__).parents[1]
FOLDERS = (
    "variational_rnn",
    "datamodules",
    "lightning_modules",
    "experiments",
    "training",
    "inference",
    "reproduction",
    "benchmarks",
    "examples",
)
POSIX = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # ASCII, and no encoding that was chosen


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_shows_question_marks_for_what_it_lacks(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(Terminal(), encoding=encoding))
    print_any_text()
    print("café ± 電影 \udc80", flush=True)
    assert sys.stdout.buffer.getvalue() == "café ± 電影 ?\n".encode(encoding, "replace")  # type: ignore[attr-defined]


@pytest.mark.parametrize("chosen", [None, "ascii"])
def test_a_table_that_is_piped_is_utf_8_unless_another_encoding_was_chosen(
    chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    if chosen:
        monkeypatch.setenv("PYTHONIOENCODING", chosen)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    print_any_text()
    table.main(["--results", str(ROOT / "results"), "--experiment", "ptb", "--size", "small"])
    printed = sys.stdout.buffer.getvalue()  # type: ignore[attr-defined]
    assert (b" ? " if chosen else " ± ".encode()) in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"good caf? ? ??"),
        ({"PYTHONIOENCODING": "cp1252"}, "good café – ??".encode("cp1252")),
        (POSIX, "good café – 電影".encode()),
    ],
    ids=["ascii", "cp1252", "posix"],
)
def test_predictions_are_printed_whatever_standard_output_encodes(
    environment: dict[str, str], expected: bytes, tmp_path: Path
) -> None:
    words = ["<pad>", "<start>", "<unk>", "<unused>", "good", "café", "film"]
    reader = {"vocabulary": words, "tokens": "words", "chunk_length": 4, "window": None}
    model = SentimentRegressor(7, embedding_size=5, hidden_size=4)
    checkpoint = {"model": "SentimentRegressor", "reader": reader, "state_dict": model.state_dict()}
    checkpoint |= {"hyper_parameters": dict(model.hparams), "curve": [], "provenance": [], "noise": {}}
    torch.save(checkpoint, tmp_path / "sentiment.ckpt")
    (tmp_path / "text.txt").write_text("good café – 電影\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, ROOT / "main.py", "predict", "sentiment.ckpt", "text.txt", "--format", "csv"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"} | environment,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert expected in done.stdout


def test_every_command_prints_any_text() -> None:
    for file in [ROOT / "main.py", *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))]:
        _, is_command, end = file.read_text(encoding="utf-8").partition('if __name__ == "__main__":\n')
        assert not is_command or end.startswith("    print_any_text()\n"), file


def test_every_text_file_is_opened_with_an_encoding() -> None:
    for file in [ROOT / "main.py", *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            call = ast.unparse(node) if isinstance(node, ast.Call) else ""
            if call and re.search(r"(^|\.)(open|read_text|write_text)$", ast.unparse(node.func)):  # type: ignore[attr-defined]
                assert re.search(r"encoding='(utf-8|ascii)'|\('[rwx]b'|^tarfile\.", call), f"{file}: {call}"
