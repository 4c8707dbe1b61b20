"""Rules that split a line of text into words, by the name under which a model saves its rule."""

import re
from collections.abc import Callable
from unicodedata import normalize

from icu4py.breakers import WordBreaker

# Tokens of prepared corpora. In WikiText, @-@ stands for a hyphen inside a word, @,@ and @.@ for marks inside a number.
MARKERS = re.compile("(<unk>|<eos>|@[-,.]@)")


def unicode_words(text: str) -> list[str]:
    """Split a text into lower-case words and punctuation marks, at the word boundaries of Unicode (UAX #29).

    The text is normalised to NFC first. Words keep their vowel signs and the apostrophes inside them, numbers their
    decimal points. ICU splits scripts that are written without blanks, such as Thai and Chinese, by its dictionaries.
    `<unk>`, `<eos>`, `@-@`, `@,@` and `@.@` stay whole.
    """
    words: list[str] = []
    for i, part in enumerate(MARKERS.split(normalize("NFC", text).lower())):
        words += [part] if i % 2 else [word for word in WordBreaker(part, "root") if not word.isspace()]
    return words


def simple_words(text: str) -> list[str]:
    """Split an English text into lower-case words and single punctuation marks; apostrophes inside words are kept.

    The demo corpus uses it, and so do models that were trained on other texts before `unicode_words` existed.
    """
    return re.findall(r"\w+(?:'\w+)*|[^\w\s]", text.lower())


def review_words(review: str) -> list[str]:
    """Split a review, one line, into lower-case words and the newline that the published code keeps as a word."""
    return [word for word in review.lower().split(" ") if word] + ["\n"]


SPLITTERS: dict[str, Callable[[str], list[str]]] = {
    "spaces": str.split,
    "words": simple_words,
    "unicode_words": unicode_words,
    "reviews": review_words,
}
