"""The demo corpus: 10,605 short film reviews with ratings, small and free to fetch (Hutto & Gilbert, ICWSM 2014)."""

import csv
import io
import os
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path

from datasets import Dataset

from datamodules.checks import check_count
from datamodules.common import check_content, read_archive, read_published
from datamodules.rated_sequences import RatedSequences, cut, encode, rank_words
from datamodules.reader import EOS, SPECIAL_WORDS
from datamodules.streams import TokenStreams, encode_stream, frequent_words
from datamodules.words import simple_words

PACKAGE = "vaderSentiment"
VERSION = "3.3.2"
ARCHIVE = "hutto_ICWSM_2014"
FILE = "movieReviewSnippets_GroundTruth.txt"
SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
SPLIT_SEED = 0
WHERE_TO_GET_IT = (
    f"It is in additional_resources/{ARCHIVE}.tar.gz of the source distribution of {PACKAGE} {VERSION} on PyPI."
)


class SnippetLanguage(TokenStreams):
    """Language modelling of the snippets, for demonstrations: a small stand-in for `PennTreebank`.

    80 % of the snippets are the training text; the others are both the validation text (B streams) and the test text
    (one stream). Every snippet ends with the token <eos>. The batches are described in `TokenStreams`.

    Args:
        data_dir: Folder that holds, or shall hold, the folder `snippets`.
        batch_size: B, the number of streams over all processes.
        window: T, tokens of a window.
        vocab_size: Number of word types that the model is built for: <unk>, <eos> and the most frequent words.
        train_eval_windows: Number of training windows on which the training error is evaluated after each epoch.

    Raises (from `prepare_data` and `setup`):
        ConnectionError: The corpus is not there and cannot be fetched.
        ValueError: The file is not the published one, or has fewer words than `vocab_size`.
    """

    tokens = "words"

    def __init__(
        self,
        data_dir: str | Path = "data",
        batch_size: int = 20,
        window: int = 35,
        vocab_size: int = 5000,
        train_eval_windows: int = 0,
    ) -> None:
        super().__init__(batch_size, window, train_eval_windows)
        self.folder = Path(os.path.expanduser(data_dir)) / "snippets"
        [self.vocab_size] = check_count(3, vocab_size=vocab_size)  # <unk>, <eos>, and a word

    @property
    def corpus(self) -> tuple[str, dict[str, str]]:
        """Name of the corpus, and the SHA-256 of its published file."""
        return "snippets", {FILE: SHA256}

    def prepare_data(self) -> None:
        """Fetch the corpus unless it is there."""
        fetch_snippets(self.folder)

    def build(self) -> None:
        """Read, split and encode the snippets."""
        parts = split_snippets(load_snippets(self.folder))
        words = {
            split: list(chain.from_iterable([*simple_words(text), EOS] for text in part["text"]))
            for split, part in parts.items()
        }
        self.vocabulary = frequent_words(words["train"], self.vocab_size, "the text of the training snippets")
        ids = {split: encode_stream(words[split], self.vocabulary) for split in words}
        self.ids = {"train": ids["train"], "validation": ids["test"], "test": ids["test"]}


class SnippetRatings(RatedSequences):
    """Ratings of the snippets, from -4 to 4, for demonstrations: a small stand-in for `FilmReviews`.

    80 % of the snippets are for training, the others for the test. A snippet is its first `length` ids, the start id
    included. Word ids are as in `FilmReviews`, but words are counted in the training snippets only, and all ids are
    in use. The batches are described in `RatedSequences`.

    Args:
        data_dir: Folder that holds, or shall hold, the folder `snippets`.
        batch_size: B in training, over all processes.
        eval_batch_size: B in evaluation, over all processes.
        length: T, words of a snippet.
        vocab_size: Number of embedding rows of the model.
        train_eval_chunks: Number of training snippets on which the training error is evaluated.

    Raises (from `prepare_data` and `setup`):
        ConnectionError: The corpus is not there and cannot be fetched.
        ValueError: The file is not the published one.
    """

    def __init__(
        self,
        data_dir: str | Path = "data",
        batch_size: int = 64,
        eval_batch_size: int = 500,
        length: int = 40,
        vocab_size: int = 5000,
        train_eval_chunks: int = 500,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, train_eval_chunks)
        self.folder = Path(os.path.expanduser(data_dir)) / "snippets"
        [self.chunk_length] = check_count(1, length=length)
        [self.vocab_size] = check_count(len(SPECIAL_WORDS) + 1, vocab_size=vocab_size)

    @property
    def corpus(self) -> tuple[str, dict[str, str]]:
        """Name of the corpus, and the SHA-256 of its published file."""
        return "snippets", {FILE: SHA256}

    def prepare_data(self) -> None:
        """Fetch the corpus unless it is there."""
        fetch_snippets(self.folder)

    def build(self) -> None:
        """Read, split, encode and truncate the snippets."""
        self.texts = load_snippets(self.folder)
        parts = split_snippets(self.texts)
        words = {split: [simple_words(text) for text in part["text"]] for split, part in parts.items()}
        self.vocabulary = rank_words(words["train"], self.vocab_size)
        for split, part in parts.items():
            ids = [snippet[: self.chunk_length] for snippet in encode(words[split], self.vocabulary)]
            self.chunks[split] = cut(ids, part["rating"], part["review"], self.chunk_length)


def fetch_snippets(folder: Path) -> bytes:
    """Read the file of snippets; fetch it with pip, once, out of the source distribution of vaderSentiment.

    Args:
        folder: Where the file is kept.

    Returns:
        Its content: id, mean rating and text of a snippet per line, separated by tabs.

    Raises:
        ConnectionError: pip cannot fetch the distribution. Nothing is left behind.
        ValueError: The file is not the published one.
    """
    file = folder / FILE
    if file.exists():
        return read_published(file, SHA256, f"Delete it, so that it is fetched anew. {WHERE_TO_GET_IT}")
    folder.mkdir(parents=True, exist_ok=True)
    # Inside the folder, so that the last step is a rename within one file system: a reader never sees half a file.
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", PACKAGE, "--dest", temporary, f"{PACKAGE}=={VERSION}"]
        pip = subprocess.run(command, capture_output=True, text=True)
        if pip.returncode:
            raise ConnectionError(
                f"{file.absolute()} does not exist, and pip cannot fetch it: {pip.stderr.strip()}\n{WHERE_TO_GET_IT}"
            )
        inner = f"{PACKAGE}-{VERSION}/additional_resources/{ARCHIVE}.tar.gz"
        distribution = Path(temporary) / f"{PACKAGE}-{VERSION}.tar.gz"
        archive = Path(temporary) / f"{ARCHIVE}.tar.gz"
        archive.write_bytes(read_archive(distribution, [inner], WHERE_TO_GET_IT)[inner])
        [content] = read_archive(archive, [f"{ARCHIVE}/{FILE}"], WHERE_TO_GET_IT).values()
        check_content(content, f"{FILE} in {inner}", SHA256, WHERE_TO_GET_IT)
        fetched = Path(temporary) / FILE
        fetched.write_bytes(content)
        os.replace(fetched, file)
    return content


def load_snippets(folder: Path) -> Dataset:
    """Load the snippets, with the columns "text" and "rating"; fetch them unless they are there."""
    lines = csv.reader(io.StringIO(fetch_snippets(folder).decode(), newline=""), "excel-tab", quoting=csv.QUOTE_NONE)
    ratings, texts = zip(*((float(rating), text) for _, rating, text in lines), strict=True)
    return Dataset.from_dict({"text": texts, "rating": ratings})


def split_snippets(snippets: Dataset) -> dict[str, dict[str, list]]:
    """Split the snippets at random, always alike, into 80 % "train" and 20 % "test".

    Args:
        snippets: Dataset with the columns "text" and "rating".

    Returns:
        Columns of both parts: "text", "rating", and "review", the row of `snippets`.
    """
    numbered = snippets.add_column("review", range(len(snippets)))
    parts = numbered.train_test_split(test_size=0.2, seed=SPLIT_SEED)
    return {split: part[:] for split, part in parts.items()}
