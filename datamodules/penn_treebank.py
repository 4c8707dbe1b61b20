"""The Penn Treebank language-modelling corpus in Mikolov's preparation."""

import sys
from itertools import chain
from pathlib import Path

import torch
from datasets import DatasetDict, load_dataset

from datamodules.checks import check_count
from datamodules.common import check_sha256, no_progress_bars
from datamodules.streams import TokenStreams

FILES = {"train": "ptb.train.txt", "validation": "ptb.valid.txt", "test": "ptb.test.txt"}
SHA256 = {
    "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "validation": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}
COUNTS = {"train": (42_068, 929_589), "validation": (3_370, 73_760), "test": (3_761, 82_430)}
HUB_REPOSITORY = "ptb-text-only/ptb_text_only"
HUB_REVISION = "refs/convert/parquet"
WHERE_TO_GET_IT = (
    "Take the ptb.*.txt files of simple-examples.tgz (T. Mikolov's RNNLM toolkit), put them into a folder named ptb, "
    "and name the folder above it: data_dir in a configuration, DATA_DIR=... for make."
)

Sentences = dict[str, list[list[str]]]
"""Words of each sentence of the splits "train", "validation" and "test", the final <eos> included."""


class PennTreebank(TokenStreams):
    """Penn Treebank with 10,000 word types; 929,589 training, 73,760 validation and 82,430 test tokens (protocol 1.1).

    Reads `ptb.{train,valid,test}.txt` below `data_dir/ptb`; if there is no such folder, the copy on the Hugging Face
    hub. Every end of line is a token <eos>; ids follow the first appearance in the training text. The batches are
    described in `TokenStreams`: 1,327 training windows for T = 35, 2,323 for T = 20, with B = 20.

    Args:
        data_dir: Folder that holds the folder `ptb`.
        batch_size: B, the number of streams over all processes.
        window: T, tokens of a window.
        vocab_size: Number of word types that the model is built for; checked against the text.
        train_eval_windows: Number of training windows on which the training error is evaluated after each epoch.
        sliding_test: Whether test words are also predicted from the `window` words before them alone.

    Raises (from `prepare_data` and `setup`):
        FileNotFoundError: The folder exists, one of its files does not.
        ConnectionError: The folder does not exist and the hub cannot be reached.
        ValueError: The text is not the published one, or has another number of types than `vocab_size`.
    """

    def __init__(
        self,
        data_dir: str | Path = "data",
        batch_size: int = 20,
        window: int = 35,
        vocab_size: int = 10_000,
        train_eval_windows: int = 0,
        sliding_test: bool = False,
    ) -> None:
        super().__init__(batch_size, window, train_eval_windows, sliding_test)
        self.folder = Path(data_dir) / "ptb"
        [self.vocab_size] = check_count(1, vocab_size=vocab_size)

    @property
    def corpus(self) -> tuple[str, dict[str, str]]:
        """Name of the corpus, and the SHA-256 of its published files."""
        return "penn-treebank", {name: SHA256[split] for split, name in FILES.items()}

    def prepare_data(self) -> None:
        """Fetch the corpus into the cache of `datasets`, so that the other processes find it there."""
        if not self.folder.is_dir():
            asked = f"There is no folder {self.folder.absolute()}: asking the Hugging Face hub for {HUB_REPOSITORY}."
            print(asked, file=sys.stderr, flush=True)
        load_texts(self.folder)

    def build(self) -> None:
        """Read, check and encode the text."""
        texts = load_texts(self.folder)
        sentences = {split: [[*line.split(), "<eos>"] for line in texts[split]["text"]] for split in FILES}
        check_counts(sentences, COUNTS)
        words = {split: list(chain.from_iterable(sentences[split])) for split in FILES}
        self.vocabulary = list(dict.fromkeys(words["train"]))
        if len(self.vocabulary) != self.vocab_size:
            raise ValueError(
                f"vocab_size={self.vocab_size}, but the training text has {len(self.vocabulary)} word types: "
                f"set vocab_size={len(self.vocabulary)} for the data and for the model."
            )
        index = {word: i for i, word in enumerate(self.vocabulary)}
        self.ids = {split: torch.tensor([index[word] for word in words[split]]) for split in FILES}


def load_texts(folder: Path) -> DatasetDict:
    """Load the splits "train", "validation" and "test", each with the column "text", one sentence a row.

    Args:
        folder: Where the three files are; if there is no such folder, the hub is asked.

    Raises:
        FileNotFoundError: The folder exists, one of its files does not.
        ConnectionError: The folder does not exist and the hub cannot be reached.
        ValueError: A file is not the published one.
    """
    with no_progress_bars():
        if folder.is_dir():
            for split, name in FILES.items():
                check_sha256(folder / name, SHA256[split], WHERE_TO_GET_IT)
            # Not load_dataset: even for local files it asks a server to count the download, which can take seconds.
            return DatasetDict.from_text({split: str(folder / name) for split, name in FILES.items()})
        try:
            return load_dataset(HUB_REPOSITORY, revision=HUB_REVISION).rename_column("sentence", "text")
        except OSError as error:
            raise ConnectionError(
                f"There is no folder {folder.absolute()}, and {HUB_REPOSITORY} cannot be fetched from the "
                f"Hugging Face hub ({error}). {WHERE_TO_GET_IT}"
            ) from error


def check_counts(sentences: Sentences, expected: dict[str, tuple[int, int]]) -> None:
    """Check the size of a text whose files cannot be checked: offline, `datasets` serves any cached revision.

    Args:
        sentences: The text.
        expected: Number of sentences and of tokens with <eos>, by split.

    Raises:
        ValueError: A split has other numbers, or a word that the training text has not.
    """
    training_words = set(chain.from_iterable(sentences["train"]))
    for split, (num_sentences, num_tokens) in expected.items():
        found = len(sentences[split]), sum(map(len, sentences[split]))
        if found != (num_sentences, num_tokens):
            raise ValueError(
                f"The Penn Treebank's {split} text has {found[0]:,} sentences and {found[1]:,} tokens with <eos>, "
                f"but {num_sentences:,} and {num_tokens:,} are expected. {WHERE_TO_GET_IT}"
            )
        if unknown := set(chain.from_iterable(sentences[split])) - training_words:
            raise ValueError(
                f"The Penn Treebank's {split} text has {len(unknown)} words that its training text has not, "
                f"{min(unknown)!r} for one. {WHERE_TO_GET_IT}"
            )
