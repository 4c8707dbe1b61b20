"""How a model reads a text: into which words it is split, and which ids they have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datamodules.checks import check_text
from datamodules.words import SPLITTERS

UNKNOWN, EOS = "<unk>", "<eos>"  # of language models
SPECIAL_WORDS = ["<pad>", "<start>", UNKNOWN, "<unused>"]  # Keras adds 3 to ranks that begin at 1: id 3 stays free.


def stream_words(lines: Iterable[str], split: Callable[[str], list[str]]) -> Iterator[str]:
    """The words of a text as a language model reads it: every line ends with <eos>.

    Args:
        lines: The lines of the text.
        split: Splits a line into words.

    Raises:
        ValueError: A line ends with <eos> already, so that it would have two.
    """
    for number, line in enumerate(lines, start=1):
        words = split(line)
        if words and words[-1] == EOS:
            raise ValueError(
                f"line {number} ends with {EOS}, which is added to every line: remove it from the ends of the lines"
            )
        yield from words
        yield EOS


@dataclass(frozen=True)
class Reader:
    """What a model needs to read other texts as it read those it was trained on: a plain value.

    A language model reads a text as one stream: every line ends with <eos>; words that it does not know are <unk>.
    A model of rated texts reads a text as chunks, the last one padded in front (id 0): the text starts with id 1, words
    that it does not know have id 2. Which of them it is follows from `chunk_length`.

    Args:
        vocabulary: words by id.
        tokens: how a line is split, a name in `SPLITTERS`: at blanks ("spaces"), at Unicode's word boundaries
            ("unicode_words"), by the earlier rule of the demo corpus and of older models ("words"), or as the published
            film reviews are ("reviews").
        chunk_length: ids of a chunk of a rated text; None for a language model.
        window: words after which a language model that does not carry its state on starts from zeros; None for rated
            texts.

    Raises:
        ValueError: these are not the parts of a reader.
    """

    vocabulary: tuple[str, ...]
    tokens: str
    chunk_length: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        words = tuple(self.vocabulary)
        special = () if self.chunk_length is None else SPECIAL_WORDS
        lengths = [length for length in (self.chunk_length, self.window) if length is not None]
        checks = {
            "vocabulary": all(isinstance(word, str) for word in words)
            and len(set(words[len(special) :])) == len(words) - len(special)
            and (words[: len(special)] == tuple(special) if special else EOS in words),
            "tokens": self.tokens in SPLITTERS,
            "chunk_length or window": len(lengths) == 1 and isinstance(lengths[0], int) and lengths[0] > 0,
        }
        if wrong := [name for name, is_right in checks.items() if not is_right]:
            raise ValueError(f"this is no description of how a model reads texts: wrong {', '.join(wrong)}")
        object.__setattr__(self, "vocabulary", words)

    @cached_property
    def _index(self) -> dict[str, int]:
        first = 0 if self.chunk_length is None else len(SPECIAL_WORDS)
        return {word: i for i, word in enumerate(self.vocabulary) if i >= first}

    def state(self) -> dict[str, Any]:
        """The arguments as lists, strings and numbers, for a checkpoint or JSON: `Reader(**state)` is equal to this."""
        return {
            "vocabulary": list(self.vocabulary),
            "tokens": self.tokens,
            "chunk_length": self.chunk_length,
            "window": self.window,
        }

    def words(self, text: str) -> list[str]:
        """Split a text; a language model's ends with <eos>, as each of its lines does.

        Raises:
            ValueError: it is not a text, or a line of a language model's text ends with <eos> already.
        """
        check_text(text, may_be_blank=True)
        split = SPLITTERS[self.tokens]
        if self.chunk_length is not None:
            return split(text.replace("\n", " "))
        return list(stream_words(text.removesuffix("\n").split("\n"), split))

    def knows(self, word: str) -> bool:
        """Whether a word has an id of its own."""
        return word != UNKNOWN and word in self._index

    def ids(self, text: str) -> list[int]:
        """Encode a text: ids of its words, after the start id for a rated text.

        Raises:
            ValueError: it is not a text; a word is unknown and the vocabulary has no <unk>; or a line of a language
                model's text ends with <eos> already.
        """
        words = self.words(text)
        if self.chunk_length is not None:
            unknown = SPECIAL_WORDS.index(UNKNOWN)
            return [SPECIAL_WORDS.index("<start>"), *(self._index.get(word, unknown) for word in words)]
        try:
            return [self._index[word if word in self._index else UNKNOWN] for word in words]
        except KeyError:
            word = next(word for word in words if word not in self._index)
            raise ValueError(f"the word {word!r} is unknown, and the vocabulary has no {UNKNOWN}") from None

    def chunks(self, text: str) -> list[list[int]]:
        """Encode a rated text as chunks of `chunk_length` ids, the last one padded in front.

        Raises:
            TypeError: this is the reader of a language model.
        """
        if self.chunk_length is None:
            raise TypeError("a language model reads a text as one stream, not as chunks")
        ids, length = self.ids(text), self.chunk_length
        cut = [ids[start : start + length] for start in range(0, len(ids), length)]
        return [[SPECIAL_WORDS.index("<pad>")] * (length - len(chunk)) + chunk for chunk in cut]

    def difference(self, other: Reader) -> tuple[str, str] | None:
        """The name of a part that differs, and what it is here and there; None if both make the same ids of a text.

        Of vocabularies these are their sizes and the first word that differs. Windows are not compared: an evaluation
        may choose another.
        """
        if self.tokens != other.tokens:  # as the option `tokens` calls them
            names = {"unicode_words": "words", "words": "simple_words"}
            return "tokens", "; ".join(repr(names.get(reader.tokens, reader.tokens)) for reader in (self, other))
        if self.chunk_length != other.chunk_length:
            return "chunk_length", f"{self.chunk_length!r}; {other.chunk_length!r}"
        mine, others = self.vocabulary, other.vocabulary
        if mine == others:
            return None
        i = next((i for i, (one, two) in enumerate(zip(mine, others, strict=False)) if one != two), None)
        if i is None:
            i = min(len(mine), len(others))
        one, two = (repr(words[i]) if i < len(words) else "no word" for words in (mine, others))
        return "vocabulary", f"{len(mine):,} words, id {i} is {one}; {len(others):,} words, id {i} is {two}"
