import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import datamodules
import lightning_modules
from experiments.results import (
    comparable,
    configured,
    defaults,
    load_result,
    load_results,
    options_that_matter,
)

WriteResult = Callable[..., Path]
ROOT = Path(__file__).parents[2]
CLASSES = [
    *(lightning_modules.LanguageModel, lightning_modules.SentimentRegressor),
    *(datamodules.PennTreebank, datamodules.FilmReviews, datamodules.SnippetLanguage, datamodules.SnippetRatings),
    *(datamodules.PlainText, datamodules.RatedText),
]


def config(precision: str | None = None, data: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    return {
        "trainer": {"precision": precision, "tested_weights": "last"},
        "model": {"class_path": "lightning_modules.LanguageModel", "init_args": model},
        "data": {"class_path": "datamodules.PennTreebank", "init_args": data or {}},
    }


@pytest.fixture
def seeds(folder: Path, write_result: WriteResult) -> Callable[..., list[list[int]]]:
    """Write a seed of a row for each of these configurations, and say which seeds may be averaged."""

    def find(*configs: dict[str, Any]) -> list[list[int]]:
        for seed, its in enumerate(configs):
            write_result("ptb", "medium", "variational_tied", seed=seed, config=its)
        return [[run.seed for run in same] for same in comparable(load_results(folder))]

    return find


@pytest.mark.parametrize("of", CLASSES)
def test_defaults_that_are_read_in_the_source_are_those_of_the_class(of: type) -> None:
    signature = inspect.signature(of).parameters.values()
    expected = {option.name: option.default for option in signature if option.default is not option.empty}
    assert defaults(f"{of.__module__.partition('.')[0]}.{of.__name__}") == expected


def test_a_class_of_somewhere_else_has_no_known_defaults() -> None:
    assert defaults("somewhere.Model") == {}
    assert options_that_matter({"model": {"class_path": "somewhere.Model", "init_args": {"size": 3}}})["size"] == 3


@pytest.mark.parametrize(
    "other",
    [
        config("bf16-mixed"),
        config(word_masks="token"),
        config(share_masks=True),
        config(data={"window": 20}),
        config() | {"trainer": {"precision": None, "tested_weights": "best"}},
        config() | {"data": {"class_path": "datamodules.PlainText"}},
    ],
)
def test_seeds_with_other_settings_are_not_averaged(
    other: dict[str, Any], seeds: Callable[..., list[list[int]]]
) -> None:
    assert sorted(seeds(config(), other, config())) == [[0, 2], [1]]


@pytest.mark.parametrize(
    "same",
    [
        config("32-true"),
        config(word_masks="type"),  # an older file does not have what is default since
        config(backend="reference"),
        config(data={"train_eval_windows": 105, "sliding_test": True, "data_dir": "elsewhere"}),
        config(mc_every=0),
        config(mc_samples=100, mc_masks="stream"),  # of the test by MC only
        config() | {"trainer": {"precision": "32", "tested_weights": "last", "devices": 4, "accelerator": "gpu"}},
    ],
)
def test_what_leaves_the_result_alone_does_not_split_seeds(
    same: dict[str, Any], seeds: Callable[..., list[list[int]]]
) -> None:
    assert seeds(config(), same) == [[0, 1]]


def test_of_equally_long_sets_the_one_that_is_as_configured_comes_first(
    seeds: Callable[..., list[list[int]]],
) -> None:
    assert seeds(config(word_masks="token"), config(), config(word_masks="token")) == [[1], [0, 2]]


def test_other_samples_of_mc_do_not_tear_a_set_apart(seeds: Callable[..., list[list[int]]]) -> None:
    tokens = [config(word_masks="token", mc_samples=samples, mc_masks="both") for samples in (1000, 10)]
    other = config(word_masks="token", gate_masks="untied", mc_samples=1000, mc_masks="both")
    assert [sorted(same) for same in seeds(tokens[1], other, tokens[0])] == [[0, 2], [1]]


def test_runs_are_marked_by_what_tells_them_from_the_rest_of_their_row(folder: Path, write_result: WriteResult) -> None:
    for seed, its in enumerate((config(), config("bf16-mixed", word_masks="token"))):
        write_result("ptb", "medium", "variational_tied", seed=seed, config=its)
    write_result("ptb", "medium", "zaremba", config=config("bf16-mixed"))
    assert [run.label for run in load_results(folder)] == [
        "Zaremba et al.",
        "Variational (tied) [32-true, word masks type]",
        "Variational (tied) [bf16-mixed, word masks token]",
    ]


def test_a_row_has_its_options_and_those_that_its_table_and_its_experiment_share() -> None:
    found = configured("ptb", "medium", "variational_tied")
    names = ("learning_rate", "window", "hidden_size", "mc_samples", "word_masks", "precision", "gradient_clip_val")
    assert [found[name] for name in names] == [1.0, 35, 650, 1000, "type", "32-true", 5.0]
    assert configured("ptb", "medium", "non_regularized")["tested_weights"] == "best"
    assert configured("mine", "medium", "zaremba") == {}


@pytest.mark.parametrize("path", sorted((ROOT / "results").rglob("seed*.json")), ids=lambda path: str(path)[-60:])
def test_results_of_this_repository_are_as_configured_but_for_precision_and_mc(path: Path) -> None:
    assert load_result(path).changes.keys() <= {"precision", "mc_samples", "mc_masks"}


@pytest.mark.parametrize(
    ("masks", "drops", "is_change"),
    [("stream", False, False), ("window", True, False), ("stream", True, True), ("both", False, True)],
)
def test_words_dropped_in_mc_as_its_masks_imply_are_no_change(
    masks: str, drops: bool, is_change: bool, write_result: WriteResult
) -> None:
    run = load_result(write_result("ptb", "small", "zaremba", config=config(mc_masks=masks, mc_word_dropout=drops)))
    assert ("mc_word_dropout" in run.changes) == is_change


def test_words_per_second_are_of_whole_epochs_with_their_validation(write_result: WriteResult) -> None:
    curve = [{"epoch": epoch, "seconds": seconds} for epoch, seconds in ((1, 500.0), (2, 200.0), (3, 100.0))]
    for window, words in ((35, 928_900), (20, 929_200), (3, 929_520)):  # protocol 1.1; 46,479 is 3 * 15,493
        its = config(data={"batch_size": 20, "window": window})
        run = load_result(write_result("ptb", "small", "zaremba", config=its, curve=curve))
        assert run.words_per_s == words / 200
    part = json.loads(json.dumps(its))
    part["trainer"]["limit_train_batches"] = 0.1
    other = its | {"data": {"class_path": "datamodules.PlainText", "init_args": {}}}
    for unknown in (part, other, {}):
        assert load_result(write_result("ptb", "small", "zaremba", config=unknown, curve=curve)).words_per_s is None
