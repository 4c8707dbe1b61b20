"""A run that takes a second, on the fixture `tiny_treebank`."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datamodules import penn_treebank

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--config", "ptb/small/variational_tied"]


def tiny_run(tmp_path: Path, *more: str, logger: tuple[str, ...] = ("--trainer.logger", "false")) -> list[str]:
    return [
        *SMALL,
        *("--data.init_args.data_dir", str(tmp_path / "data")),
        *("--data.init_args.vocab_size", "12"),
        *("--data.init_args.batch_size", "2"),
        *("--data.init_args.window", "5"),
        *("--model.init_args.hidden_size", "6"),
        *("--model.init_args.mc_samples", "3"),
        *("--trainer.default_root_dir", str(tmp_path / "run")),
        *logger,
        *("--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false"),
        *("--trainer.enable_model_summary", "false"),
        *more,
    ]


def tiny_program(tmp_path: Path) -> list[str]:
    """Command of a process of its own for which the fixture `tiny_treebank` passes for the real one, too."""
    script = tmp_path / "program.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import main\n"
        "from datamodules import penn_treebank\n"
        f"penn_treebank.SHA256 = {penn_treebank.SHA256!r}\n"
        "if __name__ == '__main__':\n"
        "    main.main(sys.argv[1:])\n"
    )
    return [sys.executable, str(script)]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of this size, mounted on a new folder; skips the test where that is not permitted."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
