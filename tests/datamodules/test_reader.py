"""How a model reads other texts than those of its data."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import PennTreebank, PlainText, RatedText
from datamodules.reader import Reader
from datamodules.words import unicode_words

LANGUAGE = Reader(("<unk>", "<eos>", "the", "cat"), "spaces", window=5)
RATED = Reader(("<pad>", "<start>", "<unk>", "<unused>", "good", "film"), "words", chunk_length=4)


@pytest.fixture
def plain(tmp_path: Path) -> PlainText:
    for name, text in {
        "train": "the cat\n\nA <unk> dog's\n",
        "valid": "the\na",
        "test": " the  cow\nthe cat\n",
    }.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return PlainText(tmp_path, batch_size=1, window=1, vocab_size=4, tokens="words")


@pytest.fixture
def rated(tmp_path: Path) -> RatedText:
    rows = [{"text": f"Film {i}, {'good' if i % 2 else 'bad'} {'very ' * (i % 7)}", "rating": i} for i in range(20)]
    (tmp_path / "rated.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return RatedText(tmp_path / "rated.jsonl", chunk_length=6, vocab_size=9)


@pytest.mark.parametrize("reader", [LANGUAGE, RATED])
def test_a_reader_survives_json_and_a_safe_torch_load(reader: Reader, tmp_path: Path) -> None:
    torch.save(reader.state(), tmp_path / "reader.pt")
    for state in (json.loads(json.dumps(reader.state())), torch.load(tmp_path / "reader.pt", weights_only=True)):
        assert Reader(**state) == reader
        assert hash(Reader(**state)) == hash(reader)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocabulary": ["<unk>", "cat"]},
        {"vocabulary": ["<eos>", 3]},
        {"vocabulary": ["<eos>", "cat", "cat"]},
        {"tokens": "letters"},
        {"window": 0},
        {"window": None},
        {"window": "5"},
        {"chunk_length": 5},
        {"window": None, "chunk_length": 5},  # and not the special words of rated texts
    ],
)
def test_what_describes_no_reader_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no description of how a model reads texts"):
        Reader(**LANGUAGE.state() | changes)


def test_a_language_model_reads_lines_that_end_with_eos_and_what_is_unknown_as_unk() -> None:
    assert LANGUAGE.words("the cow\n\ncat") == ["the", "cow", "<eos>", "<eos>", "cat", "<eos>"]
    assert LANGUAGE.ids("the cow\n\ncat\n") == [2, 0, 1, 1, 3, 1]
    assert [word for word in LANGUAGE.words("the <unk> cow") if not LANGUAGE.knows(word)] == ["<unk>", "cow"]


def test_a_text_whose_lines_already_end_with_eos_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="line 2 ends with <eos>, which is added to every line: remove it"):
        LANGUAGE.ids("the cat\nthe cat <eos>\n")
    assert LANGUAGE.ids("the <eos> cat") == [2, 1, 3, 1], "elsewhere in a line it is a word"
    assert Reader(RATED.vocabulary, "spaces", chunk_length=9).ids("good <eos>") == [1, 4, 2]


def test_a_word_is_refused_where_nothing_is_unknown() -> None:
    with pytest.raises(ValueError, match="'cow' is unknown"):
        Reader(("the", "<eos>"), "spaces", window=5).ids("the cow")


def test_a_rated_text_is_chunks_of_which_the_last_one_is_padded_in_front() -> None:
    assert RATED.ids("Good film,\nfilm GOOD!") == [1, 4, 5, 2, 5, 4, 2]
    assert RATED.chunks("Good film,\nfilm GOOD!") == [[1, 4, 5, 2], [0, 5, 4, 2]]


@pytest.mark.parametrize("tokens", ["words", "spaces"])
def test_the_lines_of_a_rated_text_are_apart(tokens: str) -> None:
    reader = Reader(RATED.vocabulary, tokens, chunk_length=9)
    assert reader.ids("good\nfilm\n\ngood") == [1, 4, 5, 4]


def test_special_words_that_stand_in_a_rated_text_are_unknown() -> None:
    reader = Reader(RATED.vocabulary, "spaces", chunk_length=9)
    assert reader.ids("<pad> <start> <unk> good") == [1, 2, 2, 2, 4]
    assert not reader.knows("<pad>")


def test_a_reader_reads_the_test_text_as_the_data_module_did(plain: PlainText, tmp_path: Path) -> None:
    assert plain.reader is None
    plain.prepare_data()
    assert plain.reader is not None
    assert plain.reader.ids((tmp_path / "test.txt").read_text()) == plain.ids["test"].tolist()
    assert plain.reader.words("A dog's life") == [*unicode_words("A dog's life"), "<eos>"]


def test_a_reader_reads_rated_texts_as_the_data_module_did(rated: RatedText) -> None:
    rated.prepare_data()
    assert rated.reader is not None
    for split in ("train", "test"):
        texts = list(dict.fromkeys(rated.chunks[split]["review"]))
        chunks = [chunk for text in texts for chunk in rated.reader.chunks(rated.texts[text]["text"])]
        assert chunks == rated.chunks[split]["words"]


def test_a_reader_reads_the_penn_treebank_as_the_data_module_did(tiny_treebank: Path) -> None:
    data = PennTreebank(tiny_treebank.parent, vocab_size=12)
    data.setup()
    assert data.reader is not None
    assert data.reader.ids((tiny_treebank / "ptb.test.txt").read_text()) == data.ids["test"].tolist()


def test_the_difference_of_vocabularies_names_both_sizes_and_the_first_word_that_differs() -> None:
    def with_words(*words: str) -> Reader:
        return Reader(("<unk>", "<eos>", *words), "spaces", window=5)

    assert LANGUAGE.difference(with_words("the", "cat")) is None
    found = "4 words, id 2 is 'the'; 5 words, id 2 is 'a'"
    assert LANGUAGE.difference(with_words("a", "cat", "dog")) == ("vocabulary", found)
    assert LANGUAGE.difference(with_words("the")) == ("vocabulary", "4 words, id 3 is 'cat'; 3 words, id 3 is no word")


def test_readers_differ_in_how_texts_are_split_and_cut_and_not_in_the_window_of_an_evaluation() -> None:
    words = replace(LANGUAGE, tokens="unicode_words")
    assert LANGUAGE.difference(words) == ("tokens", "'spaces'; 'words'")
    assert replace(LANGUAGE, tokens="words").difference(words) == ("tokens", "'simple_words'; 'words'")
    assert LANGUAGE.difference(replace(LANGUAGE, window=9)) is None
    assert RATED.difference(replace(RATED, chunk_length=9)) == ("chunk_length", "4; 9")
