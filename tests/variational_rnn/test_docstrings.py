import doctest
import importlib
import pkgutil

import variational_rnn


def test_examples_in_docstrings_run():
    names = [module.name for module in pkgutil.walk_packages(variational_rnn.__path__, "variational_rnn.")]
    results = [doctest.testmod(importlib.import_module(name)) for name in names]
    assert sum(result.attempted for result in results) > 0
    assert sum(result.failed for result in results) == 0
