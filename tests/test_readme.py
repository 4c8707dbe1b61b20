"""The README says what is true."""

import re
from pathlib import Path

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
    [example] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names["samples"].shape == (10, 7, 3, 20)
    assert names["samples"].std(dim=0).max() > 0
