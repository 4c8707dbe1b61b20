"""What is installed, and what it needs."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_layers_import_torch_and_no_other_package_of_this_repository():
    loaded = "import sys; before = set(sys.modules); import torch; torchs = set(sys.modules); import variational_rnn; "
    listed = (
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - torchs} - set(sys.stdlib_module_names)))"
    )
    run = subprocess.run([sys.executable, "-c", loaded + listed], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) <= {"variational_rnn", "torch"}


@pytest.mark.slow
def test_the_wheel_holds_the_layers_alone_and_requires_torch_alone(tmp_path):
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("variational_rnn", "lightning_modules", "datamodules", "reproduction"):
        shutil.copytree(ROOT / name, tmp_path / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        tmp_path / "wheels",
        tmp_path,
    ]
    subprocess.run(command, check=True)
    [wheel] = (tmp_path / "wheels").glob("variational_rnn-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA")]
    folders = {name.partition("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"variational_rnn"}
    assert {"variational_rnn/py.typed", "variational_rnn/kernels/cpu.cpp"} <= set(names)
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert required == ["Requires-Dist: torch>=2.6"]


def test_packages_import_each_other_as_contributing_says():
    allowed = {
        "variational_rnn": set(),
        "datamodules": set(),
        "lightning_modules": {"variational_rnn", "datamodules", "reproduction"},
        "reproduction": {"datamodules", "lightning_modules"},
    }
    for package, others in allowed.items():
        for file in (ROOT / package).rglob("*.py"):
            imported = re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            wrong = set(imported) & {"main", "benchmarks", *allowed} - others - {package}
            assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="this is no checkout")
def test_corpora_and_checkpoints_are_not_committed():
    files = ["data/ptb/ptb.train.txt", "data/film_reviews/scaledata/a", "runs/ptb/a/config.yaml", "some/last.ckpt"]
    ignored = subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True)
    assert ignored.stdout.split() == files


def test_the_texts_ask_for_the_python_that_the_package_needs():
    [needed] = re.findall(r'requires-python = "(>=\d.\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for name in ("README.md", "Makefile"):
        assert f"Python {needed.replace('=', '= ')}" in (ROOT / name).read_text(encoding="utf-8")
