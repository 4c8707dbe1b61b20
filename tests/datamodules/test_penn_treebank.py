import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from datasets import Dataset, DatasetDict, are_progress_bars_disabled

from datamodules import PennTreebank, penn_treebank

TEXT = {
    "train": " the cat sat \n the dog <unk> \n a cat sat on the dog \n",
    "validation": " the cat \n",
    "test": " a dog sat \n",
}


@pytest.fixture
def small_treebank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a treebank of three files, accepted as the published one."""
    (tmp_path / "ptb").mkdir()
    for split, name in penn_treebank.FILES.items():
        (tmp_path / "ptb" / name).write_text(TEXT[split])
    hashes = {split: hashlib.sha256(text.encode()).hexdigest() for split, text in TEXT.items()}
    monkeypatch.setattr(penn_treebank, "SHA256", hashes)
    return tmp_path


def test_ids_follow_first_appearance_and_lines_end_with_eos(small_treebank: Path) -> None:
    datamodule = PennTreebank(small_treebank, batch_size=1, window=2, vocab_size=8)
    datamodule.prepare_data()
    datamodule.setup()
    assert datamodule.vocabulary == ["the", "cat", "sat", "<eos>", "dog", "<unk>", "a", "on"]
    assert datamodule.ids["train"].tolist() == [0, 1, 2, 3, 0, 4, 5, 3, 6, 1, 2, 7, 0, 4, 3]
    assert datamodule.ids["validation"].tolist() == [0, 1, 3]
    assert datamodule.ids["test"].tolist() == [6, 4, 2, 3]


def test_vocab_size_that_differs_from_the_text_raises(small_treebank: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab_size=9, but .* 8 word types"):
        PennTreebank(small_treebank, vocab_size=9).setup()


def test_missing_file_is_named(small_treebank: Path) -> None:
    (small_treebank / "ptb" / "ptb.valid.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"ptb\.valid\.txt does not exist.*simple-examples"):
        PennTreebank(small_treebank).setup()


def test_altered_file_is_named_with_both_hashes(small_treebank: Path) -> None:
    (small_treebank / "ptb" / "ptb.test.txt").write_text(" a dog \n")
    with pytest.raises(ValueError, match=r"ptb\.test\.txt has SHA-256 \w{64}, but \w{64} is expected.*DATA_DIR"):
        PennTreebank(small_treebank).setup()


@pytest.fixture
def served(small_treebank: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], PennTreebank]:
    """A data module that finds a copy of TEXT in the cache, in which some splits are others."""

    def build(changes: dict[str, str]) -> PennTreebank:
        splits = {split: Dataset.from_dict({"sentence": text.splitlines()}) for split, text in (TEXT | changes).items()}
        monkeypatch.setattr(penn_treebank, "load_dataset", lambda *_, **__: DatasetDict(splits))
        return PennTreebank(small_treebank / "absent", batch_size=1, window=2, vocab_size=8)

    return build


def test_the_copy_of_the_hub_is_the_published_text_whatever_blanks_are_around_its_words(
    served: Callable[[dict[str, str]], PennTreebank],
) -> None:
    datamodule = served({split: text.replace(" \n ", "\n").strip() for split, text in TEXT.items()})
    datamodule.setup()
    assert datamodule.ids["validation"].tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"train": " the cat sat \n the dog <unk> \n a cat sat on the cat \n"},
        {"train": " the dog <unk> \n the cat sat \n a cat sat on the dog \n"},
        {"test": " sat dog a \n"},
        {"validation": " the cat \n the cat \n"},
        {"validation": " the\n cat \n"},
    ],
    ids=["a word replaced", "two sentences swapped", "a sentence reversed", "a sentence more", "a sentence cut"],
)
def test_a_cached_copy_of_which_anything_differs_is_refused_and_the_cache_is_named(
    changes: dict[str, str],
    served: Callable[[dict[str, str]], PennTreebank],
    capsys: pytest.CaptureFixture,
) -> None:
    [split] = changes
    with pytest.raises(
        ValueError, match=rf"in the cache, /\S+/ptb-text-only___ptb_text_only, is .*split {split} has SHA-256"
    ):
        served(changes).setup()
    assert "fetching it again" in capsys.readouterr().err


def test_the_text_that_was_hashed_is_the_one_that_is_used(
    small_treebank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PennTreebank(small_treebank, vocab_size=8).setup()
    file = small_treebank / "ptb/ptb.test.txt"
    status = file.stat()
    file.write_text(" a dog the \n")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    monkeypatch.setitem(penn_treebank.SHA256, "test", hashlib.sha256(file.read_bytes()).hexdigest())
    changed = PennTreebank(small_treebank, vocab_size=8)
    changed.setup()
    assert changed.ids["test"].tolist() == [6, 4, 0, 3]


def test_unreachable_hub_raises_where_the_files_were_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConnectionError, match=rf"no folder {tmp_path}/ptb, .* cannot be fetched from the Hugging Face hub"
    ) as caught:
        PennTreebank(tmp_path).prepare_data()
    assert isinstance(caught.value.__cause__, OSError)


def test_progress_bars_are_kept_out_and_left_as_they_were(small_treebank: Path, capfd: pytest.CaptureFixture) -> None:
    penn_treebank.load_texts(small_treebank / "ptb")
    assert "Generating" not in capfd.readouterr().err
    assert not are_progress_bars_disabled()


def test_published_files_give_the_published_windows(real_corpus: Callable[[str], Path]) -> None:
    datamodule = PennTreebank(real_corpus("ptb"))
    datamodule.setup()
    assert [len(ids) for ids in datamodule.ids.values()] == [929_589, 73_760, 82_430]
    assert datamodule.vocabulary[:3] == ["aer", "banknote", "berlitz"]
    assert [datamodule.vocabulary[i] for i in datamodule.ids["test"][:3]] == ["no", "it", "was"]
    assert max(int(ids.max()) for ids in datamodule.ids.values()) == 9_999
    [validation] = datamodule.val_dataloader()
    assert (len(datamodule.train_dataloader()), len(validation)) == (1327, 105)
    assert validation.dataset.num_steps == 3687  # type: ignore[attr-defined]
    [loader] = datamodule.test_dataloader()
    assert sum(targets.numel() for _, targets in loader) == 82_429
    datamodule.window = 20
    assert [len(datamodule.train_dataloader()), *map(len, datamodule.val_dataloader())] == [2323, 184]
    datamodule.train_eval_windows = 100
    assert [len(loader) for loader in datamodule.val_dataloader()] == [184, 100]


HUB_SCRIPT = """
import json, sys
from pathlib import Path
from datamodules import PennTreebank, penn_treebank
penn_treebank.SHA256 = {SHA256}
data = PennTreebank("absent", batch_size=1, window=2, vocab_size=8)
try:
    data.prepare_data()
    data.setup()
except (ValueError, OSError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(json.dumps([data.ids["test"].tolist(), data.vocabulary]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("window", "windows", "words"), [(35, 0.998, 0.181), (20, 0.865, 0.110)])
def test_published_windows_repeat_as_many_word_types_as_the_protocol_says(
    window: int, windows: float, words: float, real_corpus: Callable[[str], Path]
) -> None:
    datamodule = PennTreebank(real_corpus("ptb"), window=window)
    datamodule.setup()
    batches = [batch for batch, _ in datamodule.train_dataloader()]
    sorted_TN = torch.cat(batches, dim=1).sort(dim=0).values
    repeats_N = (sorted_TN[1:] == sorted_TN[:-1]).sum(dim=0)
    assert (repeats_N > 0).double().mean() == pytest.approx(windows, abs=5e-4)
    assert repeats_N.double().mean() / window == pytest.approx(words, abs=5e-4)
    if window == 35:  # the types among the targets of all streams, of which the augmented loss has a row each
        types = [len(targets.unique()) for _, targets in datamodule.train_dataloader()]
        assert sum(types) / len(types) == pytest.approx(360, abs=0.5)


@pytest.mark.slow
def test_a_damaged_cache_is_named_and_fetched_again_where_the_hub_answers(
    loopback_hub: Callable[..., str], small_treebank: Path, tmp_path: Path
) -> None:
    tables = {f"penn_treebank/{split}/0000.parquet": {"sentence": text.splitlines()} for split, text in TEXT.items()}
    address = loopback_hub(penn_treebank.HUB_REPOSITORY, tables, penn_treebank.HUB_REVISION)

    def load(offline: bool = False) -> subprocess.CompletedProcess[str]:
        # A process of its own, because the address of the hub is read when its client is imported.
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": str(+offline)}
        script = HUB_SCRIPT.replace("{SHA256}", repr(penn_treebank.SHA256))
        return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)

    published = [[6, 4, 2, 3], ["the", "cat", "sat", "<eos>", "dog", "<unk>", "a", "on"]]
    process = load()
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == published
    assert "in the cache" not in process.stderr
    for damage in (lambda content: content[:300], lambda content: content.replace(b"dog", b"cat")):
        [file] = tmp_path.glob("datasets/*/*/*/*/*-test.arrow")
        file.write_bytes(damage(file.read_bytes()))
        process = load()
        assert json.loads(process.stdout) == published
        assert "is damaged or holds another text" in process.stderr
    file.unlink()
    refusal = load(offline=True).stderr.splitlines()[-1]
    assert refusal.startswith(f"ValueError: ptb-text-only/ptb_text_only in the cache, {tmp_path}/datasets/")
    assert "Delete that folder" in refusal
    for file in tmp_path.glob("hub/datasets--*/blobs/*"):
        file.write_bytes(file.read_bytes()[:-5])
    shutil.rmtree(tmp_path / "datasets")
    assert json.loads(load().stdout) == published
