"""What is run and what came out: rows, runs and their results. Imports no torch."""

import io
import os
import sys


def print_any_text() -> None:
    """Make any text printable: files and pipes get UTF-8, a terminal shows a question mark for what it lacks.

    An encoding that PYTHONIOENCODING chooses is kept, with question marks too.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        is_chosen = sys.stdout.isatty() or "PYTHONIOENCODING" in os.environ
        sys.stdout.reconfigure(encoding=None if is_chosen else "utf-8", errors="replace")
