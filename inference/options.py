"""The options of the commands that need no configuration."""

import argparse
import os
from pathlib import Path
from typing import NoReturn


def path(text: str) -> Path:
    """Make a path of an argument, and expand `~`, which a shell does not do in `--output=~/out.csv`."""
    return Path(os.path.expanduser(text))


class OptionParser(argparse.ArgumentParser):
    """A parser whose errors are one message, as those of the other commands are."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.prog}: {message} (`{self.prog} --help` lists the options)")
