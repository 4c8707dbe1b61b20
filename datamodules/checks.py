"""What a text, a rating, a count and a number may be: the same for files, for Python and for the command line."""

import math
import re
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from datamodules.text_files import shortened

LARGEST_RATING = 1e15
LARGEST_SEED = 2**63 - 1


def check_text(text: Any, what: str = "the text", may_be_blank: bool = False) -> str:
    """Return a text, or refuse what is not one.

    Args:
        text: The value to check.
        what: What the value is, for the error message: "train.csv, line 3: 'text'".
        may_be_blank: Whether a text without any word is allowed.

    Raises:
        ValueError: It is no string, blank, or has a NUL character or half a surrogate pair.
    """
    if text is None or (isinstance(text, str) and not may_be_blank and not text.strip()):
        raise ValueError(f"{what} is empty: give it a text, or leave it out")
    if not isinstance(text, str) or re.search("[\0\ud800-\udfff]", text):
        raise ValueError(f"{what} is {shortened(repr(text))}, which is no text")
    return text


def check_texts(texts: Iterable[str]) -> list[str]:
    """Return texts in their order of iteration, or refuse what is not a collection of texts.

    Args:
        texts: A list, a column of a table, a generator: any iterable of strings.

    Raises:
        TypeError: It is a single text, a table, a mapping, or cannot be iterated over.
        ValueError: There are none, or one of them is no text, or blank; the message names its position.
    """
    kind = type(texts).__name__
    if isinstance(texts, str | bytes):
        raise TypeError(f"several texts are needed, got one string: put it into a list, [{shortened(repr(texts))}]")
    if isinstance(texts, Mapping) or hasattr(texts, "columns"):
        raise TypeError(f"several texts are needed, got a {kind}: pass one of its columns, or its values")
    try:
        iterator = iter(texts)
    except TypeError as error:
        raise TypeError(f"several texts are needed, got {shortened(repr(texts))} ({kind}): pass a list") from error
    checked = [check_text(text, f"the text at position {i} (from 0)") for i, text in enumerate(iterator)]
    if not checked:
        raise ValueError("there are no texts")
    return checked


def check_rating(rating: Any, what: str = "the rating") -> float:
    """Return a rating as a number, or refuse what is not one.

    Args:
        rating: A number, or its spelling.
        what: What the value is, for the error message: "train.csv, line 3: 'rating'".

    Raises:
        ValueError: It is no finite number, or a number above 1e15 in size.
    """
    try:
        number = math.nan if isinstance(rating, bool) else float(rating)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= LARGEST_RATING:
        found = "missing" if rating in (None, "") else shortened(repr(rating))
        raise ValueError(f"{what} is {found}, but a rating is a finite number, up to {LARGEST_RATING:g}")
    return number


def check_count(least: int, most: int | None = None, **options: Any) -> list[int]:
    """Return whole numbers as Python's own, or refuse the one that is none or out of range.

    Args:
        least: The smallest number that is allowed.
        most: The largest one, if there is one.
        options: The values by their names.

    Raises:
        ValueError: One of them is no whole number (2.0 and True are none), or out of range.
    """
    numbers = []
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        number = int(value)
        if number < least or (most is not None and number > most):
            up_to = "" if most is None else f" and at most {most}"
            raise ValueError(f"{name} must be at least {least}{up_to}, got {number}")
        numbers.append(number)
    return numbers


def check_number(
    least: float = -math.inf, *, above: float = -math.inf, below: float = math.inf, **options: Any
) -> list[float]:
    """Return finite numbers as Python's floats, or refuse the one that is none or out of range.

    Args:
        least: The smallest number that is allowed.
        above: What it must be above.
        below: What it must be below.
        options: The values by their names.

    Raises:
        ValueError: One of them is no finite number, or out of range.
    """
    bounds = {f"at least {least}": least, f"above {above}": above, f"below {below}": below}
    allowed = " and ".join(text for text, bound in bounds.items() if math.isfinite(bound))
    numbers = []
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
        number = float(value)
        if not (number >= least and above < number < below):
            raise ValueError(f"{name} must be {allowed}, got {value}")
        numbers.append(number)
    return numbers
