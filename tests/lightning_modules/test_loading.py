"""A trained model from its checkpoint alone."""

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch

from datamodules import PennTreebank
from datamodules.reader import Reader
from lightning_modules import LanguageModel, SentimentRegressor, load
from training.trainer import Trainer

RATED = Reader(("<pad>", "<start>", "<unk>", "<unused>", *map(str, range(26))), "words", chunk_length=6)


@pytest.fixture
def saved(tmp_path: Path, trainer: Callable[..., Trainer]) -> Callable[..., Path]:
    """Trains a model for an epoch, and saves it."""

    def save(model: Any, data: Any) -> Path:
        run = trainer(max_epochs=1)
        run.fit(model, datamodule=data)
        run.save_checkpoint(tmp_path / "last.ckpt")
        return tmp_path / "last.ckpt"

    return save


@pytest.fixture
def treebank(tiny_treebank: Path) -> Callable[..., PennTreebank]:
    return lambda: PennTreebank(tiny_treebank.parent, batch_size=2, window=5, vocab_size=12)


def test_a_language_model_comes_back_with_its_reader(saved: Callable[..., Path], treebank: Any) -> None:
    model, data = LanguageModel(12, 6, cell="gru", recurrent_dropout=0.3), treebank()
    loaded = load(saved(model, data))
    assert isinstance(loaded, LanguageModel)
    assert not loaded.training
    assert loaded.reader == data.reader == model.reader
    assert loaded.rnn.recurrent_dropout == 0.3
    words = data.ids["test"][:9, None]
    assert torch.equal(loaded(words)[0], model.eval()(words)[0])


def test_a_regressor_comes_back_with_its_reader(
    saved: Callable[..., Path], regressor: Any, reviews: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reviews, "reader", RATED)
    model, data = regressor(), reviews()
    loaded = load(saved(model, data))
    assert isinstance(loaded, SentimentRegressor)
    assert loaded.reader == RATED
    assert loaded.target_std > 0
    words = next(iter(data.predict_dataloader()))[0]
    assert torch.equal(loaded(words), model.eval()(words))


def test_a_model_that_was_loaded_is_saved_with_its_reader(
    saved: Callable[..., Path], treebank: Any, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    loaded = load(saved(LanguageModel(12, 6), treebank()))
    run = trainer()
    run.validate(loaded, datamodule=treebank(), verbose=False)
    run.save_checkpoint(tmp_path / "again.ckpt")
    assert load(tmp_path / "again.ckpt").reader == loaded.reader


def test_an_older_checkpoint_is_loaded_without_a_reader_and_takes_that_of_the_data(
    saved: Callable[..., Path], treebank: Any, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    checkpoint = torch.load(saved(LanguageModel(12, 6), treebank()), weights_only=True)
    del checkpoint["reader"], checkpoint["model"]
    checkpoint["hyper_parameters"]["_class_path"] = "lightning_modules.LanguageModel"
    torch.save(checkpoint, tmp_path / "older.ckpt")
    assert load(tmp_path / "older.ckpt").reader is None
    model, data = LanguageModel(12, 6), treebank()
    trainer().test(model, datamodule=data, ckpt_path=tmp_path / "older.ckpt", verbose=False)
    assert model.reader == data.reader


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_data_of_another_vocabulary_than_the_checkpoints_are_refused(
    command: str, saved: Callable[..., Path], treebank: Any, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    path = saved(LanguageModel(12, 6), treebank())
    checkpoint = torch.load(path, weights_only=True)
    words = checkpoint["reader"]["vocabulary"]
    words[3], words[5] = words[5], words[3]
    torch.save(checkpoint, path)
    differing = f"12 words, id 3 is {words[3]!r}; 12 words, id 3 is {words[5]!r}"
    with pytest.raises(ValueError, match=f"the data differ in their vocabulary .*{differing}"):
        getattr(trainer(max_epochs=2), command)(LanguageModel(12, 6), datamodule=treebank(), ckpt_path=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda checkpoint: checkpoint.pop("curve"), "no checkpoint of this repository"),
        (lambda checkpoint: checkpoint.pop("provenance"), "no checkpoint of this repository"),
        (lambda checkpoint: checkpoint.update(hyper_parameters=[]), "no checkpoint of this repository"),
        (lambda checkpoint: checkpoint.update(state_dict=[]), "cannot be loaded as LanguageModel"),
        (lambda checkpoint: checkpoint.update(model=["LanguageModel"]), "of the model .*; there are: LanguageModel"),
        (lambda checkpoint: checkpoint.update(model="Trainer"), "of the model Trainer; there are: LanguageModel, Sent"),
        (lambda checkpoint: checkpoint.update(model="SentimentRegressor"), "cannot be loaded as SentimentRegressor"),
        (lambda checkpoint: checkpoint["hyper_parameters"].update(hidden_size=7), "cannot be .* of another model than"),
        (lambda checkpoint: checkpoint["hyper_parameters"].update(num_layers=10**7), "at least 360,000,000 param"),
        (lambda checkpoint: checkpoint["reader"].update(tokens="letters"), "cannot be .* how a model reads texts"),
        (lambda checkpoint: checkpoint["reader"].update(letters=3), "cannot be loaded as LanguageModel.*letters"),
        (lambda checkpoint: checkpoint["reader"]["vocabulary"].append("w11"), "vocabulary of 13 words is larger"),
    ],
)
def test_what_is_no_model_of_this_repository_is_refused(
    change: Callable[[dict], Any], message: str, saved: Callable[..., Path], treebank: Any
) -> None:
    path = saved(LanguageModel(12, 6), treebank())
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=message):
        load(path)


def test_a_file_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=r"last\.ckpt is no file or folder; in .* there is: 'best\.ckpt'$"):
        load(tmp_path / "last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; there is: 'best\.ckpt'"):
        load(tmp_path)


class Harmful:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('executed')",)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": Harmful()}, tmp_path / "last.ckpt")
    with pytest.raises(UnpicklingError, match=r"last\.ckpt is refused: it holds .*exec beside tensors"):
        load(tmp_path / "last.ckpt")
