"""The Makefile hands its variables over as they were given; `tests/experiments/test_commands.py` has the rest."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
NASTY = [
    "0'; touch {}; '",
    '0"; touch {}; "',
    "$(shell touch {})",
    "$$(touch {})",
    "`touch {}`",
    "0; touch {}",
    "a  b",
    "$HOME",
    "#x",
]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the Makefile, and a Python that prints its command and the variables."""
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python.write_text('#!/bin/bash\necho "$@"\nfor name in ${SHOWN:-}; do printf "%s=[%s]\\n" $name "${!name}"; done\n')
    python.chmod(0o755)
    (tmp_path / ".venv/ready").touch()
    return tmp_path


@pytest.fixture
def make(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run make there; variables of a make around the tests are forgotten."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], **environment}
        return subprocess.run(
            ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
        )

    return run


Make = Callable[..., subprocess.CompletedProcess[str]]


def test_help_is_the_default_and_lists_every_target(make: Make) -> None:
    by_default, asked = make(), make("help")
    assert by_default.returncode == 0
    assert by_default.stdout == asked.stdout
    listed = re.findall(r"^  ([a-z-]+) +\S", asked.stdout, flags=re.MULTILINE)
    [handed_over] = re.findall(r"^HANDED_OVER := ((?:.*\\\n)*.*)$", MAKEFILE, flags=re.MULTILINE)
    assert set(listed) == {
        *handed_over.replace("\\", "").split(),
        "help",
        "test",
        "test-slow",
        "setup",
        "lint",
        "clean",
    }
    assert "To train on your own text or export a model, use main.py: see docs/guide.md" in asked.stdout


@pytest.mark.parametrize("target", ["demo", "reproduce-ptb", "status", "ensemble"])
def test_a_target_is_a_command_of_experiments(target: str, make: Make) -> None:
    assert make(target).stdout.splitlines() == [f"-m experiments {target}"]
    assert make("-n", target).stdout.splitlines() == [f".venv/bin/python -m experiments {target}"]


@pytest.mark.parametrize("value", NASTY)
@pytest.mark.parametrize("name", ["SEEDS", "EPOCHS", "RESULTS", "DATA_DIR", "ARGS", "SLURM", "A", "TEXT", "GPU"])
def test_a_value_arrives_as_it_was_given_and_is_never_a_command(
    name: str, value: str, make: Make, tmp_path: Path
) -> None:
    given = value.format(tmp_path / "touched")
    for done in (make("status", f"{name}={given}", SHOWN=name), make("status", SHOWN=name, **{name: given})):
        assert done.stdout.splitlines() == ["-m experiments status", f"{name}=[{given}]"]
        assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("value", ["zaremba", "$(shell touch touched)"])
def test_a_misspelt_variable_is_refused_with_the_known_ones(value: str, make: Make, folder: Path) -> None:
    done = make("reproduce-ptb", f"ROW={value}")
    assert done.returncode != 0
    assert "ROW is no variable of this Makefile; there are: " in done.stderr
    assert "ROWS" in done.stderr
    assert not (folder / "touched").exists()


def test_every_variable_is_handed_over_by_its_value(make: Make) -> None:
    [names] = re.findall(r"^VARIABLES := (.*)$", MAKEFILE, flags=re.MULTILINE)
    for name in names.split():
        assert re.search(rf"^override {name} := .*\$\(value {name}\)", MAKEFILE, flags=re.MULTILINE), name


def test_the_makefile_computes_nothing() -> None:
    assert len(MAKEFILE.splitlines()) < 90
    assert not re.search(r"\$\((shell|eval)|\bawk\b", MAKEFILE)


def test_clean_removes_the_runs_and_leaves_results(make: Make, folder: Path) -> None:
    kept = [folder / "results/a/seed0.json", folder / "my results/a/seed0.json"]
    gone = [folder / "runs/a/last.ckpt", folder / "my results/runs/a/last.ckpt", folder / ".mypy_cache/some"]
    for file in kept + gone:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for arguments in ((), ("RESULTS=my results",)):
        assert make("clean", *arguments).returncode == 0
    assert all(file.exists() for file in kept)
    assert not any(file.exists() for file in gone)
    assert make("clean", "RUNS=$(touch touched); x").returncode == 0
    assert not (folder / "touched").exists()


def test_every_target_but_help_and_clean_sets_up_what_it_needs(make: Make, folder: Path) -> None:
    (folder / ".venv/ready").unlink()
    targets = set(re.findall(r"^([a-z-]+): ## ", MAKEFILE, flags=re.MULTILINE))
    without = {target for target in targets if "-m venv .venv" not in make("-n", target).stdout}
    assert without == {"help", "clean"}
