"""Refactoring leaves numbers alone: small runs give the figures that an earlier commit gave, and old models are read.

`same_numbers/runs.json` has metrics and curves of the runs below, written at commit a3eb65d, on a CPU, by

    python -m tests.test_same_numbers

The checkpoints, and what their models predict (`checkpoints.json`), were written by the code of commit 8dd2ce8: its
`main.py reproduce` with the options of `OLD` (there, "simple_words" was named "words"; `language.ckpt` is the last
checkpoint, the others are the best ones), then `predictions` below. Figures are compared to a relative 1e-5, since
processors round differently. Change these files only for a change that is meant to change numbers.
"""

import csv
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_modules import LanguageModel, SentimentRegressor, load

FILES = Path(__file__).parent / "same_numbers"
TIMINGS = {"seconds", "words_per_s"}

DROPOUT: dict[str, Any] = {"word_dropout": 0.25, "input_dropout": 0.3, "recurrent_dropout": 0.35, "output_dropout": 0.4}
SHARED: dict[str, Any] = {"share_masks": True, "input_dropout": 0.3, "recurrent_dropout": 0.3, "output_dropout": 0.3}
AS_EXECUTED: dict[str, Any] = {
    "embedding_size": 4,
    "hidden_size": 4,
    "gate_masks": "untied",
    "gate_activation": "hard_sigmoid",
    "recurrent_gain": 1.1,
    "dropout_scale": "test",
    "word_mask_sharing": "batch",
    "penalty": "as_executed",
    "l2": 1e-3,
    "learning_rate": 0.01,
    "mc_every": 2,
    "mc_epoch_samples": 2,
    "mc_samples": 3,
    "monitor": "valid_rmse",
    **DROPOUT,
}
MODERN: dict[str, Any] = {
    "gate_activation": "sigmoid",
    "recurrent_gain": 1.0,
    "dropout_scale": "training",
    "word_mask_sharing": "sequence",
    "penalty": "all",
    "l2": 0.0,
    "weight_decay": 0.01,
    "mask_pads": True,
}


def language(trainer: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    return {
        "model": {
            "class_path": "lightning_modules.LanguageModel",
            "init_args": {"hidden_size": 4, "num_layers": 2, "mc_samples": 3, **model},
        },
        "data": {
            "class_path": "datamodules.PlainText",
            "init_args": {"batch_size": 2, "window": 5, "vocab_size": 22, "train_eval_windows": 2},
        },
        "trainer": {"max_epochs": 2, **(trainer or {})},
    }


def ratings(tokens: str = "words", **model: Any) -> dict[str, Any]:
    return {
        "model": {"class_path": "lightning_modules.SentimentRegressor", "init_args": AS_EXECUTED | model},
        "data": {
            "class_path": "datamodules.RatedText",
            "init_args": {
                "batch_size": 8,
                "chunk_length": 5,
                "vocab_size": 24,
                "validation_share": 0.2,
                "tokens": tokens,
            },
        },
        "trainer": {"max_epochs": 2, "tested_weights": "best"},
    }


RUNS = {
    "variational": language(
        gate_masks="untied", mc_masks="both", learning_rate_decay=1.5, constant_epochs=0, **DROPOUT
    ),
    "zaremba": language({"gradient_clip_val": 0.5}, time_masks="fresh", input_dropout=0.5, output_dropout=0.5),
    "moon": language(memory_dropout=0.3, memory_scale="loop", input_dropout=0.3, weight_decay=1e-3),
    "gru": language({"tested_weights": "best"}, cell="gru", **DROPOUT),
    "inan": language(
        {"gradient_clip_val": 0.5},
        tie_weights=True,
        augmented_loss=0.65,
        learn_expected=True,
        projection_penalty=0.1,
        **SHARED,
    ),
    "keras_lstm": ratings(),
    "keras_gru": ratings(cell="gru"),
    "modern": ratings(**MODERN),
}
OLD = {
    "language": language(num_layers=1, gate_masks="untied", mc_masks="both", **DROPOUT),
    "sentiment": ratings("simple_words"),  # it was named "words"
    "sentiment_gru": ratings("spaces", cell="gru"),
}
WORDS = [f"w{i}" for i in range(20)]
TEXT = "w1 w2 w3 nobody\nw5 w8 w13\n"
TEXTS = ["w1 w19 w18", "w1 w2 w3 w0 w1 w2 w1 w4 nobody"]


def write_texts(folder: Path) -> None:
    """A plain text of 20 words and texts with ratings, by formula."""
    folder.mkdir()
    for name, lines in (("train", 40), ("valid", 16), ("test", 12)):
        sentences = [WORDS, *([WORDS[(i * i + j * (1 + i % 3)) % 20] for j in range(3 + i % 5)] for i in range(lines))]
        (folder / f"{name}.txt").write_text("".join(f"{' '.join(sentence)}\n" for sentence in sentences))
    rows = [([WORDS[(i * i + 3 * i * j) % 20] for j in range(1 + i * 7 % 9)], (i * i + 3 * i) % 20) for i in range(60)]
    (folder / "reviews.csv").write_text("text,rating\n" + "".join(f"{' '.join(text)},{r / 4}\n" for text, r in rows))


def options(config: dict[str, Any], tmp_path: Path) -> list[str]:
    texts = tmp_path / "texts"
    if not texts.exists():
        write_texts(texts)
    source = (
        {"data_dir": str(texts)} if "PlainText" in config["data"]["class_path"] else {"source": f"{texts}/reviews.csv"}
    )
    config = config | {"data": config["data"] | {"init_args": config["data"]["init_args"] | source}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    return [
        *("--config", str(tmp_path / "config.yaml"), "--seed_everything", "0"),
        *("--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"),
        *("--trainer.num_sanity_val_steps", "0", "--trainer.use_distributed_sampler", "false"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    ]


def reproduce(run: Callable[..., Any], config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Metrics and curve of a run, without timings."""
    result = tmp_path / "results/same/numbers/run/seed0.json"
    run("reproduce", *options(config, tmp_path), "--trainer.logger", "false", "--result", str(result))
    report = json.loads(result.read_text())

    def figures(entry: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in entry.items() if name not in TIMINGS}

    return {"metrics": figures(report["metrics"]), "curve": [figures(entry) for entry in report["curve"]]}


def predictions(model: LanguageModel | SentimentRegressor) -> dict[str, Any]:
    """What a model says about other texts."""
    if isinstance(model, LanguageModel):
        said = model.surprisals(TEXT, mc_samples=3, seed=1)
        assert said.mc is not None
        assert said.information is not None
        found = {"approximation": said.approximation, "mc": said.mc, "information": said.information}
    else:
        rated = model.rate(TEXTS, mc_samples=3, seed=1)
        low, high = rated.interval(0.9)
        found = {"approximation": rated.approximation, "samples": rated.samples, "low": low, "high": high}
    return {name: values.tolist() for name, values in found.items()}


def close(values: Any) -> Any:
    """Equal to a relative 1e-5, however deep the numbers are in lists and dictionaries."""
    if isinstance(values, dict):
        return {name: close(value) for name, value in values.items()}
    if isinstance(values, list):
        return [close(value) for value in values]
    assert values is not None, "a run of these tests must not diverge"
    return pytest.approx(values, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", RUNS)
def test_a_small_run_gives_the_figures_that_it_always_gave(name: str, call: Callable[..., Any], tmp_path: Path) -> None:
    expected = json.loads((FILES / "runs.json").read_text())
    found = reproduce(call, RUNS[name], tmp_path)
    assert found == close(expected[name])
    assert [list(entry) for entry in found["curve"]] == [list(entry) for entry in expected[name]["curve"]]


@pytest.mark.parametrize("name", OLD)
def test_an_old_checkpoint_predicts_what_it_always_predicted(name: str) -> None:
    expected = json.loads((FILES / "checkpoints.json").read_text())[name]
    assert predictions(load(FILES / f"{name}.ckpt")) == close(expected["predictions"])


@pytest.mark.parametrize("name", OLD)
def test_the_test_of_an_old_checkpoint_gives_the_figures_that_it_always_gave(
    name: str, call: Callable[..., Any], tmp_path: Path
) -> None:
    expected = json.loads((FILES / "checkpoints.json").read_text())[name]["test"]
    log = ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", str(tmp_path)]
    outcome = call("test", *options(OLD[name], tmp_path), *log, "--ckpt_path", str(FILES / f"{name}.ckpt"))
    assert (outcome.status, outcome.err) == (0, "")
    [file] = tmp_path.rglob("metrics.csv")
    with file.open() as lines:
        logged = {metric: float(v) for row in csv.DictReader(lines) for metric, v in row.items() if v}
    assert {metric: logged.get(metric) for metric in expected} == close(expected)


if __name__ == "__main__":
    from main import main

    written = {}
    for run_name, run_config in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            written[run_name] = reproduce(lambda *words: main(list(words)), run_config, Path(folder))
    (FILES / "runs.json").write_text(json.dumps(written, indent=1) + "\n")
    sys.exit()
