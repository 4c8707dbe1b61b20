import hashlib
import math
import tarfile
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from datamodules import FilmReviews, film_reviews
from datamodules.rated_sequences import SharedBatches
from datamodules.words import review_words

AUTHORS = ["Dennis+Schwartz", "James+Berardinelli", "Scott+Renshaw", "Steve+Rhodes"]
WORDS = [
    "the",
    "plot",
    "of",
    "this",
    "film",
    "is",
    "not",
    "as",
    "good",
    "as",
    "the",
    "last",
    "one",
    "but",
    "good",
    "fun",
]


@pytest.fixture
def few_reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with five reviews of each author, of 1, 2, ... 20 words, rated 0.05, 0.1, ... 1."""
    hashes = {}
    for number, author in enumerate(AUTHORS):
        folder = tmp_path / "film_reviews" / "scaledata" / author
        folder.mkdir(parents=True)
        lengths = range(5 * number + 1, 5 * number + 6)
        contents = {
            "subj": "".join(" ".join((WORDS * 2)[:length]) + " \n" for length in lengths),
            "rating": "".join(f"{length / 20}\n" for length in lengths),
        }
        for kind, content in contents.items():
            (folder / f"{kind}.{author}").write_text(content)
            hashes[f"{author}/{kind}.{author}"] = hashlib.sha256(content.encode()).hexdigest()
    monkeypatch.setattr(film_reviews, "SHA256", hashes)
    return tmp_path


@pytest.fixture
def datamodule(few_reviews: Path) -> FilmReviews:
    datamodule = FilmReviews(
        few_reviews, batch_size=4, eval_batch_size=5, chunk_length=6, vocab_size=14, train_eval_chunks=7
    )
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


@pytest.fixture(scope="module")
def published(real_corpus: Callable[[str], Path]) -> FilmReviews:
    datamodule = FilmReviews(real_corpus("film_reviews"))
    datamodule.setup()
    return datamodule


@pytest.fixture
def with_validation(few_reviews: Path) -> FilmReviews:
    datamodule = FilmReviews(few_reviews, 4, 5, chunk_length=6, vocab_size=14, validation_share=0.2)
    datamodule.setup()
    return datamodule


def served(loader: DataLoader) -> list[torch.Tensor]:
    """Everything that a loader serves: words [N, T], ratings [N], reviews [N]."""
    words, ratings, reviews = zip(*loader, strict=True)
    return [torch.cat(words, dim=1).T, torch.cat(ratings), torch.cat(reviews)]


def columns(*chunks: Dataset) -> list[torch.Tensor]:
    """What a loader of these chunks should serve."""
    parts = [
        (torch.tensor(c["words"]), torch.tensor(c["rating"], dtype=torch.double), torch.tensor(c["review"]))
        for c in chunks
    ]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def words_of(datamodule: FilmReviews, split: str) -> torch.Tensor:
    return torch.tensor(datamodule.chunks[split]["words"])


def test_tokens_are_lower_case_words_and_a_newline() -> None:
    assert review_words("A  film , that's it . ") == ["a", "film", ",", "that's", "it", ".", "\n"]


def test_reviews_keep_the_published_order(datamodule: FilmReviews) -> None:
    assert list(datamodule.texts["rating"]) == [length / 20 for length in range(1, 21)]
    assert datamodule.texts[2]["text"].split() == WORDS[:3]


def test_frequent_words_get_small_ids_and_ties_go_to_the_first_seen(datamodule: FilmReviews) -> None:
    special, words = datamodule.vocabulary[:4], datamodule.vocabulary[4:]
    assert special == ["<pad>", "<start>", "<unk>", "<unused>"]
    # Counts: the 34, as 24, plot 22, of 20, newline 20, good 18, this 18.
    assert words == ["the", "as", "plot", "\n", "of", "this", "good"]


def test_reviews_are_cut_into_chunks_that_inherit_the_rating(datamodule: FilmReviews) -> None:
    chunks = [*datamodule.chunks["train"], *datamodule.chunks["test"]]
    seen: list[int] = []
    for review in dict.fromkeys(chunk["review"] for chunk in chunks):
        parts = [chunk for chunk in chunks if chunk["review"] == review]
        ids = [i for part in parts for i in part["words"] if i != 0]
        # Start, the words, and the newline.
        assert len(ids) == review + 3
        assert ids[0] == 1
        assert ids[-1] == datamodule.vocabulary.index("\n")
        assert {part["rating"] for part in parts} == {(review + 1) / 20}
        assert all(len(part["words"]) == 6 for part in parts)
        seen.append(review)
    assert seen == np.random.RandomState(0).permutation(20).tolist()


def test_pads_stand_in_front(datamodule: FilmReviews) -> None:
    words = words_of(datamodule, "train")
    assert (words == 0).any()
    assert ((words[:, 1:] == 0) <= (words[:, :-1] == 0)).all()


def test_first_four_fifths_of_the_chunks_are_for_training(datamodule: FilmReviews) -> None:
    total = sum(-(-(length + 2) // 6) for length in range(1, 21))
    assert (len(datamodule.chunks["train"]), len(datamodule.chunks["test"])) == (total * 4 // 5, total - total * 4 // 5)


def test_another_split_seed_gives_another_split(few_reviews: Path, datamodule: FilmReviews) -> None:
    other = FilmReviews(few_reviews, chunk_length=6, split_seed=1)
    other.setup()
    assert set(other.chunks["test"]["review"]) != set(datamodule.chunks["test"]["review"])


def test_batches_are_time_first_with_raw_ratings_and_the_number_of_the_review(datamodule: FilmReviews) -> None:
    words, ratings, reviews = next(iter(datamodule.predict_dataloader()))
    assert words.shape == (6, 5)
    assert words.is_contiguous()
    assert words.dtype == torch.long
    assert torch.equal(words.T, words_of(datamodule, "test")[:5])
    assert ratings.dtype == torch.double
    assert ratings.tolist() == pytest.approx(datamodule.chunks["test"]["rating"][:5])
    assert reviews.tolist() == datamodule.chunks["test"]["review"][:5]
    assert ratings.tolist() == pytest.approx([datamodule.texts["rating"][review] for review in reviews.tolist()])


def test_training_order_is_drawn_anew_each_epoch_from_the_seed(
    datamodule: FilmReviews, monkeypatch: pytest.MonkeyPatch
) -> None:
    def order(seed: str, epoch: int) -> tuple[float, ...]:
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        loader = datamodule.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return tuple(served(loader)[1].tolist())

    orders = [order(seed, epoch) for seed in ("1", "2") for epoch in (0, 1, 2)]
    assert len(set(orders)) == 6
    assert order("2", 1) == orders[4]
    for one in orders:
        assert sorted(one) == pytest.approx(sorted(datamodule.chunks["train"]["rating"]))


def test_last_smaller_training_batch_is_kept(datamodule: FilmReviews) -> None:
    datamodule.chunks["train"] = datamodule.chunks["train"].take(10)
    assert [len(ratings) for _, ratings, _ in datamodule.train_dataloader()] == [4, 4, 2]


def test_words_ratings_and_reviews_are_shuffled_together(datamodule: FilmReviews) -> None:
    def rows(words: torch.Tensor, ratings: torch.Tensor, reviews: torch.Tensor) -> list[tuple]:
        return sorted(zip(words.tolist(), ratings.tolist(), reviews.tolist(), strict=True))

    assert rows(*served(datamodule.train_dataloader())) == rows(*columns(datamodule.chunks["train"]))


def test_validation_serves_the_test_chunks_and_then_the_first_training_chunks(datamodule: FilmReviews) -> None:
    test, train = map(served, datamodule.val_dataloader())
    torch.testing.assert_close(test, columns(datamodule.chunks["test"]))
    torch.testing.assert_close(train, [column[:7] for column in columns(datamodule.chunks["train"])])


def test_the_test_serves_the_test_chunks_and_then_all_training_chunks(datamodule: FilmReviews) -> None:
    test, train = map(served, datamodule.test_dataloader())
    torch.testing.assert_close(test, columns(datamodule.chunks["test"]))
    torch.testing.assert_close(train, columns(datamodule.chunks["train"]))


# --- a validation set -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_validation_share_takes_whole_reviews_the_first_of_the_training_reviews(
    share: float, few_reviews: Path, datamodule: FilmReviews
) -> None:
    split = FilmReviews(few_reviews, chunk_length=6, vocab_size=14, validation_share=share)
    split.setup()
    before = list(dict.fromkeys(datamodule.chunks["train"]["review"]))
    number = len(set(split.chunks["validation"]["review"]))
    assert number == round(share * len(before)) > 0
    assert set(split.chunks["validation"]["review"]) == set(before[:number])
    assert set(split.chunks["train"]["review"]) == set(before[number:])


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_validation_share_loses_no_chunk_changes_none_and_leaves_the_test_alone(
    share: float, few_reviews: Path, datamodule: FilmReviews
) -> None:
    split = FilmReviews(few_reviews, chunk_length=6, vocab_size=14, validation_share=share)
    split.setup()
    together = columns(split.chunks["validation"], split.chunks["train"])
    torch.testing.assert_close(together, columns(datamodule.chunks["train"]))
    torch.testing.assert_close(columns(split.chunks["test"]), columns(datamodule.chunks["test"]))
    assert split.vocabulary == datamodule.vocabulary


def test_without_a_validation_share_there_is_no_such_split(datamodule: FilmReviews) -> None:
    assert datamodule.chunks.keys() == {"train", "test"}


def test_the_validation_chunks_are_served_last_in_validation_and_test_and_never_trained_on(
    with_validation: FilmReviews,
) -> None:
    with_validation.train_eval_chunks = 7
    chunks = with_validation.chunks
    for loaders, train in (
        (with_validation.val_dataloader(), chunks["train"].take(7)),
        (with_validation.test_dataloader(), chunks["train"]),
    ):
        for loader, expected in zip(loaders, (chunks["test"], train, chunks["validation"]), strict=True):
            torch.testing.assert_close(served(loader), columns(expected))
    _, _, trained_on = served(with_validation.train_dataloader())
    assert sorted(trained_on.tolist()) == sorted(chunks["train"]["review"])
    assert not set(trained_on.tolist()) & set(chunks["validation"]["review"])


def test_rating_mean_and_std_are_those_of_the_chunks_that_are_left_for_training(
    with_validation: FilmReviews, datamodule: FilmReviews
) -> None:
    ratings = torch.tensor(with_validation.chunks["train"]["rating"], dtype=torch.float64)
    assert with_validation.rating_mean == pytest.approx(ratings.mean().item())
    assert with_validation.rating_std == pytest.approx(ratings.std(correction=0).item())
    assert with_validation.rating_mean != pytest.approx(datamodule.rating_mean)


@pytest.mark.parametrize("share", [-0.1, 1.0, 20, math.nan])
def test_a_validation_share_that_is_no_share_or_leaves_nothing_is_refused_with_its_range(share: float) -> None:
    with pytest.raises(ValueError, match=f"validation_share must be .*, got {share}"):
        FilmReviews(validation_share=share)


# --- statistics and processes -----------------------------------------------------------------------------------------


def test_rating_mean_and_std_are_those_of_the_training_chunks(datamodule: FilmReviews) -> None:
    ratings = torch.tensor(datamodule.chunks["train"]["rating"], dtype=torch.float64)
    assert datamodule.rating_mean == pytest.approx(ratings.mean().item())
    assert datamodule.rating_std == pytest.approx(ratings.std(correction=0).item())


@pytest.mark.parametrize("loaders_of", [FilmReviews.val_dataloader, FilmReviews.test_dataloader])
def test_processes_evaluate_every_chunk_exactly_once(
    loaders_of: Callable[..., list[DataLoader]], with_validation: FilmReviews, as_rank: Callable
) -> None:
    def rows(index: int) -> list[tuple]:
        words, ratings, reviews = served(loaders_of(with_validation)[index])
        return [*zip(words.tolist(), ratings.tolist(), reviews.tolist(), strict=True)]

    with_validation.train_eval_chunks = 7
    with_validation.eval_batch_size = 1000  # of a smaller one too little for three might be left
    uneven = 0
    for index in range(3):
        shares = []
        for rank in range(3):
            as_rank(with_validation, rank, 3)
            shares.append(rows(index))
        with_validation.trainer = None
        uneven += len({len(share) for share in shares}) > 1
        assert sorted(row for share in shares for row in share) == sorted(rows(index))
    assert uneven


def test_processes_share_every_training_batch(datamodule: FilmReviews, as_rank: Callable) -> None:
    datamodule.chunks["train"] = datamodule.chunks["train"].take(38)
    shares = []
    for rank in range(2):
        as_rank(datamodule, rank, 2)
        torch.manual_seed(rank)  # The partition must not depend on what a process has drawn.
        shares.append([ratings for _, ratings, _ in datamodule.train_dataloader()])
    assert [len(ratings) for ratings in shares[0]] == [len(ratings) for ratings in shares[1]] == [2] * 9 + [1]
    together = torch.cat([*shares[0], *shares[1]]).tolist()
    assert sorted(together) == pytest.approx(sorted(datamodule.chunks["train"]["rating"]))


@given(
    length=st.integers(1, 50),
    batch_size=st.integers(1, 12),
    world_size=st.integers(1, 5),
    parts=st.integers(1, 3),
    seed=st.none() | st.integers(0, 3),
)
def test_any_number_of_processes_and_parts_makes_the_batches_of_one_or_is_refused(
    length: int, batch_size: int, world_size: int, parts: int, seed: int | None
) -> None:
    batches = list(SharedBatches(length, batch_size, seed=seed))
    assert sorted(index for batch in batches for index in batch) == list(range(length))
    if min(map(len, batches)) < world_size * parts:
        with pytest.raises(ValueError, match="too few for"):
            SharedBatches(length, batch_size, 0, world_size, seed, parts)
        return
    shares = [list(SharedBatches(length, batch_size, rank, world_size, seed, parts)) for rank in range(world_size)]
    for number, batch in enumerate(batches):
        taken = [share[number * parts : (number + 1) * parts] for share in shares]
        assert [index for share in taken for part in share for index in part] == batch


def test_batch_with_fewer_sequences_than_processes_raises(datamodule: FilmReviews, as_rank: Callable) -> None:
    datamodule.chunks["train"] = datamodule.chunks["train"].take(10)
    as_rank(datamodule, 0, 3)
    with pytest.raises(ValueError, match=r"10 sequences in batches of 4 leave one of 2, too few for 3 processes"):
        datamodule.train_dataloader()


@pytest.mark.parametrize(("world_size", "parts"), [(1, 1), (2, 1), (3, 1), (1, 2), (1, 3)])
def test_parts_of_all_processes_are_the_batches_of_one(world_size: int, parts: int) -> None:
    whole = [*SharedBatches(23, 5, seed=4)]
    batches: list[list[int]] = [[] for _ in whole]
    places: list[list[int]] = [[] for _ in whole]
    for rank in range(world_size):
        shared = SharedBatches(23, 5, rank, world_size, 4, parts)
        assert len(shared) == len(whole) * parts
        for index, part in enumerate(shared):
            batches[index // parts] += part
            own, size = shared.place(index)
            assert size == len(whole[index // parts])
            places[index // parts] += range(size)[own]
    assert batches == whole
    assert places == [list(range(len(batch))) for batch in whole]
    assert sorted(i for batch in whole for i in batch) == list(range(23))
    assert [len(batch) for batch in whole] == [5, 5, 5, 5, 3]


def test_altered_file_is_named(few_reviews: Path) -> None:
    (few_reviews / "film_reviews/scaledata/Scott+Renshaw/rating.Scott+Renshaw").write_text("1\n" * 5)
    with pytest.raises(ValueError, match=r"rating\.Scott\+Renshaw has SHA-256"):
        FilmReviews(few_reviews).setup()


def test_missing_file_is_named(few_reviews: Path) -> None:
    (few_reviews / "film_reviews/scaledata/Steve+Rhodes/subj.Steve+Rhodes").unlink()
    with pytest.raises(FileNotFoundError, match=r"subj\.Steve\+Rhodes does not exist.*scale_data\.tar\.gz"):
        FilmReviews(few_reviews).setup()


def test_archive_is_fetched_once_when_there_is_no_folder(few_reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(few_reviews / "scale_data.tar.gz", "w:gz") as archive:
        archive.add(few_reviews / "film_reviews" / "scaledata", "scaledata")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(few_reviews)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(film_reviews, "ARCHIVE", f"http://127.0.0.1:{server.server_port}/scale_data.tar.gz")
    FilmReviews(few_reviews / "absent").prepare_data()
    server.shutdown()
    server.server_close()
    datamodule = FilmReviews(few_reviews / "absent", chunk_length=6)
    datamodule.setup()
    assert len(datamodule.texts) == 20


def test_a_fetched_archive_with_another_content_is_named(
    few_reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    altered = few_reviews / "film_reviews/scaledata/Steve+Rhodes/subj.Steve+Rhodes"
    altered.write_text("other\n" * 5)
    with tarfile.open(tmp_path / "fetched", "w:gz") as archive:
        archive.add(few_reviews / "film_reviews" / "scaledata", "scaledata")
    monkeypatch.setattr(film_reviews, "fetch_archive", lambda _: tmp_path / "fetched")
    with pytest.raises(ValueError, match=rf"subj\.Steve\+Rhodes in {tmp_path}/fetched has SHA-256"):
        FilmReviews(tmp_path / "absent").prepare_data()
    (tmp_path / "fetched").write_bytes((tmp_path / "fetched").read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"{tmp_path}/fetched is damaged, or no archive .* Delete it"):
        FilmReviews(tmp_path / "absent").prepare_data()


def test_unreachable_archive_raises_where_the_files_were_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(film_reviews, "ARCHIVE", "http://127.0.0.1:9/scale_data.tar.gz")
    with pytest.raises(ConnectionError, match=rf"no folder {tmp_path}/film_reviews.* cannot be fetched") as caught:
        FilmReviews(tmp_path).prepare_data()
    assert isinstance(caught.value.__cause__, OSError)


def test_published_reviews_have_the_published_size_and_vocabulary(published: FilmReviews) -> None:
    reviews = [review_words(text) for text in published.texts["text"]]
    assert len(reviews) == 5006
    assert sum(map(len, reviews)) == 2_153_170
    assert len({word for review in reviews for word in review}) == 55_450
    assert len(published.vocabulary) - 4 == 19_996
    assert np.mean(published.texts["rating"]) == pytest.approx(0.5814, abs=5e-5)
    assert np.std(published.texts["rating"]) == pytest.approx(0.1817, abs=5e-5)


def test_published_reviews_give_the_published_chunks(published: FilmReviews) -> None:
    train, test = words_of(published, "train"), words_of(published, "test")
    assert (len(train), len(test)) == (10_620, 2_655)
    assert len(published.train_dataloader()) == 83
    assert list(dict.fromkeys(published.chunks["train"]["review"]))[:5] == [1261, 939, 575, 666, 2686]
    assert len(set(published.chunks["train"]["review"]) & set(published.chunks["test"]["review"])) == 1
    words = torch.cat([train, test])
    assert int(words.max()) == 19_999
    assert (words != 0).all(dim=1).double().mean() == pytest.approx(0.624, abs=5e-4)
    assert (words == 0).double().mean() == pytest.approx(0.187, abs=5e-4)


@pytest.mark.parametrize(("split", "expected"), [("train", 0.0236), ("test", 0.0241)])
def test_published_chunks_have_the_published_share_of_rare_words(
    published: FilmReviews, split: str, expected: float
) -> None:
    words = words_of(published, split)
    assert ((words == 2).sum() / (words != 0).sum()).item() == pytest.approx(expected, abs=5e-5)


def test_published_ratings_have_the_published_mean_and_spread(published: FilmReviews) -> None:
    assert published.rating_mean == pytest.approx(0.5891723164, abs=1e-10)
    assert published.rating_std == pytest.approx(0.1839077864, abs=1e-10)
    test = np.array(published.chunks["test"]["rating"])
    assert test.mean() == pytest.approx(0.5903, abs=5e-5)
    assert test.std() == pytest.approx(0.1915, abs=5e-5)
    assert np.std(published.chunks["train"]["rating"][:100]) == pytest.approx(0.1756, abs=5e-5)
    assert np.sqrt(np.mean((test - published.rating_mean) ** 2)) == pytest.approx(0.19146, abs=5e-6)


def test_published_reviews_of_each_author_have_the_published_number_mean_and_spread(published: FilmReviews) -> None:
    ratings = np.array(published.texts["rating"])
    assert len(set(ratings.tolist())) == 87
    authors = np.split(ratings, np.cumsum([1027, 1307, 902]))
    assert [len(of) for of in authors] == [1027, 1307, 902, 1770]
    assert [of.mean() for of in authors] == pytest.approx([0.5225, 0.6340, 0.5712, 0.5820], abs=5e-5)
    assert [of.std() for of in authors] == pytest.approx([0.1675, 0.1808, 0.1940, 0.1723], abs=5e-5)
    # Always to predict the mean of the author's training ratings
    author = np.repeat(range(4), [1027, 1307, 902, 1770])
    (train, test), (train_by, test_by) = (
        [np.array(published.chunks[split][column]) for split in ("train", "test")] for column in ("rating", "review")
    )
    means = np.array([train[author[train_by] == one].mean() for one in range(4)])
    errors = means[author[test_by]] - test
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(0.18870, abs=5e-6)


def test_published_reviews_have_the_lengths_and_frequencies_of_the_protocol(published: FilmReviews) -> None:
    reviews = [review_words(text) for text in published.texts["text"]]
    lengths = np.array([len(review) for review in reviews])
    assert (round(lengths.mean()), np.median(lengths), lengths.min(), lengths.max()) == (430, 428, 10, 2604)
    counts = Counter(word for review in reviews for word in review)
    assert counts[published.vocabulary[-1]] == 4  # that of the first word left out, too
    assert counts.most_common(19_997)[-1][1] == 4
    known = sum(counts[word] for word in published.vocabulary)
    assert 1 - known / lengths.sum() == pytest.approx(0.0238, abs=5e-5)


@pytest.mark.slow
def test_published_chunks_share_one_review_and_repeat_a_third_of_their_words(published: FilmReviews) -> None:
    train, test = (list(published.chunks[split]["review"]) for split in ("train", "test"))
    in_training = set(train)
    assert (len(in_training), len(set(test))) == (3_996, 1_011)
    assert sum(review in in_training for review in test) == 3
    assert len(train) % 128 == 124  # the last batch
    chunks = [words[words != 0] for split in ("train", "test") for words in words_of(published, split)]
    assert min(map(len, chunks)) == 1
    assert np.mean([1 - len(words.unique()) / len(words) for words in chunks]) == pytest.approx(0.34, abs=5e-3)


@pytest.mark.slow
def test_a_tenth_of_the_published_training_reviews_is_for_validation(
    real_corpus: Callable[[str], Path], published: FilmReviews
) -> None:
    datamodule = FilmReviews(real_corpus("film_reviews"), validation_share=0.1)
    datamodule.setup()
    reviews = {split: set(chunks["review"]) for split, chunks in datamodule.chunks.items()}
    assert {split: len(of) for split, of in reviews.items()} == {"validation": 400, "train": 3_596, "test": 1_011}
    assert not reviews["validation"] & reviews["train"]
    assert sum(map(len, datamodule.chunks.values())) == 13_275
    torch.testing.assert_close(columns(datamodule.chunks["test"]), columns(published.chunks["test"]))


@pytest.mark.slow
@pytest.mark.parametrize(("length", "train", "test"), [(20, 88_223, 22_056), (50, 36_491, 9_123), (400, 6_373, 1_594)])
def test_published_reviews_give_the_published_chunks_of_other_lengths(
    real_corpus: Callable[[str], Path], length: int, train: int, test: int
) -> None:
    datamodule = FilmReviews(real_corpus("film_reviews"), chunk_length=length)
    datamodule.setup()
    assert (len(datamodule.chunks["train"]), len(datamodule.chunks["test"])) == (train, test)


def test_a_reader_reads_reviews_as_the_data_module_did(datamodule: FilmReviews) -> None:
    reader = datamodule.reader
    assert reader is not None
    for split, chunks in datamodule.chunks.items():
        first = chunks["review"][1 if split == "test" else 0]  # the first test review may begin in the training chunks
        assert first in chunks["review"]
        whole = [row["words"] for row in chunks if row["review"] == first]
        assert reader.chunks(datamodule.texts[first]["text"])[-len(whole) :] == whole


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_split_seed_out_of_range_is_named(seed: int) -> None:
    with pytest.raises(ValueError, match=f"split_seed must be at least 0 and at most 4294967295, got {seed}"):
        FilmReviews(split_seed=seed)
