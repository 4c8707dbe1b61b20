import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from datamodules import FilmReviews, PennTreebank, PlainText, RatedText, SnippetLanguage, SnippetRatings, own_texts
from datamodules.words import unicode_words

TEXT = {
    "train": " the cat sat \n\n the dog <unk> \n a cat sat on the dog \n",
    "valid": "the cat \n the cow",
    "test": " a dog  sat\n",
}
RATED = [(f"film {i}, {'good' if i % 2 else 'bad'} {'very ' * (i % 7)}", 10.0 * i - 95) for i in range(20)]


@pytest.fixture
def plain(tmp_path: Path) -> Callable[..., PlainText]:
    """A data module of TEXT; keywords replace files by their names, and options."""

    def build(**changes: Any) -> PlainText:
        for name, text in TEXT.items():
            content = changes.pop(name, text)
            (tmp_path / f"{name}.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
        return PlainText(tmp_path, **{"batch_size": 1, "window": 2, "vocab_size": 5} | changes)

    return build


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format that the file's ending asks for, whose texts have commas but no quotes."""
    if file.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        separator, quote = {".csv": (",", '"'), ".tsv": ("\t", "")}[file.suffix]
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        file.write_text("".join(f"{separator.join(f'{quote}{value}{quote}' for value in line)}\n" for line in lines))
    return file


def rows(pairs: list[tuple[str, float]] = RATED) -> list[dict[str, Any]]:
    return [{"id": i, "rating": rating, "text": text} for i, (text, rating) in enumerate(pairs)]


def rated(source: Path | str, **changes: Any) -> RatedText:
    return RatedText(source, **{"chunk_length": 6, "vocab_size": 20} | changes)


def message(datamodule: PlainText | RatedText) -> str:
    """What is said of wrong input, in one line."""
    with pytest.raises((ValueError, OSError)) as caught:
        datamodule.prepare_data()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- plain text -------------------------------------------------------------------------------------------------------


def test_ids_spell_the_text_with_eos_at_every_line_and_rare_words_unknown(plain: Callable[..., PlainText]) -> None:
    datamodule = plain()
    datamodule.prepare_data()
    datamodule.setup()
    assert datamodule.vocabulary == ["<unk>", "<eos>", "the", "cat", "sat"]
    spelled = {split: " ".join(datamodule.vocabulary[i] for i in ids) for split, ids in datamodule.ids.items()}
    assert spelled == {
        "train": "the cat sat <eos> <eos> the <unk> <unk> <eos> <unk> cat sat <unk> the <unk> <eos>",
        "validation": "the cat <eos> the <unk> <eos>",
        "test": "<unk> <unk> sat <eos>",
    }


def test_words_and_punctuation_are_split_where_a_text_is_not_prepared(plain: Callable[..., PlainText]) -> None:
    text = "It's \"good\", isn't it? It's it.\n"
    datamodule = plain(train=text, valid=text, test=text, vocab_size=6, tokens="words")
    datamodule.setup()
    counts = Counter(unicode_words(text))
    assert datamodule.vocabulary[2:] == [word for word, _ in counts.most_common(4)]


def test_texts_are_split_as_those_of_a_model_of_the_earlier_rule_if_that_is_asked_for(
    plain: Callable[..., PlainText],
) -> None:
    datamodule = plain(**dict.fromkeys(TEXT, "a don’t 3.14\n" * 9), vocab_size=9, tokens="simple_words")
    datamodule.setup()
    assert datamodule.reader is not None
    assert datamodule.reader.tokens == "words"  # as older models call it
    assert datamodule.reader.words("a don’t") == ["a", "don", "’", "t", "<eos>"]


@pytest.mark.parametrize("tokens", ["spaces", "words"])
@pytest.mark.parametrize("name", TEXT)
def test_lines_that_already_end_with_eos_are_refused_since_each_would_have_two(
    name: str, tokens: str, plain: Callable[..., PlainText], tmp_path: Path
) -> None:
    text = "the cat sat\nthe dog <eos>\n" if name == "test" else "the cat <unk> \n the cat sat <eos> \n a dog\n"
    assert message(plain(**{name: text}, tokens=tokens)) == (
        f"{tmp_path / name}.txt, line 2 ends with <eos>, which is added to every line: "
        "remove it from the ends of the lines"
    )


def test_words_of_equal_frequency_have_ids_in_the_order_of_the_text(plain: Callable[..., PlainText]) -> None:
    data = plain(train="d b b a c c a\n", valid="a b\n", test="a b\n", vocab_size=5)
    data.setup()
    assert data.vocabulary == ["<unk>", "<eos>", "b", "a", "c"]


@pytest.mark.parametrize("order", ["the\ndog\ncat\n", "<eos>\n\n the \r\ndog\n<unk>\ncat"])
def test_a_given_vocabulary_has_its_own_order_after_unk_and_eos(
    order: str, plain: Callable[..., PlainText], tmp_path: Path
) -> None:
    (tmp_path / "words").write_text(order)
    datamodule = plain(vocabulary=tmp_path / "words")
    datamodule.setup()
    assert datamodule.vocabulary == ["<unk>", "<eos>", "the", "dog", "cat"]
    assert datamodule.ids["test"].tolist() == [0, 3, 0, 1]


@pytest.mark.parametrize("change", [lambda text: text.replace("\n", "\r\n"), lambda text: text.replace("\n", "\r")])
def test_line_ends_and_a_byte_order_mark_change_nothing(
    change: Callable[[str], str], plain: Callable[..., PlainText]
) -> None:
    expected = plain()
    expected.setup()
    changed = plain(**{name: b"\xef\xbb\xbf" + change(text).encode() for name, text in TEXT.items()})
    changed.setup()
    assert changed.vocabulary == expected.vocabulary
    assert all(torch.equal(changed.ids[split], expected.ids[split]) for split in expected.ids)


def test_a_line_of_a_million_words_is_read(plain: Callable[..., PlainText]) -> None:
    datamodule = plain(train="the cat sat " * 333_333 + "the")
    datamodule.setup()
    assert len(datamodule.ids["train"]) == 1_000_001


def test_corpus_is_named_by_the_folder_with_the_hashes_of_the_files(
    plain: Callable[..., PlainText], tmp_path: Path
) -> None:
    (tmp_path / "words").write_text("the\ndog\ncat\n")
    datamodule = plain(vocabulary=tmp_path / "words")
    datamodule.setup()
    hashes = {f"{name}.txt": hashlib.sha256(text.encode()).hexdigest() for name, text in TEXT.items()}
    hashes["vocabulary"] = hashlib.sha256(b"the\ndog\ncat\n").hexdigest()
    assert datamodule.corpus == (tmp_path.name, hashes)


def test_a_text_that_was_changed_is_read_as_it_is_now(plain: Callable[..., PlainText], tmp_path: Path) -> None:
    before = plain()
    before.setup()
    status = (tmp_path / "test.txt").stat()
    (tmp_path / "test.txt").write_text(TEXT["test"].replace("dog", "cat"))
    os.utime(tmp_path / "test.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    after = PlainText(tmp_path, batch_size=1, window=2, vocab_size=5)
    after.setup()
    assert after.ids["test"].tolist() != before.ids["test"].tolist()
    assert after.corpus != before.corpus


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (b"\n \r\n", "is empty"),
        (b"\xef\xbb\xbf\n", "is empty"),
        (b"the cat\nthe caf\xe9\n", "line 2: the byte 0xe9 is not UTF-8"),
        ("the cat\n".encode("utf-16"), "line 1: the byte 0xff is not UTF-8"),
        ("the cat\n".encode("utf-16-be"), "line 1 has a NUL character"),
        (b"the cat\nthe\0cat\n", "line 2 has a NUL character"),
        (b"\xef\xbb\xbfthe cat\n\n\x80", "line 3: the byte 0x80 is not UTF-8"),
        (bytes(range(1, 256)), "line 2: the byte 0x80 is not UTF-8"),
    ],
)
def test_what_is_no_text_is_said_with_file_line_and_byte(
    name: str, content: bytes, named: str, plain: Callable[..., PlainText], tmp_path: Path
) -> None:
    said = message(plain(**{name: content}))
    assert f"{tmp_path / name}.txt" in said
    assert named in said


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vocab_size": 9}, ["vocab_size=9", "train.txt has only 8 word types", "set vocab_size=8 or less"]),
        ({"valid": "the"}, ["valid.txt: streams of 2 tokens are too short for a window of 2"]),
        ({"train": "the cat sat\n" * 3, "batch_size": 7}, ["train.txt: streams of 1 tokens are too short"]),
        ({"batch_size": 10**12}, ["train.txt: a text of 16 tokens is too short for batch_size=1000000000000 streams"]),
        ({"valid": "cow\nhen\n" * 9}, ["valid.txt has none of the 3 words of the vocabulary"]),
        ({"test": "<unk>\n" * 9}, ["test.txt has none of the 3 words of the vocabulary"]),
    ],
)
def test_a_text_that_does_not_do_is_named_with_what_would(
    changes: dict[str, Any], named: list[str], plain: Callable[..., PlainText], tmp_path: Path
) -> None:
    said = message(plain(**changes))
    for part in (str(tmp_path), *named):
        assert part in said


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("the\ncat\n\nthe\n", "line 4: 'the' stands in line 1 already"),
        ("the\na cat\n", "line 2: 'a cat' is split into ['a', 'cat']"),
        ("the\ncat\n", "has 4 words, <unk> and <eos> included: set vocab_size=4"),
        ("the\ncat\ndog\na\n", "has 6 words, <unk> and <eos> included: set vocab_size=6"),
        ("\n", "is empty"),
        ("the\n\0\n", "line 2 has a NUL character"),
        ("ox\ncow\nhen\n", "train.txt has none of the 3 words"),
    ],
)
def test_a_wrong_vocabulary_is_said_with_line_and_word(
    content: str, named: str, plain: Callable[..., PlainText], tmp_path: Path
) -> None:
    (tmp_path / "words").write_text(content)
    assert named in message(plain(vocabulary=tmp_path / "words"))


def test_a_missing_file_is_named_with_those_that_are_there(plain: Callable[..., PlainText], tmp_path: Path) -> None:
    datamodule = plain()
    (tmp_path / "valid.txt").unlink()
    assert message(datamodule) == (
        f"{tmp_path}/valid.txt does not exist; in its folder there is: 'test.txt', 'train.txt'"
    )


SPLIT_NAMES = {"train": ("train",), "validation": ("valid", "validation", "dev", "val"), "test": ("test", "eval")}


@st.composite
def split_names(draw: st.DrawFn) -> dict[str, str]:
    """A name for each split, some of them in capitals."""
    change = draw(st.sampled_from([str, str.upper, str.title]))
    return {split: change(draw(st.sampled_from(names))) for split, names in SPLIT_NAMES.items()}


@settings(max_examples=20)
@given(names=split_names())
def test_any_usual_name_of_a_split_is_known_of_plain_texts(names: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for split, text in zip(names, TEXT.values(), strict=True):
            Path(folder, f"{names[split]}.txt").write_text(text)
        datamodule = PlainText(folder, batch_size=1, window=2, vocab_size=5)
        datamodule.setup()
    assert {split: len(ids) for split, ids in datamodule.ids.items()} == {"train": 16, "validation": 6, "test": 4}
    assert datamodule.corpus[1].keys() == {f"{name}.txt" for name in names.values()}


def test_files_that_are_left_out_are_named_and_the_vocabulary_is_not_one_of_them(
    plain: Callable[..., PlainText], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.txt").write_text("the\ndog\ncat\n")
    plain(vocabulary=tmp_path / "words.txt").setup()
    assert capsys.readouterr().err == ""
    (tmp_path / "more.txt").write_text("the dog\n")
    plain(vocabulary=tmp_path / "words.txt").setup()
    assert capsys.readouterr().err == (
        f"{tmp_path}: 'more.txt' left out, since splits are named train; valid, validation, val, dev; test, eval\n"
    )


def test_two_files_for_one_split_are_refused(plain: Callable[..., PlainText], tmp_path: Path) -> None:
    (tmp_path / "dev.txt").write_text("the dog\n")
    said = "has 'dev.txt', 'valid.txt': keep one of them, since each could be the split 'validation'"
    assert said in message(plain())


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, text in TEXT.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "words").write_text("the\ndog\ncat\n")
    datamodule = PlainText("~", batch_size=1, window=2, vocab_size=5, vocabulary="~/words")
    datamodule.setup()
    assert "dog" in datamodule.vocabulary
    write(tmp_path / "rated.csv", rows())
    of_ratings = rated("~/rated.csv")
    of_ratings.setup()
    assert of_ratings.corpus[0] == "rated.csv"
    for corpus in (PennTreebank, FilmReviews, SnippetLanguage, SnippetRatings):
        assert corpus("~/data").folder.parent == tmp_path / "data"


def test_a_home_folder_that_nobody_has_is_a_name_as_any_other() -> None:
    assert "~nobody-there/train.txt" in message(PlainText("~nobody-there", batch_size=1, window=2, vocab_size=5))
    assert "~nobody-there/rated.csv" in message(rated("~nobody-there/rated.csv"))
    for corpus in (PennTreebank, FilmReviews, SnippetLanguage, SnippetRatings):
        assert corpus("~nobody-there").folder.parent == Path("~nobody-there")


def test_a_folder_where_a_file_is_needed_is_named(plain: Callable[..., PlainText], tmp_path: Path) -> None:
    assert message(plain(vocabulary=tmp_path)) == f"{tmp_path} is a folder, but a file is needed: name one"
    (tmp_path / "rated/test.csv").mkdir(parents=True)
    write(tmp_path / "rated/train.csv", rows())
    assert "rated/test.csv is a folder, but a file is needed" in message(rated(tmp_path / "rated"))


@pytest.mark.parametrize(
    "changes", [{"vocab_size": 2}, {"tokens": "letters"}, {"batch_size": 0}, {"window": 0}, {"train_eval_windows": -1}]
)
def test_an_option_out_of_range_is_named_by_the_constructor(changes: dict[str, Any]) -> None:
    [(name, value)] = changes.items()
    with pytest.raises(ValueError, match=rf"{name} must be .*{value}"):
        PlainText("somewhere", **changes)


# --- rated text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_texts_and_ratings(ending: str, tmp_path: Path) -> None:
    file = write(tmp_path / f"reviews{ending}", rows())
    datamodule = rated(file)
    datamodule.prepare_data()
    datamodule.setup()
    assert [(row["text"], row["rating"]) for row in datamodule.texts] == RATED
    assert datamodule.corpus == (file.name, {file.name: hashlib.sha256(file.read_bytes()).hexdigest()})


def test_csv_has_quotes_lines_and_commas_in_quotes_and_tsv_has_them_as_they_are(tmp_path: Path) -> None:
    text = 'rating,text\n1,"He said ""no"",\nand left"\n\n2,it is\n'
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "a.tsv").write_text('rating\ttext\n1\t"No", he said\n2\tit is\n')
    texts = {}
    for ending in ("csv", "tsv"):
        datamodule = rated(tmp_path / f"a.{ending}", test_share=0.5)
        with pytest.raises(ValueError, match="there is nothing to learn"):  # from one text
            datamodule.setup()
        texts[ending] = list(datamodule.texts["text"])
    assert texts == {"csv": ['He said "no",\nand left', "it is"], "tsv": ['"No", he said', "it is"]}


def test_chunks_spell_their_texts_and_have_their_ratings(tmp_path: Path) -> None:
    datamodule = rated(write(tmp_path / "a.csv", rows()))
    datamodule.setup()
    known = set(datamodule.vocabulary[4:])
    reviews = []
    for part in datamodule.chunks.values():
        words: dict[int, list[int]] = {}
        for chunk in part:
            assert len(chunk["words"]) == 6
            assert chunk["rating"] == RATED[chunk["review"]][1]
            words.setdefault(chunk["review"], []).extend(i for i in chunk["words"] if i)
        for review, ids in words.items():
            spelled = [word if word in known else "<unk>" for word in unicode_words(RATED[review][0])]
            assert [datamodule.vocabulary[i] for i in ids] == ["<start>", *spelled]
        reviews += words
    assert sorted(reviews) == list(range(20)), "every text is in one part, with all its chunks"


@pytest.mark.parametrize("length", [10**6, 10**12])
def test_chunks_far_longer_than_any_text_are_refused(length: int, tmp_path: Path) -> None:
    said = message(rated(write(tmp_path / "a.csv", rows()), chunk_length=length))
    assert f"chunk_length={length}, but the longest text has 11 words, the start included: set chunk_length=11" in said


def test_chunks_may_be_somewhat_longer_than_any_text(tmp_path: Path) -> None:
    datamodule = rated(write(tmp_path / "a.csv", rows()), chunk_length=200)
    datamodule.setup()
    assert {len(chunk["words"]) for chunk in datamodule.chunks["train"]} == {200}


def test_words_are_counted_in_the_training_texts_only(tmp_path: Path) -> None:
    datamodule = rated(write(tmp_path / "a.csv", rows()), vocab_size=9)
    datamodule.setup()
    train = dict.fromkeys(datamodule.chunks["train"]["review"])
    counts = Counter(word for review in train for word in unicode_words(RATED[review][0]))
    assert {counts[word] for word in datamodule.vocabulary[4:]} == {count for _, count in counts.most_common(5)}


def test_shares_are_held_out_at_random_by_the_seed(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", rows())

    def parts(**options: Any) -> dict[str, set[int]]:
        datamodule = rated(file, test_share=0.25, validation_share=0.2, **options)
        datamodule.setup()
        return {split: set(part["review"]) for split, part in datamodule.chunks.items()}

    first = parts()
    assert {split: len(part) for split, part in first.items()} == {"train": 12, "test": 5, "validation": 3}
    assert first == parts()
    assert first != parts(split_seed=1)


def test_a_folder_has_its_own_splits(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(RATED[:12]))
    write(tmp_path / "valid.jsonl", rows(RATED[12:15]))
    write(tmp_path / "test.parquet", rows(RATED[15:]))
    (tmp_path / "notes.txt").touch()
    datamodule = rated(tmp_path, validation_share=0.5)
    datamodule.setup()
    parts = {split: set(part["review"]) for split, part in datamodule.chunks.items()}
    assert parts == {"train": set(range(12)), "validation": {12, 13, 14}, "test": set(range(15, 20))}
    assert datamodule.corpus[1].keys() == {"train.csv", "valid.jsonl", "test.parquet"}


@settings(max_examples=20)
@given(names=split_names(), ending=st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet", ".CSV"]))
def test_any_usual_name_of_a_split_is_known_of_rated_texts(names: dict[str, str], ending: str) -> None:
    parts = {"train": RATED[:12], "validation": RATED[12:15], "test": RATED[15:]}
    with tempfile.TemporaryDirectory() as folder:
        for split, pairs in parts.items():
            write(Path(folder, f"{names[split]}{ending.lower()}"), rows(pairs)).rename(
                Path(folder, names[split] + ending)
            )
        datamodule = rated(folder)
        datamodule.setup()
    assert {split: len(set(part["review"])) for split, part in datamodule.chunks.items()} == {
        split: len(pairs) for split, pairs in parts.items()
    }


@pytest.mark.parametrize("name", ["holdout.csv", "test2.jsonl", "test.csv.gz", "validation.json", "train.txt"])
def test_a_file_of_a_folder_that_is_not_read_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "train.csv", rows())
    (tmp_path / name).write_text("text,rating\nit is,1\n")
    (tmp_path / "README.md").touch()
    rated(tmp_path).setup()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}: '{name}' left out")


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
def test_a_csv_file_has_the_separator_by_which_its_columns_are_found(separator: str, tmp_path: Path) -> None:
    lines = [
        ["id", "text", "rating"],
        *([str(i), f'"a{separator} {text}"', str(r)] for i, (text, r) in enumerate(RATED)),
    ]
    (tmp_path / "a.csv").write_text("".join(f"{separator.join(line)}\n" for line in lines))
    datamodule = rated(tmp_path / "a.csv")
    datamodule.setup()
    assert [(row["text"], row["rating"]) for row in datamodule.texts] == [
        (f"a{separator} {text}", rating) for text, rating in RATED
    ]


def test_an_absent_column_is_said_with_the_separator_that_was_found(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("body;stars\ngood, really;1\n")
    said = message(rated(tmp_path / "a.csv", rating_column="stars"))
    assert "line 1: there is no column 'text', but 'body', 'stars', split at ';': name one of these" in said


@settings(max_examples=20)
@given(data=st.data(), ending=st.sampled_from([".csv", ".jsonl"]))
def test_permuted_rows_of_a_file_give_permuted_chunks(data: st.DataObject, ending: str) -> None:
    pairs = data.draw(st.permutations(RATED))

    def served(pairs: list[tuple[str, float]]) -> list[tuple[list[str], float]]:
        with tempfile.TemporaryDirectory() as folder:
            for name in ("train", "test"):
                write(Path(folder, f"{name}{ending}"), rows(pairs))
            datamodule = rated(folder, vocab_size=100)
            datamodule.setup()
        loaders = [datamodule.train_dataloader(), *datamodule.test_dataloader()]
        return [
            ([datamodule.vocabulary[i] for i in ids], rating)
            for loader in loaders
            for words, ratings, _ in loader
            for ids, rating in zip(words.T.tolist(), ratings.tolist(), strict=True)
        ]

    one, other = served(RATED), served(pairs)
    assert sorted(one) == sorted(other)
    assert {rating for _, rating in one} == {rating for _, rating in RATED}


def test_ratings_keep_their_range(tmp_path: Path) -> None:
    datamodule = rated(write(tmp_path / "a.tsv", rows()))
    datamodule.setup()
    ratings = [RATED[review][1] for review in datamodule.chunks["train"]["review"]]
    assert datamodule.rating_mean == pytest.approx(np.mean(ratings))
    assert datamodule.rating_std == pytest.approx(np.std(ratings))
    words, targets, _ = next(iter(datamodule.train_dataloader()))
    assert (len(words), len(targets)) == (6, len(ratings))
    assert sorted(targets.tolist()) == sorted(ratings)


GOOD = "text,rating\n" + "".join(f"good film {i},{i}\n" for i in range(10))
LINES = "".join(f'{{"text": "good film", "rating": {i}}}\n' for i in range(10))


@pytest.mark.parametrize(
    ("ending", "content", "named"),
    [
        ("csv", b"", "is empty"),
        ("csv", b"text,rating\n", "has no texts"),
        ("csv", b"text,score,id\nx,1,2\n", "line 1: there is no column 'rating', but 'text', 'score', 'id'"),
        ("csv", b"text,text,rating\nx,y,2\n", "line 1: there are several columns 'text'"),
        ("csv", f"{GOOD},3\n", "line 12: 'text' is empty"),
        ("csv", f'{GOOD}"\n ",3\n', "line 12: 'text' is empty"),
        ("csv", f"{GOOD}x,\n", "line 12: 'rating' is missing"),
        ("csv", f"{GOOD}x,good\n", "line 12: 'rating' is 'good', but a rating is a finite number"),
        ("csv", f"{GOOD}x,nan\n", "line 12: 'rating' is 'nan'"),
        ("csv", f"{GOOD}x,-inf\n", "line 12: 'rating' is '-inf'"),
        ("csv", f"{GOOD}x,1e39\n", "line 12: 'rating' is '1e39'"),
        ("csv", f"{GOOD}x,1e37\n", "line 12: 'rating' is '1e37', but a rating is a finite number, up to 1e+15"),
        ("csv", f"{GOOD}x,true\n", "line 12: 'rating' is 'true'"),
        ("csv", f'{GOOD}\n"a\nb",1\nx,y\n', "line 15: 'rating' is 'y'"),
        ("csv", f"{GOOD}well, good,1\n", "line 12 has 3 columns, the line of their names 2: put texts with ',' in"),
        ("csv", f"{GOOD}x\n", "line 12 has 1 columns"),
        ("csv", f'{GOOD}"open,1\nx,2\n', "line 12: unexpected end of data"),
        ("csv", f'{GOOD}"a "b" c",1\n', "line 12: ',' expected after"),
        ("csv", GOOD.encode() + b"caf\xe9,1\n", "line 12: the byte 0xe9 is not UTF-8"),
        ("csv", f"{GOOD}x\0,1\n", "line 12 has a NUL character"),
        ("csv", "text,rating\ngood,1\n", "test_share=0.2 of 1 training texts are 0"),
        ("csv", "text,rating\n" + "good,1\n" * 10, "all training texts, 8, have the rating 1"),
        ("csv", "text,rating\n" + "".join(f"{c},{ord(c)}\n" for c in "abcdef"), "the texts of test have none of the 5"),
        ("tsv", "text\trating\nx\ty\t1\n", "line 2 has 3 columns, the line of their names 2: write tabs"),
        ("jsonl", f"{LINES}\n{{\n", "line 12 is no JSON (Expecting"),
        ("jsonl", f"{LINES}[1]\n", "line 11 is [1]: write one object"),
        ("jsonl", f"{LINES}{'[' * 100_000}\n", "line 11 is no JSON (maximum recursion depth"),
        ("jsonl", f'{LINES}{{"text": "a"}}\n', "line 11: there is no column 'rating', but 'text'"),
        ("jsonl", f'{LINES}{{"text": null, "rating": 1}}\n', "line 11: 'text' is empty"),
        ("jsonl", f'{LINES}{{"text": 7, "rating": 1}}\n', "line 11: 'text' is 7, which is not a text"),
        ("jsonl", f'{LINES}{{"text": "\\ud800", "rating": 1}}\n', "line 11: 'text' is '\\ud800', which is not a text"),
        ("jsonl", f'{LINES}{{"text": "a", "rating": null}}\n', "line 11: 'rating' is missing"),
        ("jsonl", f'{LINES}{{"text": "a", "rating": NaN}}\n', "line 11: 'rating' is nan"),
        ("jsonl", f'{LINES}{{"text": "a", "rating": [1]}}\n', "line 11: 'rating' is [1]"),
        ("jsonl", f'{LINES}{{"text": "a", "rating": 1{"0" * 400}}}\n', "line 11: 'rating' is 1000"),
        ("jsonl", f'{LINES}{{"text": "a", "rating": true}}\n', "line 11: 'rating' is True"),
        ("jsonl", f'{LINES}{{"text": "a", "rating": -1e37}}\n', "line 11: 'rating' is -1e+37"),
        ("jsonl", f'{LINES}{{"rating": 1, "text": "a", "rating": 2}}\n', "line 11: there are several columns 'rating'"),
        ("jsonl", f'{LINES}{{"text": "a\\u0000b", "rating": 1}}\n', "line 11: 'text' is 'a\\x00b', which is not a"),
        ("parquet", b"PAR1 and then junk PAR1", "is no parquet file, or a damaged one"),
        ("parquet", b"junk", "is no parquet file, or a damaged one"),
        ("txt", b"junk", "is no file of texts and ratings, which ends in .csv, .tsv, .jsonl, .parquet"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(
    ending: str, content: str | bytes, named: str, tmp_path: Path
) -> None:
    file = tmp_path / f"reviews.{ending}"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = message(rated(file))
    assert str(file) in said
    assert named in said


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"text": ["a"], "score": [1.0]}, "there is no column 'rating', but 'text', 'score'"),
        ({"text": ["a", None], "rating": [1.0, 2.0]}, "row 2: 'text' is empty"),
        ({"text": ["a", "b"], "rating": [1.0, None]}, "row 2: 'rating' is missing"),
        ({"text": ["a", "b"], "rating": [True, False]}, "row 1: 'rating' is True"),
        ({"text": ["a"], "rating": ["good"]}, "row 1: 'rating' is 'good'"),
        ([("text", ["a"]), ("text", ["b"]), ("rating", [1])], "there are several columns 'text'"),
        ({"text": [1], "rating": [1]}, "row 1: 'text' is 1, which is not a text"),
        ({"text": pa.array([], pa.string()), "rating": pa.array([], pa.int8())}, "has no texts"),
    ],
)
def test_what_is_wrong_with_a_parquet_file_is_said_with_its_row(
    columns: dict[str, Any] | list[tuple[str, Any]], named: str, tmp_path: Path
) -> None:
    names, values = zip(*(columns.items() if isinstance(columns, dict) else columns), strict=True)
    pa.parquet.write_table(pa.table(list(map(pa.array, values)), names), tmp_path / "a.parquet")
    assert named in message(rated(tmp_path / "a.parquet"))


def test_a_file_or_folder_that_does_not_do_is_answered_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text(GOOD)
    assert message(rated(tmp_path / "review.csv")) == (
        f"{tmp_path}/review.csv does not exist; in its folder there is: 'reviews.csv'"
    )
    assert message(rated(tmp_path)).endswith("'train.jsonl', 'train.parquet', but 'reviews.csv'")
    for ending in ("csv", "jsonl"):
        (tmp_path / f"train.{ending}").write_text(GOOD)
    assert "has 'train.csv', 'train.jsonl': keep one of them" in message(rated(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        *({"test_share": share} for share in (0.0, 1.0, -0.1)),
        *({"validation_share": share} for share in (1.0, -0.1)),
        *({name: 0} for name in ("batch_size", "eval_batch_size", "chunk_length", "train_eval_chunks")),
        {"vocab_size": 4},
        {"split_seed": -1},
        {"tokens": "letters"},
    ],
)
def test_an_option_of_rated_texts_out_of_range_is_named_by_the_constructor(changes: dict[str, Any]) -> None:
    [(name, value)] = changes.items()
    with pytest.raises(ValueError, match=rf"{name} must be .*{value}"):
        RatedText("somewhere", **changes)


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_a_hub_that_cannot_be_reached_is_said_with_where_else_was_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    said = message(rated("owner/reviews"))
    assert f"There is no file or folder {tmp_path}/owner/reviews" in said
    assert "the Hugging Face hub delivers no data set owner/reviews" in said


@pytest.mark.parametrize("names", [("train", "dev", "eval"), ("train", "val", "test"), ("train", "validation", "test")])
def test_usual_names_of_splits_on_the_hub_are_known_and_others_named(
    names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {name: Dataset.from_list(rows(RATED[i : i + 5])) for i, name in enumerate((*names, "unsupervised"))}
    monkeypatch.setattr(own_texts, "load_dataset", lambda *_: DatasetDict(parts))
    datamodule = rated("owner/reviews")
    datamodule.setup()
    assert datamodule.chunks.keys() == {"train", "validation", "test"}
    assert datamodule.corpus[1].keys() == {"train", "validation", "test"}
    assert "owner/reviews on the Hugging Face hub: 'unsupervised' left out" in capsys.readouterr().err
    monkeypatch.setattr(own_texts, "load_dataset", lambda *_: DatasetDict(parts | {"valid": parts["train"]}))
    assert "keep one of them, since each could be the split 'validation'" in message(rated("owner/reviews"))


HUB_SCRIPT = """
import json, sys
from datamodules import RatedText
datamodule = RatedText(sys.argv[1], rating_column=sys.argv[2], chunk_length=6, vocab_size=20)
try:
    datamodule.prepare_data()
except (ValueError, OSError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(json.dumps([{split: sorted(part["review"]) for split, part in datamodule.chunks.items()}, datamodule.corpus]))
"""


@pytest.mark.slow
def test_a_data_set_of_the_hub_has_its_splits_and_what_is_wrong_is_named(
    loopback_hub: Callable[..., str], tmp_path: Path
) -> None:
    columns = {"text": [text for text, _ in RATED], "stars": list(range(20))}
    tables = {
        f"data/{split}-00000-of-00001.parquet": {name: values[i : i + 10] for name, values in columns.items()}
        for i, split in ((0, "train"), (10, "test"))
    }
    address = loopback_hub("owner/reviews", tables)
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", HUB_SCRIPT, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    process = run("owner/reviews", "stars")
    assert process.returncode == 0, process.stderr
    parts, (name, hashes) = json.loads(process.stdout)
    assert {split: sorted(set(part)) for split, part in parts.items()} == {
        "train": list(range(10)),
        "test": list(range(10, 20)),
    }
    assert (name, hashes.keys()) == ("owner/reviews", {"train", "test"})
    wrong = run("owner/reviews", "rating").stderr
    assert "ValueError: owner/reviews, split train: there is no column 'rating', but 'text', 'stars'" in wrong
    assert "ConnectionError: There is no file or folder" in run("owner/other", "rating").stderr
    [file] = tmp_path.glob("datasets/*/*/*/*/*-test.arrow")
    file.write_bytes(file.read_bytes()[:300])
    damaged = run("owner/reviews", "stars").stderr
    assert f"Delete its folder in {tmp_path}/datasets if its copy there is damaged" in damaged


# --- any bytes --------------------------------------------------------------------------------------------------------


def parquet_of(pairs: list[tuple[str, float]]) -> bytes:
    sink = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(rows(pairs)), sink)
    return sink.getvalue()


PARQUET = parquet_of(RATED)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file of which some bytes are others, and which may be cut off."""
    content = bytearray(whole[: draw(st.integers(1, len(whole)))] if draw(st.booleans()) else whole)
    for _ in range(draw(st.integers(1, 8))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


def loads_or_refuses(datamodule: PlainText | RatedText) -> None:
    with contextlib.suppress(ValueError, OSError):
        datamodule.prepare_data()


FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.one_of(
    st.binary(), st.text("ab \n\r\x00\x1c\x85\u2028\ufeff").map(str.encode), damaged(TEXT["train"].encode())
)


@FUZZ
@given(train=TEXTS, valid=TEXTS, words=st.none() | TEXTS, tokens=st.sampled_from(["spaces", "words"]))
def test_any_bytes_load_as_a_plain_text_or_are_refused(
    train: bytes, valid: bytes, words: bytes | None, tokens: str, tmp_path: Path
) -> None:
    for name, content in {"train": train, "valid": valid, "test": valid}.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    (tmp_path / "words").write_bytes(words or b"")
    vocabulary = None if words is None else tmp_path / "words"
    loads_or_refuses(PlainText(tmp_path, 1, 1, vocab_size=3, tokens=tokens, vocabulary=vocabulary))  # type: ignore[arg-type]


TABLES = st.one_of(
    st.binary(),
    damaged(GOOD.encode()),
    damaged(LINES.encode()),
    st.text('a1,"\t\n\r.-e{}[]:').map(lambda text: f"text,rating\n{text}".encode()),
    st.text('a1,"\t\n\r.-e').map(lambda text: f"text\trating\n{text}".encode()),
)


@FUZZ
@given(content=TABLES, ending=st.sampled_from(["csv", "tsv", "jsonl", "parquet"]))
@example(content=b'{"text": "a", "rating": 1' + b"0" * 400 + b"}", ending="jsonl")  # OverflowError
@example(content=b'{"text": "a", "rating": ' + b"[" * 100_000, ending="jsonl")  # RecursionError
@example(content=b'{"text": "\\udfff", "rating": 1}', ending="jsonl")
def test_any_bytes_load_as_rated_texts_or_are_refused(content: bytes, ending: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{ending}").write_bytes(content)
    loads_or_refuses(rated(tmp_path / f"a.{ending}"))


@FUZZ
@given(content=damaged(PARQUET))
def test_any_damage_to_a_parquet_file_is_survived(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    loads_or_refuses(rated(tmp_path / "a.parquet"))
