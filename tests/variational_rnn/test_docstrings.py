import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch

import variational_rnn

README = Path(variational_rnn.__file__).parent / "README.md"
MODULES = [module.name for module in pkgutil.walk_packages(variational_rnn.__path__, "variational_rnn.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_examples_in_the_readme_run():
    torch.manual_seed(0)
    result = doctest.testfile(str(README), module_relative=False)
    assert result.attempted > 20
    assert result.failed == 0


def test_the_readme_names_everything_that_is_public():
    text = README.read_text()
    assert [name for name in variational_rnn.__all__ if f"`{name}`" not in text] == []
