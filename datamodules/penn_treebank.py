"""The Penn Treebank language-modelling corpus in Mikolov's preparation."""

import hashlib
import os
import sys
from itertools import chain
from pathlib import Path

import torch
from datasets import DownloadMode, config, load_dataset
from datasets.exceptions import DatasetNotFoundError, DatasetsError

from datamodules.checks import check_count
from datamodules.common import no_progress_bars, read_published
from datamodules.streams import TokenStreams

FILES = {"train": "ptb.train.txt", "validation": "ptb.valid.txt", "test": "ptb.test.txt"}
SHA256 = {
    "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "validation": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}
HUB_REPOSITORY = "ptb-text-only/ptb_text_only"
HUB_REVISION = "refs/convert/parquet"
DAMAGES = (ValueError, KeyError, OSError, DatasetsError)  # raised by a damaged cache, depending on where the damage is
WHERE_TO_GET_IT = (
    "Take the ptb.*.txt files of simple-examples.tgz (T. Mikolov's RNNLM toolkit), put them into a folder named ptb, "
    "and name the folder above it: data_dir in a configuration, DATA_DIR=... for make."
)


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
        self.folder = Path(os.path.expanduser(data_dir)) / "ptb"
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
        lines = {split: text.decode().splitlines() for split, text in load_texts(self.folder).items()}
        words = {split: list(chain.from_iterable([*line.split(), "<eos>"] for line in lines[split])) for split in FILES}
        self.vocabulary = list(dict.fromkeys(words["train"]))
        if len(self.vocabulary) != self.vocab_size:
            raise ValueError(
                f"vocab_size={self.vocab_size}, but the training text has {len(self.vocabulary)} word types: "
                f"set vocab_size={len(self.vocabulary)} for the data and for the model."
            )
        index = {word: i for i, word in enumerate(self.vocabulary)}
        self.ids = {split: torch.tensor([index[word] for word in words[split]]) for split in FILES}


def load_texts(folder: Path) -> dict[str, bytes]:
    """Load the splits "train", "validation" and "test", byte for byte the published files.

    Args:
        folder: Where the three files are; if there is no such folder, the hub is asked.

    Raises:
        FileNotFoundError: The folder exists, one of its files does not.
        ConnectionError: The folder does not exist and the hub cannot be reached.
        ValueError: The text is not the published one.
    """
    if folder.is_dir():
        return {split: read_published(folder / FILES[split], SHA256[split], WHERE_TO_GET_IT) for split in FILES}
    cache = Path(config.HF_DATASETS_CACHE) / HUB_REPOSITORY.replace("/", "___")
    try:
        return load_copy(DownloadMode.REUSE_DATASET_IF_EXISTS)
    except (ConnectionError, DatasetNotFoundError) as error:
        raise ConnectionError(
            f"There is no folder {folder.absolute()}, and {HUB_REPOSITORY} cannot be fetched from the "
            f"Hugging Face hub ({error}). {WHERE_TO_GET_IT}"
        ) from error
    except DAMAGES as error:
        problem = f"{HUB_REPOSITORY} in the cache, {cache}, is damaged or holds another text ({error})"
        print(f"{problem}: fetching it again.", file=sys.stderr, flush=True)
    try:
        return load_copy(DownloadMode.FORCE_REDOWNLOAD)
    except DAMAGES as error:
        raise ValueError(
            f"{problem}, and the hub does not deliver the published one ({error}). Delete that folder and try again "
            f"when the hub can be reached, or: {WHERE_TO_GET_IT}"
        ) from error


def load_copy(mode: DownloadMode) -> dict[str, bytes]:
    """Load the hub's copy of the three splits through the cache of `datasets`, and check its content.

    Offline, `datasets` serves any cached revision, so asking for one proves nothing.

    Raises:
        ConnectionError, DatasetNotFoundError: There is no copy, and the hub does not deliver one.
        One of `DAMAGES`: The copy is damaged, or holds another text.
    """
    with no_progress_bars():
        copy = load_dataset(HUB_REPOSITORY, revision=HUB_REVISION, download_mode=mode)
    texts = {}
    for split, sha256 in SHA256.items():
        copy[split].data.validate(full=True)  # reading a damaged table can end the process
        texts[split] = "".join(f" {' '.join(line.split())} \n" for line in copy[split]["sentence"]).encode()
        if (found := hashlib.sha256(texts[split]).hexdigest()) != sha256:
            raise ValueError(f"split {split} has SHA-256 {found}, but {sha256} is expected")
    return texts
