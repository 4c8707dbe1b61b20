"""Texts of your own: plain ones for language models, rated ones for regression."""

import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from datasets import Dataset, config, load_dataset
from lightning.pytorch.utilities import rank_zero_only

from datamodules.checks import check_count, check_number, check_rating, check_text
from datamodules.common import no_progress_bars
from datamodules.rated_sequences import RatedSequences, cut, encode, rank_words
from datamodules.reader import EOS, SPECIAL_WORDS, UNKNOWN, stream_words
from datamodules.streams import (
    StreamWindows,
    TokenStreams,
    encode_stream,
    frequent_words,
    split_streams,
)
from datamodules.text_files import READERS, Record, checked_columns, decoded, quoted, read, shortened
from datamodules.words import SPLITTERS

# By split, the names of files (without endings) and of splits on the hub, in any case.
NAMES = {"train": ("train",), "validation": ("valid", "validation", "val", "dev"), "test": ("test", "eval")}

Tokens = Literal["spaces", "words", "simple_words"]
# Names in `SPLITTERS`, by the option `tokens`; "words" was the simple rule before there was another.
RULES = {"spaces": "spaces", "words": "unicode_words", "simple_words": "words"}


class PlainText(TokenStreams):
    """Language modelling of a text of your own, in the files `train.txt`, `valid.txt` and `test.txt` of a folder.

    The validation file may also be named validation, val or dev, the test file eval. The files are UTF-8. Every line
    gets the token <eos> at its end; the word `<unk>` stands for unknown words. The batches are described in
    `TokenStreams`.

    Attributes:
        corpus: Name of the folder, and the SHA-256 of the files; filled by `setup`.

    Args:
        data_dir: Folder that holds the files.
        batch_size: B, the number of streams over all processes.
        window: T, tokens of a window.
        vocab_size: Number of word types that the model is built for: <unk>, <eos>, and the most frequent training
            words or those of `vocabulary`.
        tokens: "spaces" splits lines at blanks, for a text that is prepared already; "words" splits them into
            lower-case words and punctuation marks, as `unicode_words` does; "simple_words" is the rule of models
            whose reader calls it "words".
        vocabulary: File with a word in each line, in place of the most frequent words.
        train_eval_windows: Number of training windows on which the training error is evaluated after each epoch.
        sliding_test: Whether test words are also predicted from the `window` words before them alone.

    Raises (from `prepare_data` and `setup`):
        FileNotFoundError: A file is not there.
        ValueError: There are several files for a split; a file is not text, is too short, has no known word, or
            has lines that end with <eos> already; or there are fewer words than `vocab_size`, or another number in
            `vocabulary`. (A vocab_size that leaves no word is refused by the constructor.)
    """

    corpus: tuple[str, dict[str, str]]

    def __init__(
        self,
        data_dir: str | Path,
        batch_size: int = 20,
        window: int = 35,
        vocab_size: int = 10_000,
        tokens: Tokens = "spaces",
        vocabulary: str | Path | None = None,
        train_eval_windows: int = 0,
        sliding_test: bool = False,
    ) -> None:
        super().__init__(batch_size, window, train_eval_windows, sliding_test)
        self.folder = Path(os.path.expanduser(data_dir))
        [self.vocab_size] = check_count(3, vocab_size=vocab_size)  # <unk>, <eos>, and a word
        self.tokens = rule(tokens)
        self.split = SPLITTERS[self.tokens]
        self.vocabulary_file = Path(os.path.expanduser(vocabulary)) if vocabulary else None

    def prepare_data(self) -> None:
        """Read the files, so that what is wrong with them is said by one process."""
        self.setup()

    def build(self) -> None:
        """Read and encode the text."""
        found = files_of_splits(self.folder, [".txt"], self.vocabulary_file)
        files = {split: found.get(split, self.folder / f"{names[0]}.txt") for split, names in NAMES.items()}
        contents = {split: read(file) for split, file in files.items()}
        hashes = {files[split].name: sha256(content) for split, content in contents.items()}
        lines = {split: decoded(contents[split], file).removesuffix("\n").split("\n") for split, file in files.items()}

        def words(split: str) -> Iterator[str]:
            try:
                yield from stream_words(lines[split], self.split)
            except ValueError as error:
                raise ValueError(f"{files[split]}, {error}") from error

        if self.vocabulary_file:
            content = read(self.vocabulary_file)
            hashes["vocabulary"] = sha256(content)
            self.vocabulary = self._given_words(decoded(content, self.vocabulary_file))
        else:
            self.vocabulary = frequent_words(words("train"), self.vocab_size, str(files["train"]))
        self.corpus = self.folder.resolve().name, hashes
        ids = {split: encode_stream(words(split), self.vocabulary) for split in files}
        for split, file in files.items():
            if ids[split].max() < 2:
                raise ValueError(f"{file} has none of the {self.vocab_size - 2} words of the vocabulary: it is no use")
            streams = 1 if split == "test" else self.batch_size
            try:
                StreamWindows(split_streams(ids[split], streams), self.window, keep_remainder=split == "test")
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
        self.ids = ids

    def _given_words(self, text: str) -> list[str]:
        """The vocabulary, <unk> and <eos> first wherever they stand in the file."""
        vocabulary = {UNKNOWN: 0, EOS: 0}  # lines, where a word stands
        for number, line in enumerate(text.split("\n"), start=1):
            word = line.strip()
            if word in ("", UNKNOWN, EOS):
                continue
            where = f"{self.vocabulary_file}, line {number}: {shortened(repr(word))}"
            if word in vocabulary:
                raise ValueError(f"{where} stands in line {vocabulary[word]} already: leave out one of them")
            if self.split(word) != [word]:
                raise ValueError(
                    f"{where} is split into {shortened(repr(self.split(word)))}, so no text has it: write one word in "
                    "each line, as it is when split, or choose the other --data.init_args.tokens"
                )
            vocabulary[word] = number
        if len(vocabulary) != self.vocab_size:
            raise ValueError(
                f"vocab_size={self.vocab_size}, but {self.vocabulary_file} has {len(vocabulary)} words, {UNKNOWN} and "
                f"{EOS} included: set vocab_size={len(vocabulary)} (--data.init_args.vocab_size); the model follows."
            )
        return list(vocabulary)


class RatedText(RatedSequences):
    """Ratings of texts of your own: of a file or a folder of files, or of a data set on the Hugging Face hub.

    A file has a column of texts and one of ratings, numbers up to 1e15. It is UTF-8 and ends in `.csv` (the first
    line names the columns; texts with commas, quotes or several lines are in quotes), `.tsv` (the same, but quotes are
    characters like others), `.jsonl` (an object in each line) or `.parquet`. The columns of a `.csv` file may also be
    separated by semicolons, tabs or vertical bars. A folder has a file named train, and maybe one named valid
    (validation, val, dev) and one named test (eval); a data set has splits of these names.

    Texts are cut into chunks as in `FilmReviews`, but words are counted in the training texts only, and all ids are in
    use. The batches are described in `RatedSequences`.

    Attributes:
        corpus: Name of the source, and the SHA-256 of its files, or of the rows of each split; filled by `setup`.

    Args:
        source: File, folder, or `OWNER/NAME` of a data set on the hub.
        text_column: Column of the texts.
        rating_column: Column of the ratings.
        subset: Configuration of a data set on the hub that has several.
        batch_size: B in training, over all processes.
        eval_batch_size: B in evaluation, over all processes.
        chunk_length: T, words of a chunk.
        vocab_size: Number of embedding rows of the model.
        tokens: "words" splits texts into lower-case words and punctuation marks, as `unicode_words` does; "spaces"
            splits them at blanks; "simple_words" is the rule of models whose reader calls it "words".
        test_share: Share of the training texts, chosen at random, that are the test where the source has none.
        validation_share: Share of the texts that are then left, chosen at random, that are not trained on but are the
            split "validation" where the source has none.
        split_seed: Seed of these choices.
        train_eval_chunks: Number of training chunks on which the training error is evaluated.

    Raises (from `prepare_data` and `setup`):
        FileNotFoundError: A folder has no training file.
        ConnectionError: There is no such file or folder, and the hub does not deliver such a data set.
        ValueError: There are several files for a split, a file has another form, a text is empty or has no number, a
            split has nothing to learn or test, or the cache of `datasets` is damaged. (Shares and sizes out of range
            are refused by the constructor.)
    """

    corpus: tuple[str, dict[str, str]]

    def __init__(
        self,
        source: str | Path,
        text_column: str = "text",
        rating_column: str = "rating",
        subset: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 500,
        chunk_length: int = 200,
        vocab_size: int = 20_000,
        tokens: Tokens = "words",
        test_share: float = 0.2,
        validation_share: float = 0.0,
        split_seed: int = 0,
        train_eval_chunks: int = 100,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, train_eval_chunks)
        self.source = str(source)
        self.columns = {"text_column": text_column, "rating_column": rating_column}
        self.subset = subset
        [self.chunk_length] = check_count(1, chunk_length=chunk_length)
        [self.vocab_size] = check_count(len(SPECIAL_WORDS) + 1, vocab_size=vocab_size)
        self.tokens = rule(tokens)
        self.split = SPLITTERS[self.tokens]
        [test_share] = check_number(above=0, below=1, test_share=test_share)
        [validation_share] = check_number(0, below=1, validation_share=validation_share)
        self.shares = {"test": test_share, "validation": validation_share}
        [self.split_seed] = check_count(0, split_seed=split_seed)

    def prepare_data(self) -> None:
        """Read the source, so that what is wrong with it is said by one process, and is in the cache for the others."""
        self.setup()

    def build(self) -> None:
        """Read, check, split, encode and cut the texts."""
        path = Path(os.path.expanduser(self.source))
        is_file = path.exists() or path.suffix.lower() in READERS
        rows = self._rows_of_files(path) if is_file else self._rows_of_hub()
        texts = [text for part in rows.values() for text, _ in part]
        ratings = [rating for part in rows.values() for _, rating in part]
        self.texts = Dataset.from_dict({"text": texts, "rating": ratings})
        parts = self._parts({split: len(part) for split, part in rows.items()})
        if len({ratings[row] for row in parts["train"]}) == 1:
            raise ValueError(
                f"{self.source}: all training texts, {len(parts['train'])}, have the rating "
                f"{ratings[parts['train'][0]]:g}: there is nothing to learn"
            )
        words = [self.split(text) for text in texts]
        self.vocabulary = rank_words((words[row] for row in parts["train"]), self.vocab_size)
        ids = encode(words, self.vocabulary)
        for split, part in parts.items():
            if max(max(ids[row]) for row in part) < len(SPECIAL_WORDS):
                raise ValueError(
                    f"{self.source}: the texts of {split} have none of the {len(self.vocabulary) - len(SPECIAL_WORDS)} "
                    "words of the vocabulary, the most frequent ones of the training texts: they are no use"
                )
        for split, part in parts.items():
            chosen, rated = [ids[row] for row in part], [ratings[row] for row in part]
            self.chunks[split] = cut(chosen, rated, part, self.chunk_length)

    def _parts(self, sizes: dict[str, int]) -> dict[str, list[int]]:
        """Numbers of the texts of each split, of which those that are absent are taken from the training texts.

        Args:
            sizes: Number of texts of each split of the source, which follow each other.
        """
        parts, total = {}, 0
        for split, size in sizes.items():
            parts[split] = list(range(total, total + size))
            total += size
        # In a new order, since the training error is evaluated on the first ones.
        parts["train"] = np.random.default_rng(self.split_seed).permutation(parts["train"]).tolist()
        for split, share in self.shares.items():
            if split in parts or not share:
                continue
            train = parts["train"]
            held_out = round(share * len(train))
            if not 0 < held_out < len(train):
                raise ValueError(
                    f"{self.source}: {split}_share={share} of {len(train)} training texts are {held_out}: "
                    "some must be held out, and some be left"
                )
            parts[split], parts["train"] = train[:held_out], train[held_out:]
        return parts

    def _rows_of_files(self, path: Path) -> dict[str, list[tuple[str, float]]]:
        """Texts and ratings of each split, of a file or a folder."""
        files = files_of_splits(path, READERS) if path.is_dir() else {"train": path}
        if "train" not in files:
            wanted = quoted(f"train{ending}" for ending in READERS)
            there = quoted(sorted(file.name for file in path.iterdir()))
            raise FileNotFoundError(f"{path.absolute()} has none of {wanted}, but {there}")
        if path.suffix.lower() not in READERS and not path.is_dir():
            raise ValueError(f"{path} is no file of texts and ratings, which ends in {', '.join(READERS)}")
        contents = {split: read(file) for split, file in files.items()}
        self.corpus = path.resolve().name, {files[split].name: sha256(content) for split, content in contents.items()}
        return {
            split: self._checked(READERS[file.suffix.lower()](contents[split], file, self.columns), str(file))
            for split, file in files.items()
        }

    def _rows_of_hub(self) -> dict[str, list[tuple[str, float]]]:
        """Texts and ratings of each split, of a data set on the hub."""
        absent = f"There is no file or folder {Path(os.path.expanduser(self.source)).absolute()}"
        print(f"{absent}: asking the Hugging Face hub for {self.source}.", file=sys.stderr, flush=True)
        cache = f"Delete its folder in {config.HF_DATASETS_CACHE} if its copy there is damaged."
        try:
            with no_progress_bars():
                splits = load_dataset(self.source, self.subset)
            for part in splits.values():
                part.data.validate(full=True)  # reading a damaged table can end the process
        except pa.ArrowException as error:
            raise ValueError(f"{self.source} in the cache is damaged ({shortened(str(error))}). {cache}") from error
        except Exception as error:  # whatever is between here and the server
            raise ConnectionError(
                f"{absent}, and the Hugging Face hub delivers no data set {self.source}: "
                f"{shortened(str(error), 300)}. {cache}"
            ) from error
        names = by_split({name: name for name in splits}, f"{self.source} on the Hugging Face hub")
        if "train" not in names:
            raise ValueError(f"{self.source} on the Hugging Face hub has no split 'train', but {quoted(splits)}")
        rows = {}
        for split, name in names.items():
            where = f"{self.source}, split {name}"
            columns = checked_columns(splits[name].column_names, self.columns, where)
            pairs = zip(*(splits[name][column] for column in columns), strict=True)
            records = ((f"{where}, row {number}", *pair) for number, pair in enumerate(pairs, start=1))
            rows[split] = self._checked(records, where)
        self.corpus = self.source, {split: sha256(json.dumps(part).encode()) for split, part in rows.items()}
        return rows

    def _checked(self, records: Iterable[Record], source: str) -> list[tuple[str, float]]:
        """Texts and ratings.

        Raises:
            ValueError: A text is none, or empty; a rating is no finite number, or too large a one; or there are none.
        """
        text_column, rating_column = self.columns.values()
        rows = []
        for where, text, rating in records:
            rows.append(
                (
                    check_text(text, f"{where}: {text_column!r}"),
                    check_rating(rating, f"{where}: {rating_column!r}"),
                )
            )
        if not rows:
            raise ValueError(f"{source} has no texts")
        return rows


def files_of_splits(folder: Path, endings: Collection[str], besides: Path | None = None) -> dict[str, Path]:
    """The files of a folder that are named after splits, by split.

    Args:
        folder: The folder.
        endings: Endings of files that can be read. Other files with the name of a split are reported as left out.
        besides: A file that is not a split, whatever its name.
    """
    names = {}
    for file in sorted(folder.glob("*")):
        is_read, is_split = file.suffix.lower() in endings, split_named(file.name.partition(".")[0]) is not None
        if (is_read or is_split) and not (besides and file.resolve() == besides.resolve()):
            names[file.name] = file.stem if is_read else ""
    return {split: folder / name for split, name in by_split(names, str(folder)).items()}


def by_split(names: dict[str, str], where: str) -> dict[str, str]:
    """Choose a file, or a split on the hub, for each split; report what is left out on standard error.

    Args:
        names: The part of each name that may name a split: {"dev.csv": "dev"}.
        where: The folder or data set, for messages.

    Returns:
        Whole names by "train", "validation" and "test".

    Raises:
        ValueError: There are several names for a split.
    """
    found = {split: [whole for whole, name in names.items() if split_named(name) == split] for split in NAMES}
    for split, wholes in found.items():
        if len(wholes) > 1:
            raise ValueError(f"{where} has {quoted(wholes)}: keep one of them, since each could be the split {split!r}")
    chosen = {split: wholes[0] for split, wholes in found.items() if wholes}
    if left := sorted(names.keys() - chosen.values()):
        known = "; ".join(", ".join(names) for names in NAMES.values())
        rank_zero_only(print)(f"{where}: {quoted(left)} left out, since splits are named {known}", file=sys.stderr)
    return chosen


def split_named(name: str) -> str | None:
    """The split that a name stands for, if any."""
    return next((split for split, names in NAMES.items() if name.lower() in names), None)


def sha256(content: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def rule(tokens: str) -> str:
    """The rule that splits lines into words, a name in `SPLITTERS`.

    Raises:
        ValueError: There is no such option.
    """
    if tokens not in RULES:
        raise ValueError(f"tokens must be one of {quoted(RULES)}, got {tokens!r}")
    return RULES[tokens]
