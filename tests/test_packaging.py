"""What is installed, and what it needs."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
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
    for name in ARROWS:
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
    assert {
        "variational_rnn/py.typed",
        *(f"variational_rnn/kernels/{name}" for name in ("gemm.h", "rnn.cpp", "softmax.cpp")),
    } <= set(names)
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert required == ["Requires-Dist: torch>=2.6"]


ARROWS = {
    "variational_rnn": set(),
    "datamodules": set(),
    "experiments": set(),
    "lightning_modules": {"datamodules", "variational_rnn"},
    "training": {"datamodules", "experiments", "lightning_modules", "variational_rnn"},
    "inference": {"datamodules", "experiments", "lightning_modules", "variational_rnn"},
    "reproduction": {"experiments"},
}


def imports_of(file: Path) -> set[str]:
    """The modules of this repository that a file imports, within functions too, but not for its types alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {part for part in parts if (ROOT / f"{part.replace('.', '/')}.py").is_file()}
            found |= modules or {node.module}
    return {name for name in found if name.partition(".")[0] in {*ARROWS, "main", "benchmarks"}}


@pytest.mark.parametrize("package", ARROWS)
def test_packages_import_each_other_as_contributing_says(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        wrong = {name.partition(".")[0] for name in imports_of(file)} - ARROWS[package] - {package}
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_no_files_import_each_other_in_a_circle() -> None:
    files = [file for package in ARROWS for file in (ROOT / package).rglob("*.py")]
    graph = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): imports_of(file)
        for file in files
    }
    graph = {name: {other for other in others if other in graph and other != name} for name, others in graph.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("experiments.__main__", {"torch", "lightning", "wandb", "pandas"}),
        ("experiments.results", {"torch", "lightning", "wandb", "pandas"}),
        ("reproduction.report", {"torch", "lightning", "wandb"}),
        ("main", {"torch", "lightning", "wandb"}),
    ],
)
def test_what_needs_no_torch_does_not_load_it(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not heavy & set(run.stdout.split())


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="this is no checkout")
def test_corpora_and_checkpoints_are_not_committed():
    files = ["data/ptb/ptb.train.txt", "data/film_reviews/scaledata/a", "runs/ptb/a/config.yaml", "some/last.ckpt"]
    ignored = subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True)
    assert ignored.stdout.split() == files


def test_the_texts_ask_for_the_python_that_the_package_needs():
    [needed] = re.findall(r'requires-python = "(>=\d.\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for name in ("README.md", "Makefile"):
        assert f"Python {needed.replace('=', '= ')}" in (ROOT / name).read_text(encoding="utf-8")
