"""What people do in Python rather than on the command line: arguments of their own, loaders of their own."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy
import pandas
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from datamodules import FilmReviews, PennTreebank, PlainText, RatedText, SnippetLanguage, SnippetRatings
from datamodules.rated_sequences import cut
from lightning_modules import LanguageModel, SentimentRegressor, load

DROPOUT = {"input_dropout": 0.4, "recurrent_dropout": 0.35, "output_dropout": 0.45}

# --- arguments --------------------------------------------------------------------------------------------------------

MODELS: dict[Callable[..., Any], dict[str, Any]] = {
    LanguageModel: {"vocab_size": 11, "hidden_size": 6},
    SentimentRegressor: {"vocab_size": 30},
}
DATA: dict[Callable[..., Any], dict[str, Any]] = {
    PlainText: {"data_dir": "text"},
    RatedText: {"source": "reviews.csv"},
    PennTreebank: {},
    FilmReviews: {},
    SnippetLanguage: {},
    SnippetRatings: {},
}
COUNTS = {
    LanguageModel: ("vocab_size", "hidden_size", "num_layers", "reference_batch_size", "constant_epochs", "mc_samples"),
    SentimentRegressor: (
        *("vocab_size", "embedding_size", "hidden_size", "reference_batch_size"),
        *("mc_samples", "mc_every", "mc_epoch_samples"),
    ),
    PlainText: ("batch_size", "window", "vocab_size", "train_eval_windows"),
    RatedText: (*("batch_size", "eval_batch_size", "chunk_length", "vocab_size", "split_seed", "train_eval_chunks"),),
    PennTreebank: ("batch_size", "window", "vocab_size", "train_eval_windows"),
    FilmReviews: ("batch_size", "eval_batch_size", "chunk_length", "vocab_size", "split_seed", "train_eval_chunks"),
    SnippetLanguage: ("batch_size", "window", "vocab_size", "train_eval_windows"),
    SnippetRatings: ("batch_size", "eval_batch_size", "length", "vocab_size", "train_eval_chunks"),
}
PROBABILITIES = {
    LanguageModel: ("word_dropout", "input_dropout", "recurrent_dropout", "output_dropout", "memory_dropout"),
    SentimentRegressor: ("word_dropout", "input_dropout", "recurrent_dropout", "output_dropout"),
}
NUMBERS = {
    LanguageModel: (
        *("init_scale", "learning_rate", "learning_rate_decay", "weight_decay"),
        *("projection_penalty", "augmented_loss"),
    ),
    SentimentRegressor: ("learning_rate", "l2", "weight_decay"),
    RatedText: ("test_share", "validation_share"),
    FilmReviews: ("validation_share",),
}


def named(groups: dict[Any, tuple[str, ...]]) -> list[Any]:
    return [pytest.param(kind, name, id=f"{kind.__name__}-{name}") for kind, names in groups.items() for name in names]


def refused(kind: Callable[..., Any], name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"\b{name} must be {allowed}.*, got {value!r}$"):
        kind(**(MODELS | DATA)[kind] | {name: value})


@pytest.mark.parametrize(("kind", "name"), named(COUNTS))
@pytest.mark.parametrize("value", [2.5, 40.0, math.nan, True, "40"])
def test_a_count_is_a_whole_number(kind: Callable[..., Any], name: str, value: Any) -> None:
    refused(kind, name, value, "a whole number")


@pytest.mark.parametrize(("kind", "name"), named(COUNTS))
def test_a_count_is_not_negative(kind: Callable[..., Any], name: str) -> None:
    refused(kind, name, -1, "at least ")


@pytest.mark.parametrize(("kind", "name"), named(NUMBERS))
@pytest.mark.parametrize("value", [math.nan, math.inf, True, "0.5"])
def test_a_number_is_finite(kind: Callable[..., Any], name: str, value: Any) -> None:
    refused(kind, name, value, "a finite number")


@pytest.mark.parametrize(("kind", "name"), named(NUMBERS))
def test_a_number_is_not_negative(kind: Callable[..., Any], name: str) -> None:
    refused(kind, name, -0.5, "(at least|above) 0")


@pytest.mark.parametrize(("kind", "name"), named(PROBABILITIES))
@pytest.mark.parametrize("value", [1.0, -0.1, math.nan, math.inf, True, "0.5", None])
def test_a_probability_to_drop_is_at_least_0_and_below_1(kind: Callable[..., Any], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is the probability to drop and must lie in .*, got {value!r}$"):
        kind(**MODELS[kind] | {name: value})


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_leaves_something(share: float) -> None:
    refused(RatedText, "test_share", share, "above 0 and below 1")
    if share:
        for kind in (RatedText, FilmReviews):
            refused(kind, "validation_share", share, "at least 0 and below 1")


def test_numbers_of_numpy_are_taken_and_a_checkpoint_with_them_can_be_loaded(
    tmp_path: Path, trainer: Callable[..., L.Trainer], streams: Any, reviews: Any
) -> None:
    real, whole = numpy.float32(0.25), numpy.int64(3)
    for kind, data in ((LanguageModel, streams(batch_size=whole)), (SentimentRegressor, reviews(batch_size=whole))):
        counts = {name: whole for name in COUNTS[kind] if name not in ("vocab_size", "mc_samples")}
        numbers = dict.fromkeys((*PROBABILITIES[kind], *NUMBERS[kind]), real)
        model = kind(**MODELS[kind] | counts | numbers)
        run = trainer(max_epochs=1)
        run.fit(model, datamodule=data)
        run.save_checkpoint(tmp_path / "model.ckpt")
        loaded = load(tmp_path / "model.ckpt")
        assert dict(loaded.hparams) == dict(model.hparams)
        assert {name: loaded.hparams[name] for name in numbers} == dict.fromkeys(numbers, 0.25)


# --- loaders ----------------------------------------------------------------------------------------------------------


def test_a_language_model_is_trained_and_evaluated_with_plain_loaders_as_with_the_data_module(
    trainer: Callable[..., L.Trainer], streams: Any, language_model: Callable[..., LanguageModel]
) -> None:
    data = streams()
    data.setup()
    test, _ = data.predict_dataloader()
    training, validation, test = (
        DataLoader(list(loader), batch_size=None) for loader in (data.train_dataloader(), *data.val_dataloader(), test)
    )
    found, expected = language_model(**DROPOUT, mc_samples=2), language_model(**DROPOUT, mc_samples=2)
    expected.load_state_dict(found.state_dict())
    run = trainer(max_epochs=2)
    run.fit(expected, datamodule=data)
    metrics = dict(run.callback_metrics)
    run = trainer(max_epochs=2)
    run.fit(found, training, validation)
    for name, parameter in found.state_dict().items():
        assert torch.equal(parameter, expected.state_dict()[name]), name
    assert run.callback_metrics["valid_ppl"] == metrics["valid_ppl"]
    run = trainer()
    assert run.validate(found, validation, verbose=False) == [{"valid_ppl": float(metrics["valid_ppl"])}]
    assert run.test(found, test, verbose=False) == run.test(expected, datamodule=data, verbose=False)
    predictions = run.predict(found, test)
    assert predictions is not None
    assert len(predictions) == len(test)


def test_samples_of_several_streams_are_refused(
    trainer: Callable[..., L.Trainer], language_model: Callable[..., LanguageModel]
) -> None:
    words = torch.zeros(5, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"mc_samples=2 needs one stream, windows \[T, 1\], got \[5, 4\]"):
        trainer().test(language_model(**DROPOUT, mc_samples=2), DataLoader([(words, words)], batch_size=None))


Batch = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def rated() -> DataLoader[Batch]:
    batches = [(torch.randint(1, 30, (6, 8)), torch.rand(8), torch.arange(8) + 8 * i) for i in range(3)]
    loader: DataLoader[Batch] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    assert isinstance(loader.sampler, SequentialSampler)
    return loader


def test_a_regressor_cannot_be_trained_by_a_plain_loader_and_says_what_it_needs(
    rated: DataLoader[Batch], trainer: Callable[..., L.Trainer], regressor: Callable[..., SentimentRegressor]
) -> None:
    for run in (trainer(), L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)):
        with pytest.raises(ValueError, match=r"a DataLoader does not provide: use Trainer.fit\(model, data"):
            run.fit(regressor(), rated, rated)


def test_a_regressor_is_evaluated_by_plain_loaders(
    rated: DataLoader[Batch], trainer: Callable[..., L.Trainer], regressor: Callable[..., SentimentRegressor]
) -> None:
    model = regressor(**DROPOUT, mc_samples=3)
    model.target_mean.fill_(2.0)
    [metrics] = trainer().validate(model, rated, verbose=False)
    with torch.no_grad():
        errors = torch.cat([model.eval()(words) - ratings for words, ratings, _ in rated])
    assert metrics["test_rmse"] == pytest.approx(float(errors.square().mean().sqrt()), rel=1e-6)
    [tested] = trainer().test(model, rated, verbose=False)
    assert tested["test_rmse"] == metrics["test_rmse"]
    predictions = trainer().predict(model, rated)
    assert predictions is not None
    means = torch.cat([batch["mean"] for batch in predictions])  # type: ignore[index, call-overload]
    errors = means - torch.cat([ratings for _, ratings, _ in rated])
    assert tested["test_rmse_mc"] == pytest.approx(float(errors.square().mean().sqrt()), rel=1e-6)


@pytest.mark.parametrize("kind", ["language_model", "regressor"])
def test_a_batch_that_is_shared_needs_a_data_module(
    kind: str, rated: DataLoader[Batch], trainer: Callable[..., L.Trainer], request: pytest.FixtureRequest
) -> None:
    with pytest.raises(ValueError, match="accumulate_grad_batches, need a data module that shares out each batch"):
        trainer(accumulate_grad_batches=2).fit(request.getfixturevalue(kind)(), rated)


def test_a_learning_rate_for_a_batch_size_needs_a_data_module(
    trainer: Callable[..., L.Trainer], language_model: Callable[..., LanguageModel]
) -> None:
    words = torch.zeros(5, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="reference_batch_size=20 needs a data module with a batch_size"):
        trainer().fit(language_model(reference_batch_size=20), DataLoader([(words, words)], batch_size=None))


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_data_of_the_other_kind_are_refused_at_every_stage(
    stage: str,
    trainer: Callable[..., L.Trainer],
    streams: Any,
    reviews: Any,
    language_model: Callable[..., LanguageModel],
    regressor: Callable[..., SentimentRegressor],
) -> None:
    for model, data in ((language_model(), reviews()), (regressor(), streams())):
        with pytest.raises(ValueError, match=r"serves .*, .* needs .*: change --data or --model"):
            getattr(trainer(), stage)(model, datamodule=data)


def test_the_texts_of_a_sorted_table_are_cut_with_their_own_ratings() -> None:
    table = pandas.DataFrame({"ids": [[1, 2, 3], [4], [5, 6]], "rating": [0.3, 0.1, 0.2]}).sort_values("rating")
    found = cut(table["ids"], table["rating"], table.index, 2)  # type: ignore[arg-type]
    assert found["words"][:] == [[0, 4], [5, 6], [1, 2], [0, 3]]
    assert found["rating"][:] == [0.1, 0.2, 0.3, 0.3]
    assert found["review"][:] == [1, 2, 0, 0]
