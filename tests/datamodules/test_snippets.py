import hashlib
import io
import os
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datamodules import SnippetLanguage, SnippetRatings, snippets
from datamodules.words import simple_words

TEXTS = [f'Film {i} is "good", isn\'t it?' + " Very" * (i % 5) + " good." for i in range(50)]
CONTENT = "\r\n".join(f"{i + 1}\t{i / 10 - 2}\t{text}" for i, text in enumerate(TEXTS)).encode()


@pytest.fixture(autouse=True)
def _accept_few_snippets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "slow" not in request.keywords:
        monkeypatch.setattr(snippets, "SHA256", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def few_snippets(tmp_path: Path) -> Path:
    (tmp_path / "snippets").mkdir()
    (tmp_path / "snippets" / snippets.FILE).write_bytes(CONTENT)
    return tmp_path


@pytest.fixture
def ratings(few_snippets: Path) -> SnippetRatings:
    datamodule = SnippetRatings(few_snippets, batch_size=8, length=13, vocab_size=15, train_eval_chunks=9)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


@pytest.fixture
def fake_pip(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], list[list[str]]]:
    """Replaces pip by one that delivers a distribution with the given snippets; returns the commands it was given."""

    def archive(name: str, content: bytes) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        return buffer.getvalue()

    def install(content: bytes) -> list[list[str]]:
        commands: list[list[str]] = []

        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            inner = archive(f"hutto_ICWSM_2014/{snippets.FILE}", content)
            outer = archive("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", inner)
            folder = Path(command[command.index("--dest") + 1])
            (folder / "vaderSentiment-3.3.2.tar.gz").write_bytes(outer)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", run)
        return commands

    return install


def test_snippets_are_loaded_with_quotes_and_without_carriage_returns(few_snippets: Path) -> None:
    loaded = snippets.load_snippets(few_snippets / "snippets")
    assert list(loaded["text"]) == TEXTS
    assert list(loaded["rating"]) == pytest.approx([i / 10 - 2 for i in range(50)])


def test_split_is_always_the_same_and_leaves_nothing_out(few_snippets: Path) -> None:
    loaded = snippets.load_snippets(few_snippets / "snippets")
    parts = snippets.split_snippets(loaded)
    assert (len(parts["train"]["text"]), len(parts["test"]["text"])) == (40, 10)
    rows = parts["train"]["review"] + parts["test"]["review"]
    assert sorted(rows) == list(range(50))
    assert rows != sorted(rows)
    assert parts == snippets.split_snippets(loaded)


def test_language_ids_spell_the_snippets_with_rare_words_replaced(few_snippets: Path) -> None:
    datamodule = SnippetLanguage(few_snippets, batch_size=2, window=5, vocab_size=12)
    datamodule.prepare_data()
    datamodule.setup()
    parts = snippets.split_snippets(snippets.load_snippets(few_snippets / "snippets"))
    counts = Counter(word for text in parts["train"]["text"] for word in simple_words(text))
    assert datamodule.vocabulary[:2] == ["<unk>", "<eos>"]
    assert datamodule.vocabulary[2:] == [word for word, _ in counts.most_common(10)]
    for split, part in (("train", "train"), ("validation", "test"), ("test", "test")):
        expected = [
            word if word in datamodule.vocabulary else "<unk>"
            for text in parts[part]["text"]
            for word in [*simple_words(text), "<eos>"]
        ]
        assert [datamodule.vocabulary[i] for i in datamodule.ids[split]] == expected


def test_language_with_fewer_words_than_vocab_size_raises(few_snippets: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab_size=5000, but .* only \d\d word types"):
        SnippetLanguage(few_snippets).setup()


def test_rated_snippets_are_padded_in_front_and_truncated_at_the_end(ratings: SnippetRatings) -> None:
    short = next(chunk for chunk in ratings.chunks["train"] if chunk["review"] % 5 == 0)
    long = next(chunk for chunk in ratings.chunks["train"] if chunk["review"] % 5 == 4)
    # film i is " good " , isn't it ? good . has 12 words, and the start id makes 13; four more words are too many.
    for chunk, words in ((short, "good ."), (long, "very very")):
        assert len(chunk["words"]) == 13
        assert chunk["words"][0] == 1
        assert [ratings.vocabulary[i] for i in chunk["words"][-2:]] == words.split()
        assert chunk["words"][2] == 2  # The number, a rare word.
    longer = SnippetRatings(Path(ratings.folder).parent, length=21)
    longer.setup()
    padded = next(chunk for chunk in longer.chunks["train"] if chunk["review"] == short["review"])
    assert padded["words"][:9] == [0] * 8 + [1]


def test_ids_stay_below_vocab_size(ratings: SnippetRatings) -> None:
    words = torch.cat([torch.tensor(part["words"]) for part in ratings.chunks.values()])
    assert int(words.max()) == 14


def test_ratings_belong_to_their_snippets(ratings: SnippetRatings) -> None:
    for part in ratings.chunks.values():
        assert list(part["rating"]) == [ratings.texts[review]["rating"] for review in part["review"]]


def test_rated_snippets_have_the_interface_of_film_reviews(ratings: SnippetRatings) -> None:
    words, targets, reviews = next(iter(ratings.train_dataloader()))
    assert (words.shape, targets.shape, reviews.shape) == ((13, 8), (8,), (8,))
    assert [sum(len(targets) for _, targets, _ in loader) for loader in ratings.val_dataloader()] == [10, 9]
    assert [sum(len(targets) for _, targets, _ in loader) for loader in ratings.test_dataloader()] == [10, 40]
    assert ratings.rating_std > 1


def test_snippets_are_fetched_once_and_nothing_else_is_left(tmp_path: Path, fake_pip: Callable) -> None:
    commands = fake_pip(CONTENT)
    for _ in range(2):
        SnippetLanguage(tmp_path).prepare_data()
    assert len(commands) == 1
    assert [file.name for file in (tmp_path / "snippets").iterdir()] == [snippets.FILE]
    assert (tmp_path / "snippets" / snippets.FILE).read_bytes() == CONTENT


def test_fetched_file_of_another_content_is_not_kept(tmp_path: Path, fake_pip: Callable) -> None:
    fake_pip(b"1\t0.5\tsomething else")
    with pytest.raises(ValueError, match="SHA-256"):
        SnippetRatings(tmp_path).prepare_data()
    assert not list((tmp_path / "snippets").iterdir())


def test_altered_file_is_refused_with_what_to_do(few_snippets: Path) -> None:
    (few_snippets / "snippets" / snippets.FILE).write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match="Delete it"):
        SnippetRatings(few_snippets).setup()


def test_the_file_that_was_hashed_is_the_one_that_is_read_whatever_was_read_before(
    few_snippets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = few_snippets / "snippets" / snippets.FILE
    snippets.load_snippets(file.parent)
    status, changed = file.stat(), CONTENT.replace(b"Film 7", b"Song 7")
    file.write_bytes(changed)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    monkeypatch.setattr(snippets, "SHA256", hashlib.sha256(changed).hexdigest())
    assert snippets.load_snippets(file.parent)["text"][7].startswith("Song 7")


def test_failure_of_pip_raises_its_message_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = subprocess.CompletedProcess([], 1, "", "ERROR: no network\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failure)
    with pytest.raises(ConnectionError, match=r"pip cannot fetch it: ERROR: no network\n.*vaderSentiment 3\.3\.2"):
        SnippetLanguage(tmp_path).prepare_data()
    assert not list((tmp_path / "snippets").iterdir())


@pytest.mark.slow
def test_published_snippets_are_fetched_with_pip(tmp_path: Path) -> None:
    ratings, language = SnippetRatings(tmp_path), SnippetLanguage(tmp_path)
    for datamodule in (ratings, language):
        datamodule.prepare_data()
        datamodule.setup()
    assert len(ratings.texts) == 10_605
    assert (len(ratings.chunks["train"]), len(ratings.chunks["test"])) == (8_484, 2_121)
    assert ratings.rating_std == pytest.approx(1.9256, abs=5e-5)
    assert len(language.vocabulary) == 5000
    assert len(language.train_dataloader()) == 272


def test_a_reader_reads_snippets_as_the_data_module_did(ratings: SnippetRatings) -> None:
    assert ratings.reader is not None
    for row in ratings.chunks["test"]:
        first, *_ = ratings.reader.chunks(ratings.texts[row["review"]]["text"])
        assert first == row["words"]
