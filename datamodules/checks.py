"""Checks of texts, ratings, counts and numbers, shared by files, the Python API and the command line."""

import math
import re
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from datamodules.text_files import shortened

LARGEST_RATING = 1e15
LARGEST_SEED = 2**63 - 1


def check_text(text: Any, what: str = "the text", may_be_blank: bool = False) -> str:
    """Check that a value is a text, and return it.

    Args:
        text: The value to check.
        what: What the value is, for the error message: "train.csv, line 3: 'text'".
        may_be_blank: Whether a text without any word is allowed.

    Raises:
        ValueError: It is not a string, is blank, or contains a NUL character or half a surrogate pair.
    """
    if text is None or (isinstance(text, str) and not may_be_blank and not text.strip()):
        raise ValueError(f"{what} is empty: give it a text, or leave it out")
    if not isinstance(text, str) or re.search("[\0\ud800-\udfff]", text):
        raise ValueError(f"{what} is {shortened(repr(text))}, which is not a text")
    return text


def check_texts(texts: Iterable[str]) -> list[str]:
    """Check an iterable of texts, and return a list of them in the order of iteration.

    Args:
        texts: A list, a column of a table, a generator: any iterable of strings.

    Raises:
        TypeError: It is a single string, a table or a mapping, or cannot be iterated over.
        ValueError: There are none, or one is blank or not a text; the message names its position.
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
    """Check that a value is a rating, and return it as a float.

    Args:
        rating: A number, or a string that spells one.
        what: What the value is, for the error message: "train.csv, line 3: 'rating'".

    Raises:
        ValueError: It is not a finite number, or exceeds 1e15 in magnitude.
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
    """Check whole numbers, and return them as Python integers.

    Args:
        least: The smallest allowed value.
        most: The largest allowed value, if there is one.
        options: The values by name.

    Raises:
        ValueError: A value is not a whole number (2.0 and True are not), or is out of range.
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
    """Check finite numbers, and return them as Python floats.

    Args:
        least: The smallest allowed value.
        above: Values must be above this.
        below: Values must be below this.
        options: The values by name.

    Raises:
        ValueError: A value is not a finite number, or is out of range.
    """
    bounds = {f"at least {least}": least, f"above {above}": above, f"below {below}": below}
    allowed = " and ".join(text for text, bound in bounds.items() if math.isfinite(bound))
    numbers = []
    for name, value in options.items():
        try:
            number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
        except OverflowError:  # of a huge whole number
            number = math.inf
        if not math.isfinite(number):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
        if not (number >= least and above < number < below):
            raise ValueError(f"{name} must be {allowed}, got {value}")
        numbers.append(number)
    return numbers
