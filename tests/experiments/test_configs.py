"""Every row of configs/: it parses, and builds what it says."""

import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from datamodules import FilmReviews, PennTreebank, SnippetLanguage, SnippetRatings
from experiments import grid
from experiments.catalogue import CONFIGS, catalogue, find_row, rows
from lightning_modules import LanguageModel, SentimentRegressor
from training import cli

RUNS = list(rows())
SWEEPS = [f"sweeps/{file.stem}" for file in grid.SWEEPS.glob("*.yaml")]
PTB = [name for name in RUNS if name.startswith("ptb/")]
ROWS = {"non_regularized", "moon", "moon_embedding", "zaremba", "variational_tied", "variational_untied"}

# Protocol 1.3, 1.9, 1.10: hidden size, window, init, epochs, constant epochs, decay, clipping
SCHEDULES = {
    "small": (200, 20, 0.1, 13, 4, 2.0, 5.0),
    "medium": (650, 35, 0.05, 39, 6, 1.2, 5.0),
    "medium_constant": (650, 35, 0.05, 180, 0, 1.0, 5.0),
    "large": (1500, 35, 0.04, 55, 14, 1.15, 10.0),
    "v1": (200, 20, 0.1, 180, 0, 1.0, 5.0),
    "gal1250": (1250, 35, 0.04, 55, 10, 1.15, 10.0),
    # Protocol 1.11
    "inan_small": (200, 35, 0.1, 48, 4, pytest.approx(1 / 0.9), 5.0),
    "inan_medium": (650, 35, 0.05, 53, 9, pytest.approx(1 / 0.9), 5.0),
    "inan_large": (1500, 35, 0.04, 152, 0, pytest.approx(1 / 0.97), 6.0),
    "press_small": (200, 20, 0.1, 13, 4, 2.0, 5.0),
    "press_large": (1500, 35, 0.04, 55, 14, 1.15, 10.0),
}
# Protocol 1.5, 1.7, 1.8, 1.10: p of words, layer inputs, recurrent, softmax input, memory cells; weight decay
NOTHING = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
DROPOUT = {
    "medium/non_regularized": NOTHING,
    "medium/zaremba": (0.0, 0.5, 0.0, 0.5, 0.0, 0.0),
    "medium/moon": (0.0, 0.3, 0.0, 0.3, 0.3, 1e-7),
    "medium/moon_embedding": (0.2, 0.3, 0.0, 0.3, 0.3, 1e-7),
    "medium/moon_loop": (0.0, 0.3, 0.0, 0.3, 0.3, 1e-7),
    "medium/moon_fresh": (0.0, 0.3, 0.0, 0.3, 0.3, 1e-7),
    "medium/variational_tied": (0.2, 0.35, 0.2, 0.35, 0.0, 1e-7),
    "medium/variational_untied": (0.2, 0.35, 0.2, 0.35, 0.0, 1e-7),
    "large/non_regularized": NOTHING,
    "large/zaremba": (0.0, 0.65, 0.0, 0.65, 0.0, 0.0),
    "large/moon": (0.0, 0.5, 0.0, 0.5, 0.5, 1e-7),
    "large/moon_embedding": (0.3, 0.5, 0.0, 0.5, 0.5, 1e-7),
    "large/moon_loop": (0.0, 0.5, 0.0, 0.5, 0.5, 1e-7),
    "large/moon_fresh": (0.0, 0.5, 0.0, 0.5, 0.5, 1e-7),
    "large/variational_tied": (0.3, 0.5, 0.3, 0.5, 0.0, 1e-7),
    "large/variational_untied": (0.3, 0.5, 0.3, 0.5, 0.0, 1e-7),
    "gal1250/variational_untied": (0.3, 0.5, 0.3, 0.5, 0.0, 1e-7),
    "medium_constant/non_regularized": NOTHING,
    "medium_constant/zaremba": (0.0, 0.5, 0.0, 0.5, 0.0, 0.0),
    "medium_constant/variational_untied": (0.2, 0.35, 0.2, 0.35, 0.0, 1e-7),
    **{
        f"inan_{size}/{row}": (0.0, p, p, p, 0.0, 0.0)
        for size, p in (("small", 0.3), ("medium", 0.5), ("large", 0.65))
        for row in ("vd", "vd_al", "vd_re", "vd_real")
    },
    "press_small/non_regularized_wt": NOTHING,
    "press_small/non_regularized_pr": NOTHING,
    "press_small/non_regularized_wt_pr": NOTHING,
    "press_large/zaremba_wt": (0.0, 0.65, 0.0, 0.65, 0.0, 0.0),
    "press_large/bd_wd": (0.3, 0.5, 0.3, 0.5, 0.0, 1e-7),
    "press_large/bd_wt": (0.3, 0.5, 0.3, 0.5, 0.0, 0.0),
    "v1/non_regularized": NOTHING,
    "v1/zaremba": (0.0, 0.25, 0.0, 0.25, 0.0, 0.0),
    "v1/variational_tied": (0.25, 0.25, 0.25, 0.25, 0.0, 1e-5),
    "v1/variational_untied": (0.25, 0.25, 0.25, 0.25, 0.0, 1e-5),
}


class _ParserOnly(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="session")
def parser() -> Any:
    """The parser of main.py, built once."""

    class Stop(cli.CommandLine):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise _ParserOnly(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "CommandLine", Stop)
        patch.setattr(sys, "argv", ["main.py"])
        with pytest.raises(_ParserOnly) as stop:
            cli.run(cli.Trainer)
    return stop.value.args[0]


@pytest.fixture(scope="session")
def parse(parser: Any) -> Callable[..., Any]:
    parsed: dict[tuple[str, ...], Any] = {}

    def read(name: str, subcommand: str = "fit", *options: str) -> Any:
        key = (name, subcommand, *options)
        if key not in parsed:
            arguments = cli.with_rows(["--config", name])
            if subcommand == "reproduce":
                arguments += ["--result", "results/a/b/c/seed0.json"]
            parsed[key] = parser.parse_args([subcommand, *arguments, *options])
        return parsed[key]

    return read


@pytest.fixture
def build(parser: Any, parse: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Model, without memory for its parameters, and data of a configuration."""

    def instantiate(name: str, subcommand: str = "fit", *options: str) -> tuple[Any, Any]:
        with torch.device("meta"):
            built = parser.instantiate_classes(parse(name, subcommand, *options))[subcommand]
        return built.model, built.data

    return instantiate


# --- all configurations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subcommand", ["reproduce", "fit", "test"])
@pytest.mark.parametrize("name", RUNS)
def test_configuration_parses_and_builds_model_and_data(
    name: str, subcommand: str, build: Callable[..., tuple[Any, Any]]
) -> None:
    expected = {
        "ptb": (LanguageModel, PennTreebank),
        "sentiment": (SentimentRegressor, FilmReviews),
        "demo/language_model": (LanguageModel, SnippetLanguage),
        "demo/sentiment": (SentimentRegressor, SnippetRatings),
    }
    model, data = build(name, subcommand)
    [(model_class, data_class)] = [classes for folder, classes in expected.items() if name.startswith(f"{folder}/")]
    assert type(model) is model_class
    assert type(data) is data_class
    assert model.embedding.num_embeddings == data.vocab_size


@pytest.mark.parametrize(
    "name", [group.name for experiment in catalogue().values() for group in experiment.groups.values()]
)
def test_rows_repeat_nothing_that_all_of_their_table_share(name: str) -> None:
    files = [
        yaml.safe_load((CONFIGS / path).read_text())
        for path in (f"{Path(name).parent}/experiment.yaml", f"{name}.yaml")
    ]
    shared = dict(flatten(files[0]["common"])) | dict(flatten(files[1].get("common", {})))
    for row in files[1].get("rows", {}).values():
        assert not [key for key, value in flatten(row) if key in shared and shared[key] == value]


def flatten(config: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    items: list[tuple[str, Any]] = []
    for key, value in config.items():
        items += flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return items


@pytest.mark.parametrize("name", RUNS)
def test_lightning_does_not_shuffle_the_streams_or_repeat_test_items(name: str, parse: Callable[..., Any]) -> None:
    assert parse(name).fit.trainer.use_distributed_sampler is False


@pytest.mark.parametrize("name", RUNS)
def test_every_configuration_can_be_run_in_less_than_all_epochs_on_any_data_folder(
    name: str, parse: Callable[..., Any]
) -> None:
    options = ("--epochs", "1", "--data.init_args.data_dir", "/some/folder", "--seed_everything", "4")
    config = parse(name, "reproduce", *options).reproduce
    assert (config.epochs, str(config.data.init_args.data_dir), config.seed_everything) == (1, "/some/folder", 4)


@pytest.mark.parametrize("name", RUNS)
def test_every_configuration_takes_texts_of_ones_own(name: str, parse: Callable[..., Any]) -> None:
    if "sentiment/" in name:
        options = ("--data", "datamodules.RatedText", "--data.init_args.source", "reviews.csv")
    else:
        options = ("--data", "datamodules.PlainText", "--data.init_args.data_dir", "mine")
    assert parse(name, "fit", *options).fit.data.class_path == options[1]


# --- Penn Treebank ----------------------------------------------------------------------------------------------------


def test_sizes_have_the_six_rows_of_the_table_and_the_readings_of_some() -> None:
    by_size: dict[str, set[str]] = {}
    for name in PTB:
        _, size, row = name.split("/")
        by_size.setdefault(size, set()).add(row)
    readings = {"moon_loop", "moon_fresh"}
    assert by_size == dict.fromkeys(("small", "v1"), ROWS) | dict.fromkeys(("medium", "large"), ROWS | readings) | {
        "medium_constant": {"non_regularized", "zaremba", "variational_untied"},  # Figure 2
        "gal1250": {"variational_untied"},
        **{f"inan_{size}": {"vd", "vd_al", "vd_re", "vd_real"} for size in ("medium", "large")},
        "inan_small": {"vd", "vd_al", "vd_al_stop", "vd_re", "vd_real"},
        "press_small": {"non_regularized_wt", "non_regularized_pr", "non_regularized_wt_pr"},
        "press_large": {"zaremba_wt", "bd_wd", "bd_wt"},
    }


@pytest.mark.parametrize("name", PTB)
def test_penn_treebank_rows_follow_the_published_schedules(name: str, parse: Callable[..., Any]) -> None:
    size, row = name.split("/")[1:]
    config = parse(name).fit
    model, data, trainer = config.model.init_args, config.data.init_args, config.trainer
    found = (
        model.hidden_size,
        data.window,
        model.init_scale,
        trainer.max_epochs,
        model.constant_epochs,
        model.learning_rate_decay,
        trainer.gradient_clip_val,
    )
    expected = SCHEDULES[size]
    # max_epoch 10 of the released scripts, protocol 4 (1)
    if (size == "large" and row.startswith("variational")) or row.startswith("bd_"):
        expected = (*expected[:4], 10, *expected[5:])
    assert found == expected
    assert (data.batch_size, data.vocab_size, model.num_layers, model.learning_rate, model.cell) == (
        20, 10_000, 2, 1.0, "lstm"
    )  # fmt: skip
    assert trainer.gradient_clip_algorithm in (None, "norm")
    assert model.carry_state is (size != "v1")


@pytest.mark.parametrize("name", DROPOUT)
def test_penn_treebank_rows_have_the_published_dropout(name: str, parse: Callable[..., Any]) -> None:
    model = parse(f"ptb/{name}").fit.model.init_args
    found = (
        model.word_dropout,
        model.input_dropout,
        model.recurrent_dropout,
        model.output_dropout,
        model.memory_dropout,
        model.weight_decay,
    )
    assert found == DROPOUT[name]


@pytest.mark.parametrize("name", PTB)
def test_rows_differ_in_masks_as_their_names_say(name: str, parse: Callable[..., Any]) -> None:
    row = name.split("/")[-1]
    is_variational = row.startswith(("variational", "bd"))
    model = parse(name).fit.model.init_args
    assert model.time_masks == ("fresh" if row in ("zaremba", "zaremba_wt", "moon_fresh") else "constant")
    assert model.memory_scale == ("loop" if row == "moon_loop" else "read")
    assert model.gate_masks == ("untied" if row in ("variational_untied", "bd_wd", "bd_wt") else "tied")
    assert (model.memory_dropout > 0) == row.startswith("moon")
    assert (model.recurrent_dropout > 0) == (is_variational or row.startswith("vd"))
    assert (model.word_dropout > 0) == (row == "moon_embedding" or is_variational)
    assert (model.input_dropout > 0) == (not row.startswith("non_regularized"))
    assert model.input_dropout == model.output_dropout
    by_token = "gal1250" in name or row.startswith("bd")  # as in the log, and as Press & Wolf ran it; protocol 1.5
    assert model.word_masks == ("token" if by_token else "type")


@pytest.mark.parametrize("name", PTB)
def test_rows_beyond_the_paper_have_what_their_names_say(name: str, parse: Callable[..., Any]) -> None:
    size, row = name.split("/")[1:]
    model = parse(name).fit.model.init_args
    _, *parts = row.replace("real", "re_al").split("_") if size.startswith(("inan", "press")) else [row]
    assert model.share_masks is size.startswith("inan")
    assert model.tie_weights is ("re" in parts or "wt" in parts)
    assert model.softmax_bias is ("re" not in parts)
    assert model.projection_penalty == (pytest.approx(1 / (20 * 6.5)) if "pr" in parts else None)
    assert model.augmented_loss == (0.65 if "al" in parts else 0.0)
    assert model.learn_expected is ("al" in parts and "stop" not in parts)


@pytest.mark.parametrize(("size", "factor", "after"), [("small", 0.9, 5), ("medium", 0.9, 10), ("large", 0.97, 1)])
def test_rows_of_inan_are_trained_while_the_learning_rate_is_at_least_a_hundredth(
    size: str, factor: float, after: int, build: Callable[..., tuple[Any, Any]], parse: Callable[..., Any]
) -> None:
    name = f"ptb/inan_{size}/vd"
    model, _ = build(name)
    _, [schedule] = model.configure_optimizers()
    [rate] = schedule.lr_lambdas
    epochs = parse(name).fit.trainer.max_epochs
    rates = [rate(epoch - 1) for epoch in range(1, epochs + 2)]
    assert rates[after - 1] == 1.0
    assert rates[after] == pytest.approx(factor)
    assert rates[epochs - 1] >= 0.01 > rates[epochs]


@pytest.mark.parametrize("size", ["small", "v1", "medium", "large"])
def test_tied_and_untied_rows_differ_in_nothing_else(size: str) -> None:
    tied, untied = (copy.deepcopy(find_row(f"ptb/{size}/variational_{masks}").config) for masks in ("tied", "untied"))
    assert tied["model"]["init_args"].pop("gate_masks") == "tied"
    assert untied["model"]["init_args"].pop("gate_masks") == "untied"
    assert tied == untied


@pytest.mark.parametrize("name", PTB)
def test_final_weights_are_tested_but_where_the_protocol_says_best(name: str, parse: Callable[..., Any]) -> None:
    size, row = name.split("/")[1:]
    early_stopping = {("medium", "non_regularized"), ("large", "non_regularized")}
    tested = parse(name).fit.trainer.tested_weights
    overfits = size == "large" and row in ("moon", "moon_loop", "moon_fresh")
    is_best = overfits or (size, row) in early_stopping or size.startswith("inan")
    assert tested == ("best" if is_best else "last")


@pytest.mark.parametrize("row", ["variational_tied", "variational_untied"])
def test_monte_carlo_is_that_of_the_paper_and_of_its_first_version(row: str, parse: Callable[..., Any]) -> None:
    samples = {size: parse(f"ptb/{size}/{row}").fit.model.init_args for size in ("medium", "large", "v1")}
    assert samples["medium"].mc_samples == samples["large"].mc_samples == 1000
    assert {samples[size].mc_masks for size in ("medium", "large")} == {"both"}  # protocol 4 (4)
    assert samples["v1"].mc_samples == 10
    assert samples["v1"].mc_masks == "window"
    assert all(sample.mc_word_dropout is None for sample in samples.values())


@pytest.mark.parametrize(
    ("size", "published"), [("small", 4.65), ("medium", 19.78), ("gal1250", 50.03), ("large", 66.03)]
)
def test_models_of_the_configurations_have_the_published_size(
    size: str, published: float, build: Callable[..., tuple[Any, Any]]
) -> None:
    model, _ = build(f"ptb/{size}/variational_untied")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == published


def test_options_of_a_row_reach_layers_and_data(build: Callable[..., tuple[Any, Any]]) -> None:
    model, _ = build("ptb/medium/moon_loop")
    assert model.rnn.memory_scale == "loop"
    model, data = build("ptb/v1/zaremba")
    assert model.rnn.memory_scale == "read"
    assert (data.sliding_test, data.train_eval_windows) == (True, 105)
    assert build("ptb/small/zaremba")[1].sliding_test is False


# --- sentiment --------------------------------------------------------------------------------------------------------


CURVES = [name for name in RUNS if name.startswith("sentiment/")]
# Protocol 2.2, 2.3: p of words, inputs, recurrent, last state; l2; weight decay
THREE = {
    "standard": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "naive": (0.0, 0.5, 0.0, 0.5, 0.0, 0.0),
    "variational": (0.25, 0.25, 0.25, 0.25, 1e-3, 0.0),
}
AS_EXECUTED = {
    "gate_activation": "hard_sigmoid",
    "recurrent_gain": 1.1,
    "dropout_scale": "test",
    "word_mask_sharing": "batch",
    "penalty": "as_executed",
    "mask_pads": False,
}
MODERN = {
    "gate_activation": "sigmoid",
    "recurrent_gain": 1.0,
    "dropout_scale": "training",
    "word_mask_sharing": "sequence",
    "penalty": "all",
    "mask_pads": True,
    "candidate_activation": None,
    "reset_gate": None,
}


@pytest.mark.parametrize("name", CURVES)
def test_sentiment_curves_have_the_published_settings(name: str, parse: Callable[..., Any]) -> None:
    config = parse(name).fit
    figure, row = name.split("/")[1:]
    model, data = config.model.init_args, config.data.init_args
    found = (
        *(model.word_dropout, model.input_dropout, model.recurrent_dropout, model.output_dropout),
        *(model.l2, model.weight_decay),
    )
    if figure in ("figure3", "recurrent_sweep", "recurrent_sweep_words", "word_sweep"):
        recurrent, words = map(float, re.fullmatch(r"pu(.+)_pe(.+)", row).groups())  # type: ignore[union-attr]
        expected = (words, 0.5, recurrent, 0.5, 1e-6, 0.0)
    elif figure == "decay_sweep":
        expected = (0.25, 0.25, 0.25, 0.25, float(row.split("_")[1]), 0.0)
    elif figure == "length_sweep":
        length, _, words = row.removeprefix("t").partition("_pe")
        expected = (float(words or 0.25), 0.25, 0.25, 0.25, 1e-3, 0.0)
        assert data.chunk_length == int(length)
    elif row == "variational_gru_p0.5":
        expected = (0.5, 0.5, 0.5, 0.5, 1e-6, 0.0)
    elif row == "variational_gru_l2_1e-4":
        expected = (0.25, 0.25, 0.25, 0.25, 1e-4, 0.0)
    elif row == "variational_no_recurrent":
        expected = (0.25, 0.25, 0.0, 0.25, 1e-3, 0.0)
    elif figure == "figure2_control":
        expected = (*THREE[row.rpartition("_")[0]][:4], 1e-3, 0.0)
    elif figure == "window_masks":
        expected = THREE["naive"]
    else:
        expected = THREE[row.rpartition("_")[0]]
        if figure.endswith("_modern") and row.startswith("variational"):
            expected = (*expected[:4], 0.0, 0.01)
    assert found == expected
    assert model.time_masks == ("fresh" if row.startswith("naive") else "constant")
    assert model.gate_masks == ("tied" if row.startswith(("naive", "constant")) else "untied")
    assert model.cell == ("gru" if figure.startswith("figure10") else "lstm")
    assert (model.embedding_size, model.hidden_size, model.learning_rate) == (128, 128, 1e-3)
    assert (data.batch_size, data.vocab_size) == (128, 20_003)
    assert data.chunk_length == 200 or figure == "length_sweep"
    assert config.trainer.gradient_clip_val is None
    assert config.trainer.max_epochs == 250  # protocol 2.2, for the LSTM; the original GRU scripts ran 1250


@pytest.mark.parametrize("name", CURVES)
def test_sentiment_curves_are_as_executed_or_modern(name: str, parse: Callable[..., Any]) -> None:
    model = parse(name).fit.model.init_args
    preset = MODERN if "_modern/" in name else AS_EXECUTED
    if model.cell == "gru" and preset is AS_EXECUTED:
        preset = preset | {"candidate_activation": "sigmoid", "reset_gate": "before"}
    if name.endswith("_all"):
        preset = preset | {"penalty": "all"}
    assert {key: model[key] for key in preset} == preset


@pytest.mark.parametrize("name", CURVES)
def test_sampled_networks_predict_every_fifth_epoch_where_there_is_dropout(
    name: str, parse: Callable[..., Any]
) -> None:
    model = parse(name).fit.model.init_args
    has_dropout = "standard" not in name
    assert (model.mc_every, model.mc_epoch_samples, model.mc_samples) == ((5, 10, 50) if has_dropout else (0, 10, 0))


@pytest.mark.parametrize("name", CURVES)
def test_reviews_are_held_out_only_where_they_choose_the_epoch(name: str, parse: Callable[..., Any]) -> None:
    config = parse(name).fit
    figure = name.split("/")[1]
    is_fair = figure.startswith("fair")
    split = int(figure[-1]) if figure.startswith("fair_split") else 0
    data = config.data.init_args
    assert (data.validation_share, data.split_seed) == ((0.1, split) if is_fair else (0.0, 0))
    assert config.trainer.tested_weights == ("best" if is_fair else "last")
    assert config.model.init_args.monitor == ("valid_rmse" if is_fair else "test_rmse")


@pytest.mark.parametrize("name", SWEEPS)
def test_points_of_a_sweep_are_understood_and_set_the_dropout_they_name(name: str, parser: Any) -> None:
    sweep = grid.load(Path(name).stem)
    names = list(grid.points(sweep))
    for point in (names[0], names[1], names[-1]):
        options = cli.with_rows(grid.options(sweep, point))
        config = parser.parse_args(["fit", *options]).fit
        model = config.model.init_args
        values = [float(value) for value in point.split("_")]
        if name == "sweeps/ptb_dropout":
            assert [model.word_dropout, model.input_dropout] == values
            assert [model.recurrent_dropout, model.output_dropout] == values
        else:
            assert [model.recurrent_dropout, model.word_dropout] == values
            assert (model.monitor, config.data.init_args.validation_share) == ("valid_rmse", 0.1)
