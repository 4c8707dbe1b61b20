"""Models that torch.compile compiles train as they do without it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_modules import LanguageModel, SentimentRegressor
from training.recorder import recorder_of

DROPOUT = {"word_dropout": 0.3, "input_dropout": 0.4, "recurrent_dropout": 0.35, "output_dropout": 0.45}
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch.compiler.reset()


def curve_of(model: Any, run: Any, data: Any) -> list[dict[str, float]]:
    run.fit(model, datamodule=data)
    return [
        {name: value for name, value in epoch.items() if name not in ("words_per_s", "seconds")}
        for epoch in recorder_of(run).curve
    ]


def assert_same(curve: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(curve) == len(expected) == 2
    for epoch, other in zip(curve, expected, strict=True):
        assert epoch == pytest.approx(other, rel=1e-4)


def test_a_compiled_language_model_trains_as_it_does_uncompiled(
    trainer: Callable[..., Any], streams: Callable[..., Any]
) -> None:
    curves = []
    for prepare in (lambda model: model, lambda model: torch.compile(model, backend="eager")):
        torch.manual_seed(0)
        model = LanguageModel(11, 6, **DROPOUT)
        curves.append(curve_of(prepare(model), trainer(max_epochs=2), streams()))
    assert_same(*curves)


@pytest.mark.parametrize("options", [{}, {"gate_activation": "hard_sigmoid", "dropout_scale": "test"}])
def test_a_compiled_regressor_trains_as_it_does_uncompiled(
    options: dict[str, Any], trainer: Callable[..., Any], reviews: Callable[..., Any]
) -> None:
    curves = []
    for prepare in (lambda model: model, lambda model: torch.compile(model, backend="eager")):
        torch.manual_seed(0)
        model = SentimentRegressor(30, embedding_size=7, hidden_size=5, **DROPOUT, **options)
        curves.append(curve_of(prepare(model), trainer(max_epochs=2), reviews()))
    assert_same(*curves)
