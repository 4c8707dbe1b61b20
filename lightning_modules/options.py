"""The options of the commands that need no configuration."""

import argparse
from typing import NoReturn


class OptionParser(argparse.ArgumentParser):
    """A parser whose errors are one message, as those of the other commands are."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.prog}: {message} (`{self.prog} --help` lists the options)")
