"""Film reviews with ratings: the scale data set v1.0 of Pang & Lee (2005), prepared as for the paper."""

import os
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, DownloadConfig, DownloadManager

from datamodules.checks import check_count, check_number
from datamodules.common import check_content, no_progress_bars, read_archive, read_published
from datamodules.rated_sequences import RatedSequences, cut, encode, rank_words
from datamodules.reader import SPECIAL_WORDS
from datamodules.words import review_words

ARCHIVE = "https://www.cs.cornell.edu/people/pabo/movie-review-data/scale_data.tar.gz"
ROOT = "scaledata"  # folder, in the archive too
SHA256 = {  # In the order in which the published code reads the authors.
    "Dennis+Schwartz/subj.Dennis+Schwartz": "cb26f952c091c510c786627a45a5af3fb5c87a986f9aa3eb7eef6e4ed1797a02",
    "Dennis+Schwartz/rating.Dennis+Schwartz": "b9057227d5b1324f49d5f402f1cad0ae472f3d130f35a24a5334ab7db6726be7",
    "James+Berardinelli/subj.James+Berardinelli": "1b612ca24494cc675f5e58c1fc320501446da2ed2520a00edb3522b565640658",
    "James+Berardinelli/rating.James+Berardinelli": "91abefa233432a2b92a82e0cb40706bd38e48e1ce4165e7a16584a6ec1dd8ed0",
    "Scott+Renshaw/subj.Scott+Renshaw": "c1b0b7b80fa4161053fee1125e7fb7bfba987fcfa08a8ab525504eff4c988cec",
    "Scott+Renshaw/rating.Scott+Renshaw": "cbe4f07da184e0c68a1051503c91c2474bb23c8d6b433e57d99dc2a8ae43760c",
    "Steve+Rhodes/subj.Steve+Rhodes": "33ef24625d183f6f9ecf03f356e055e9ff998ac7773f48939a364e9900bbf10a",
    "Steve+Rhodes/rating.Steve+Rhodes": "bbbe28efbe998827cfe2737a25d19977091a2deea141461eb8e241ce6f5bc03d",
}
WHERE_TO_GET_IT = (
    f"Take {ARCHIVE}, unpack it into a folder named film_reviews, "
    "and name the folder above it: data_dir in a configuration, DATA_DIR=... for make."
)


class FilmReviews(RatedSequences):
    """5,006 film reviews rated from 0 to 1, cut into 10,620 training and 2,655 test chunks (protocol 2.1).

    Reads `data_dir/film_reviews/scaledata`; if there is no folder `film_reviews`, the published archive. Reviews are
    lower-cased, split at blanks, end with a newline token, and are shuffled; the training chunks are the first 80 %
    of the chunks, so that one review at the cut is in both parts. Every chunk has the rating of its review. There is no
    validation set, as in the paper, unless `validation_share` takes one from the training reviews.

    Word ids: 0 pads, 1 starts a review, 2 is any rare word, 4 is the most frequent word (counted in all reviews), 5 the
    next one, and so on. As in the published code the last three of `vocab_size` ids are never used: 19,996 words are
    kept.

    The batches are described in `RatedSequences`: 83 training steps per epoch.

    Args:
        data_dir: Folder that holds the folder `film_reviews`.
        batch_size: B in training, over all processes.
        eval_batch_size: B in evaluation, over all processes.
        chunk_length: T, words of a chunk.
        vocab_size: Number of embedding rows of the model.
        split_seed: Seed of the shuffle of the reviews before the split.
        validation_share: Share of the training reviews, the first of them, that are not trained on but are the split
            "validation".
        train_eval_chunks: Number of training chunks on which the training error is evaluated.

    Raises (from `prepare_data` and `setup`):
        FileNotFoundError: The folder lacks a file.
        ConnectionError: The folder does not exist and the archive cannot be fetched.
        ValueError: A file is not the published one, or validation_share holds out nothing or everything. (A share that
            is not in [0, 1) is refused by the constructor.)
    """

    tokens = "reviews"

    def __init__(
        self,
        data_dir: str | Path = "data",
        batch_size: int = 128,
        eval_batch_size: int = 500,
        chunk_length: int = 200,
        vocab_size: int = 20_003,
        split_seed: int = 0,
        validation_share: float = 0.0,
        train_eval_chunks: int = 100,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, train_eval_chunks)
        self.folder = Path(os.path.expanduser(data_dir)) / "film_reviews"
        [self.chunk_length] = check_count(1, chunk_length=chunk_length)
        [self.vocab_size] = check_count(len(SPECIAL_WORDS) + 4, vocab_size=vocab_size)  # a word, and three never used
        [self.split_seed] = check_count(0, 2**32 - 1, split_seed=split_seed)  # numpy's
        [self.validation_share] = check_number(0, below=1, validation_share=validation_share)

    @property
    def corpus(self) -> tuple[str, dict[str, str]]:
        """Name of the corpus, and the SHA-256 of its published files."""
        return "film-reviews", SHA256

    def prepare_data(self) -> None:
        """Fetch the corpus into the cache of `datasets`, so that the other processes find it there."""
        load_reviews(self.folder)

    def build(self) -> None:
        """Read, check, shuffle, encode and cut the reviews."""
        self.texts = load_reviews(self.folder)
        reviews = [review_words(text) for text in self.texts["text"]]
        self.vocabulary = rank_words(reviews, self.vocab_size - 3)
        ids = encode(reviews, self.vocabulary)
        # NumPy's legacy generator, because the published split was drawn from it.
        order = np.random.RandomState(self.split_seed).permutation(len(ids)).tolist()
        ratings = self.texts["rating"][order]
        chunks = cut([ids[review] for review in order], ratings, order, self.chunk_length)
        num_train = len(chunks) * 4 // 5
        train, test = chunks.take(num_train), chunks.skip(num_train)
        self.chunks = DatasetDict(train=train, test=test)
        if self.validation_share:
            reviews = list(dict.fromkeys(train["review"]))  # in the order of their chunks
            held_out = round(self.validation_share * len(reviews))
            if not 0 < held_out < len(reviews):
                raise ValueError(
                    f"validation_share={self.validation_share} of {len(reviews)} training reviews are {held_out}: "
                    "some must be held out, and some be left"
                )
            first = train["review"].index(reviews[held_out])
            self.chunks = DatasetDict(train=train.skip(first), validation=train.take(first), test=test)


def load_reviews(folder: Path) -> Dataset:
    """Load the reviews in the published order, with the columns "text" and "rating".

    Args:
        folder: Where the folder `scaledata` is; if there is no such folder, the archive is fetched.

    Raises:
        FileNotFoundError: The folder lacks a file.
        ConnectionError: The folder does not exist and the archive cannot be fetched.
        ValueError: A file is not the published one, or the archive is damaged.
    """
    if folder.is_dir():
        contents = {
            name: read_published(folder / ROOT / name, sha256, WHERE_TO_GET_IT) for name, sha256 in SHA256.items()
        }
    else:
        archive = fetch_archive(folder)
        members = read_archive(archive, [f"{ROOT}/{name}" for name in SHA256], f"Delete it. {WHERE_TO_GET_IT}")
        contents = {name: members[f"{ROOT}/{name}"] for name in SHA256}
        for name, sha256 in SHA256.items():
            check_content(contents[name], f"{name} in {archive}", sha256, WHERE_TO_GET_IT)
    # A strict encoding, so that str.lower changes nothing but ASCII letters, as the published code does.
    texts, ratings = (
        [line for name in SHA256 if f"/{kind}." in name for line in contents[name].decode("ascii").splitlines()]
        for kind in ("subj", "rating")
    )
    return Dataset.from_dict({"text": texts, "rating": [float(rating) for rating in ratings]})


def fetch_archive(folder: Path) -> Path:
    """Fetch the published archive, once, into the cache of `datasets`.

    Args:
        folder: Where the data set has not been found; for the error message.

    Raises:
        ConnectionError: The archive cannot be fetched.
    """
    try:
        # Without ETag the network is asked only once: later runs, and the other processes, find the copy.
        with no_progress_bars():
            return Path(DownloadManager(download_config=DownloadConfig(use_etag=False)).download(ARCHIVE))
    except OSError as error:
        raise ConnectionError(
            f"There is no folder {folder.absolute()}, and {ARCHIVE} cannot be fetched ({error}). {WHERE_TO_GET_IT}"
        ) from error
