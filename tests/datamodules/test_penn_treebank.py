import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from datasets import are_progress_bars_disabled

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
    monkeypatch.setattr(penn_treebank, "COUNTS", {"train": (3, 15), "validation": (1, 3), "test": (1, 4)})
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


def test_text_of_another_size_raises_found_and_expected_counts() -> None:
    sentences = {"train": [["a", "<eos>"], ["b", "<eos>"]]}
    penn_treebank.check_counts(sentences, {"train": (2, 4)})
    with pytest.raises(
        ValueError, match="train text has 2 sentences and 4 tokens with <eos>, but 2 and 5 are expected"
    ):
        penn_treebank.check_counts(sentences, {"train": (2, 5)})


def test_word_that_training_lacks_raises() -> None:
    sentences = {"train": [["a", "<eos>"]], "test": [["b", "<eos>"]]}
    with pytest.raises(ValueError, match="test text has 1 words that its training text has not, 'b'"):
        penn_treebank.check_counts(sentences, {"train": (1, 2), "test": (1, 2)})


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
def test_treebank_is_loaded_from_the_hub_when_there_is_no_folder(
    loopback_hub: Callable[..., str], tmp_path: Path
) -> None:
    tables = {f"penn_treebank/{split}/0000.parquet": {"sentence": text.splitlines()} for split, text in TEXT.items()}
    address = loopback_hub(penn_treebank.HUB_REPOSITORY, tables, penn_treebank.HUB_REVISION)
    # A process of its own, because the address of the hub is read when its client is imported.
    script = (
        "import json; from pathlib import Path; from datamodules.penn_treebank import load_texts\n"
        "print(json.dumps({split: list(part['text']) for split, part in load_texts(Path('absent')).items()}))"
    )
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    process = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == {split: text.splitlines() for split, text in TEXT.items()}
