"""Batches of another size, or computed in parts."""

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from tests.random_data import curve_of

DROPOUT = {"word_dropout": 0.3, "input_dropout": 0.4, "recurrent_dropout": 0.35, "output_dropout": 0.45}


def trained(trainer: Any, model: Any, data: Any, recorder: Any, **options: Any) -> tuple[list[Any], torch.Tensor]:
    """Gradients of every step, and the final parameters."""
    recorder.gradients.clear()
    L.seed_everything(3, verbose=False)
    trainer(recorder, max_epochs=2, **options).fit(model.double(), datamodule=data)
    return [*recorder.gradients], torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def compare(of_parts: tuple[list[Any], torch.Tensor], at_once: tuple[list[Any], torch.Tensor]) -> None:
    assert len(of_parts[0]) == len(at_once[0])
    for in_parts, whole in zip(of_parts[0], at_once[0], strict=True):
        for name, gradient in whole.items():
            torch.testing.assert_close(in_parts[name], gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(of_parts[1], at_once[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("carry_state", [True, False])
def test_gradients_of_a_language_model_are_not_accumulated_over_windows(
    carry_state: bool, language_model: Any, streams: Any, trainer: Any
) -> None:
    model = language_model(carry_state=carry_state)
    with pytest.raises(ValueError, match=r"trainer\.accumulate_grad_batches must be 1 for a language model, got 2"):
        trainer(max_epochs=1, accumulate_grad_batches=2).fit(model, datamodule=streams())
    assert curve_of(model) == []


def test_a_schedule_of_accumulation_is_refused_by_name(
    language_model: Any, streams: Any, regressor: Any, reviews: Any, trainer: Any
) -> None:
    for model, data in ((language_model(), streams()), (regressor(), reviews())):
        with pytest.raises(ValueError, match="the callback GradientAccumulationScheduler is not supported"):
            trainer(GradientAccumulationScheduler({0: 2}), max_epochs=1).fit(model, datamodule=data)
        assert curve_of(model) == []


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("sharing", ["sequence", "batch"])
def test_accumulated_gradients_of_parts_of_a_batch_are_those_of_the_batch(
    sharing: str, parts: int, regressor: Any, reviews: Any, trainer: Any, recorder: Any
) -> None:
    runs = []
    for k in (parts, 1):
        torch.manual_seed(1)
        model = regressor(**DROPOUT, word_mask_sharing=sharing, l2=1e-2)
        runs.append(trained(trainer, model, reviews(num_train=21), recorder, accumulate_grad_batches=k))
    compare(*runs)  # the last of three batches has 5 texts


def test_parts_that_leave_a_batch_unfinished_are_refused(regressor: Any, reviews: Any, trainer: Any) -> None:
    model = regressor()
    with pytest.raises(ValueError, match="limit_train_batches leaves 5 batches, each of them one of accumulate_grad_b"):
        trainer(max_epochs=1, accumulate_grad_batches=2, limit_train_batches=5).fit(model, datamodule=reviews())
    assert curve_of(model) == []


def first_rate(trainer: Any, model: Any, data: Any, recorder: Any) -> float:
    trainer(recorder, max_epochs=1).fit(model, datamodule=data)
    return recorder.rates[0]


@pytest.mark.parametrize(("reference", "rate"), [(None, 0.5), (4, 0.5), (2, 1.0), (8, 0.25)])
def test_the_learning_rate_follows_the_batch_size_only_where_it_is_told_what_it_is_for(
    reference: int | None,
    rate: float,
    language_model: Any,
    streams: Any,
    trainer: Any,
    recorder: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = language_model(learning_rate=0.5, reference_batch_size=reference)
    assert first_rate(trainer, model, streams(batch_size=4), recorder) == rate
    told = f"learning_rate 0.5 is for {reference} sequences: {rate:g} for 4"
    assert (told in capsys.readouterr().out) == (reference is not None)


def test_the_learning_rate_of_a_sentiment_run_follows_the_batch_size_too(
    regressor: Any, reviews: Any, trainer: Any, recorder: Any
) -> None:
    model = regressor(learning_rate=0.01, reference_batch_size=2)
    assert first_rate(trainer, model, reviews(batch_size=8), recorder) == pytest.approx(0.04)


def test_a_reference_batch_size_below_one_is_refused(language_model: Any, streams: Any, trainer: Any) -> None:
    with pytest.raises(ValueError, match="reference_batch_size must be at least 1, got 0"):
        trainer(max_epochs=1).fit(language_model(reference_batch_size=0), datamodule=streams())
