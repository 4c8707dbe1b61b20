"""`main.py predict MODEL [FILE]`, with models that one epoch has trained."""

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy
import pandas
import pytest
import torch
import yaml

from inference.export import save
from lightning_modules import LanguageModel, SentimentRegressor, load
from lightning_modules.texts import Ratings, Surprisals
from tests.tiny import tiny_run

Call = Callable[..., Any]


@pytest.fixture
def language(call: Call, tiny_treebank: Path, tmp_path: Path) -> str:
    assert call("fit", *tiny_run(tmp_path, "--trainer.max_epochs", "1")).status == 0
    return str(tmp_path / "run/checkpoints/last.ckpt")


@pytest.fixture
def sentiment(tmp_path: Path) -> str:
    """A checkpoint as a run writes it, but quickly; it never was tested."""
    words = ["<pad>", "<start>", "<unk>", "<unused>", "good", "bad", "film", "a", ",", "["]
    reader = {"vocabulary": words, "tokens": "words", "chunk_length": 4, "window": None}
    model = SentimentRegressor(10, embedding_size=5, hidden_size=4, output_dropout=0.5, recurrent_dropout=0.3)
    checkpoint = {"model": "SentimentRegressor", "reader": reader, "state_dict": model.state_dict()}
    checkpoint |= {"hyper_parameters": dict(model.hparams), "curve": [], "provenance": [], "noise": {}}
    torch.save(checkpoint, tmp_path / "sentiment.ckpt")
    return str(tmp_path / "sentiment.ckpt")


@pytest.fixture
def text(tmp_path: Path) -> Callable[[str | bytes], str]:
    def write(content: str | bytes) -> str:
        (tmp_path / "text.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(tmp_path / "text.txt")

    return write


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


# --- what is printed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "more", "names"),
    [
        ("sentiment", [], ["mc_samples", "seed", "format", "interval"]),
        ("language", [], ["mc_samples", "seed", "format"]),
        ("language", ["--generate", "7"], ["seed", "format", "sequences", "temperature"]),
    ],
)
def test_defaults_are_those_that_the_help_names(
    model: str, more: list[str], names: list[str], call: Call, text: Any, request: pytest.FixtureRequest
) -> None:
    path, file = request.getfixturevalue(model), text("good w1\n" if model == "sentiment" else "w1 w2\nw3\n")
    shown = " ".join(call("predict", "--help").out.partition("options:")[2].split())
    options = [re.findall(rf"--{name} [^()]*\(default: ([\w.]+)\)", shown) for name in names]
    explicit = [word for name, [default] in zip(names, options, strict=True) for word in (f"--{name}", default)]
    outcome = call("predict", path, file, *more)
    assert outcome.status == 0, outcome.err
    assert call("predict", path, file, *more, *explicit) == outcome
    assert call("predict", path, file, *more, "--seed", "1") != outcome


def test_a_language_model_gives_surprisals_and_perplexities(language: str, call: Call, text: Any) -> None:
    outcome = call("predict", language, text("w0 w1\nw2 w3\n"), "--mc_samples", "5", "--seed", "3")
    assert outcome.status == 0
    header, *table = outcome.out.splitlines()
    assert " ".join(header.split()) == "line position word unknown surprisal surprisal mc mutual information"
    assert [line.split()[2] for line in table[:5]] == ["w1", "<eos>", "w2", "w3", "<eos>"]
    model = load(language)
    assert isinstance(model, LanguageModel)
    said = model.surprisals("w0 w1\nw2 w3\n", 5, seed=3)
    assert (
        f"perplexity {said.perplexity:.2f} by the approximation, {said.perplexity_mc:.2f} by MC with 5 sampled networks"
        in table
    )
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_words_have_their_places_in_the_text(language: str, call: Call, text: Any) -> None:
    outcome = call("predict", language, text("w0 w1\r\n\n w2\nw3"), "--mc_samples", "0", "--format", "jsonl")
    assert [(row["line"], row["position"], row["word"]) for row in rows(outcome.out)] == [
        (1, 2, "w1"),
        (1, 3, "<eos>"),
        (2, 1, "<eos>"),
        (3, 1, "w2"),
        (3, 2, "<eos>"),
        (4, 1, "w3"),
        (4, 2, "<eos>"),
    ]


def test_the_perplexities_are_those_of_the_surprisals_that_are_written(language: str, call: Call, text: Any) -> None:
    file = text("w0 w1\nw2 w3\n")
    model = load(language)
    assert isinstance(model, LanguageModel)
    said = model.surprisals("w0 w1\nw2 w3\n", 5)
    for form, read in (("csv", pandas.read_csv), ("jsonl", partial(pandas.read_json, lines=True))):
        assert call("predict", language, file, "--mc_samples", "5", "--format", form, "--output", "out").status == 0
        columns = read("out")
        assert numpy.exp(columns.surprisal.mean()) == pytest.approx(said.perplexity, rel=1e-9)
        assert numpy.exp(columns.surprisal_mc.mean()) == pytest.approx(said.perplexity_mc, rel=1e-9)


def test_a_sentiment_model_rates_each_line(sentiment: str, call: Call, text: Any) -> None:
    outcome = call("predict", sentiment, text("A good film\n\nbad, odd\r\n"), "--format", "jsonl")
    assert outcome.status == 0
    first, second = rows(outcome.out)
    assert (first["line"], first["text"], first["unknown"]) == (1, "A good film", 0)
    assert (second["line"], second["text"], second["unknown"]) == (3, "bad, odd", 1)
    for row in (first, second):
        assert row["low"] < row["mean"] < row["high"]
        assert row["std"] > 0
    assert "of 50 sampled networks" in outcome.err
    assert "90 % interval of the model's uncertainty alone; noise is unknown" in outcome.err


def test_ratings_and_their_intervals_are_those_of_the_model_in_the_rows_of_their_lines(
    sentiment: str, call: Call, text: Any, tmp_path: Path
) -> None:
    checkpoint = torch.load(sentiment, weights_only=True)
    torch.save(checkpoint | {"noise": {"tau": 4.0, "tau_mc": 16.0}}, tmp_path / "tested.ckpt")
    lines = ["a good film", "bad, bad", "film"]
    file = text("\n\n".join(lines))
    for path, samples, noise in ((sentiment, 5, None), ("tested.ckpt", 5, 0.25), ("tested.ckpt", 0, 0.5)):
        model = load(tmp_path / path)
        assert isinstance(model, SentimentRegressor)
        said = model.rate(lines, samples, seed=7)
        columns = {"approximation": said.approximation}
        columns |= {"mean": said.mean, "std": said.std} if samples else {}
        columns["low"], columns["high"] = said.interval(0.5)
        options = ("--mc_samples", str(samples), "--seed", "7", "--interval", "0.5", "--format", "jsonl")
        outcome = call("predict", str(tmp_path / path), file, *options)
        found = rows(outcome.out)
        assert [(row["line"], row["text"]) for row in found] == [(1, lines[0]), (3, lines[1]), (5, lines[2])]
        for name, values in columns.items():
            assert [row[name] for row in found] == pytest.approx(values.tolist(), rel=1e-12), name
        of = "the model's uncertainty alone" if noise is None else f"model and noise of a chunk (its std: {noise})"
        assert f"low, high: 50 % interval of {of}" in outcome.err
        if not samples:
            quartile = NormalDist(sigma=0.5).inv_cdf(0.75)
            assert found[0]["high"] - found[0]["approximation"] == pytest.approx(quartile)


def test_words_are_counted_and_a_seed_draws_the_networks_of_all_columns(language: str, call: Call, text: Any) -> None:
    content = "w0 w1\nw2 w3\n"
    outcome = call("predict", language, text(content), "--mc_samples", "3", "--seed", "9", "--format", "jsonl")
    model = load(language)
    assert isinstance(model, LanguageModel)
    said = model.surprisals(content, 3, seed=9)
    assert said.mc is not None
    assert said.information is not None
    expected = {"surprisal": said.approximation, "surprisal_mc": said.mc, "mutual_information": said.information}
    for name, values in expected.items():
        assert [row[name] for row in rows(outcome.out)] == pytest.approx(values.tolist(), rel=1e-12), name
    assert "5 words, 0 unknown; in nats" in outcome.err


def test_unknown_words_are_counted_and_told(call: Call, text: Any, tmp_path: Path) -> None:
    model = LanguageModel(4, 3)
    reader = {"vocabulary": ["<unk>", "<eos>", "the", "cat"], "tokens": "spaces", "chunk_length": None, "window": 5}
    checkpoint = {"model": "LanguageModel", "reader": reader, "state_dict": model.state_dict()}
    checkpoint |= {"hyper_parameters": dict(model.hparams), "curve": [], "provenance": []}
    torch.save(checkpoint, tmp_path / "unknown.ckpt")
    outcome = call("predict", str(tmp_path / "unknown.ckpt"), text("the cow\ncat the cat cat\n"), "--format", "jsonl")
    unknown = {row["word"]: row["unknown"] for row in rows(outcome.out)}
    assert unknown == {"cow": True, "<eos>": False, "cat": False, "the": False}
    assert "7 words, 1 unknown" in outcome.err


def test_a_table_has_four_digits_of_the_largest_number_of_a_column(
    sentiment: str, call: Call, text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    approximation = torch.tensor([12.3456, -0.0123456])
    samples = torch.tensor([[0.001, 0.002], [0.003, 0.002]])
    monkeypatch.setattr(SentimentRegressor, "rate", lambda *_: Ratings(approximation, samples, None))
    _, *table = call("predict", sentiment, text("good\nbad\n")).out.splitlines()
    # mean 0.002 has six decimals at most, std 0.001
    assert [line.split()[3:6] for line in table[:2]] == [
        ["12.35", "0.002000", "0.001000"],
        ["-0.01", "0.002000", "0.000000"],
    ]
    monkeypatch.setattr(SentimentRegressor, "rate", lambda *_: Ratings(1e-9 * approximation, samples, None))
    _, *table = call("predict", sentiment, text("good\nbad\n")).out.splitlines()
    assert [line.split()[3] for line in table[:2]] == ["1.235e-08", "-1.235e-11"]


def test_what_is_generated_is_what_the_options_ask_for(
    language: str, call: Call, text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def generate(model: LanguageModel, prompt: str, words: int, **options: Any) -> list[list[str]]:
        asked.update(options, words=words)
        return [["w1"]]

    monkeypatch.setattr(LanguageModel, "generate", generate)
    plain = {"words": 5, "sequences": 1, "temperature": 1.0, "top_k": None, "unknown": True, "sampled": True, "seed": 0}
    for options, changes in {
        "": {},
        "--mc_samples 0": {"sampled": False},
        "--mc_samples 2": {},
        "--no_unknown --temperature 0": {"unknown": False, "temperature": 0.0},
        "--sequences 3 --top_k 2 --seed 9": {"sequences": 3, "top_k": 2, "seed": 9},
    }.items():
        assert call("predict", language, text("w1\n"), "--generate", "5", *options.split()).status == 0
        assert asked == plain | changes


def test_generated_lines_are_spelled_as_lines(
    language: str, call: Call, text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["w1", "w2", "<eos>", "w3", "<eos>", "<eos>", "w4"]
    monkeypatch.setattr(LanguageModel, "generate", lambda *_, **__: [words, words[:2]])
    outcome = call("predict", language, text("w1\n"), "--generate", "7", "--sequences", "2", "--format", "jsonl")
    assert [(row["sequence"], row["generated"]) for row in rows(outcome.out)] == [(1, "w1 w2\nw3\n\nw4"), (2, "w1 w2")]


def test_a_file_may_be_one_text(sentiment: str, call: Call, text: Any) -> None:
    outcome = call("predict", sentiment, text("A good film\nbad\n"), "--whole", "--format", "jsonl")
    [row] = rows(outcome.out)
    assert row["text"] == "A good film\nbad\n"


def test_csv_has_the_numbers_of_jsonl(sentiment: str, call: Call, text: Any) -> None:
    file = text('good "film", bad\nbad\n')
    lines = rows(call("predict", sentiment, file, "--format", "jsonl").out)
    table = list(csv.DictReader(io.StringIO(call("predict", sentiment, file, "--format", "csv").out)))
    assert [{name: str(value) for name, value in line.items()} for line in lines] == table


def test_markup_and_long_texts_leave_a_table_in_order(sentiment: str, call: Call, text: Any) -> None:
    content = "good [red] [/nothing] \x1b[31m film\n" + "bad film " * 500 + "\n"
    outcome = call("predict", sentiment, text(content))
    assert outcome.status == 0
    assert len(outcome.out.splitlines()) == 1 + 2 + 2
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert "[red] [/" in outcome.out
    assert "\x1b" not in outcome.out


def test_a_text_may_come_from_standard_input(
    sentiment: str, call: Call, text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = call("predict", sentiment, text("a good film\n"), "--format", "jsonl").out
    for arguments in ([], ["-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a good film\n")))
        assert call("predict", sentiment, *arguments, "--format", "jsonl").out == expected


def test_an_output_file_has_what_would_be_printed(sentiment: str, call: Call, text: Any, tmp_path: Path) -> None:
    arguments = ("predict", sentiment, text("good\n"), "--format", "csv")
    printed = call(*arguments).out
    outcome = call(*arguments, "--output", str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_text() == printed
    assert outcome.out == ""
    assert f"wrote {tmp_path}/out.csv" in outcome.err


def test_a_tilde_is_the_home_folder_in_python_and_in_options_where_no_shell_expands_it(
    sentiment: str, call: Call, text: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text("good\n")
    home, away = tmp_path, tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    monkeypatch.setenv("HOME", str(home))
    assert call("predict", "~/sentiment.ckpt", "~/text.txt", "--format", "csv", "--output=~/out.csv").status == 0
    assert (home / "out.csv").is_file()
    assert call("export", "~/sentiment.ckpt", "~/exported").status == 0
    model = load("~/sentiment.ckpt")
    save(model, "~/saved")
    expected = model.rate(["good"], 2).samples  # type: ignore[union-attr, operator]
    for folder in ("~/exported", Path("~/saved")):
        assert torch.equal(load(folder).rate(["good"], 2).samples, expected)  # type: ignore[union-attr, operator]
    assert not any(away.iterdir())


def test_without_a_home_folder_paths_are_what_they_are(
    sentiment: str, call: Call, text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    assert call("predict", sentiment, text("good\n"), "--format", "csv").status == 0
    refused(call("predict", "~nobody-of-this-name/last.ckpt", text("good\n")), "there is no folder")


def test_sequences_are_generated_reproducibly(language: str, call: Call, text: Any) -> None:
    arguments = ("predict", language, text("w1 w2\n"), "--generate", "8", "--sequences", "3", "--format", "jsonl")
    outcome = call(*arguments, "--seed", "5", "--temperature", "0.7", "--top_k", "4", "--no_unknown")
    drawn = rows(outcome.out)
    model = load(language)
    assert isinstance(model, LanguageModel)
    words = model.generate("w1 w2", 8, sequences=3, seed=5, temperature=0.7, top_k=4)
    assert [row["sequence"] for row in drawn] == [1, 2, 3]
    assert [row["generated"].split() for row in drawn] == [[w for w in row if w != "<eos>"] for row in words]
    approximation = rows(call(*arguments, "--mc_samples", "0", "--temperature", "0").out)
    assert len({row["generated"] for row in approximation}) == 1


def test_the_noise_that_a_run_has_measured_widens_its_intervals(call: Call, tmp_path: Path) -> None:
    table = [{"text": f"film {i} is {'good ' * (i % 9)}", "rating": i / 3} for i in range(60)]
    (tmp_path / "rated.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in table))
    result = tmp_path / "results/mine/reviews/variational/seed0.json"
    options = {
        "config": "demo/sentiment/variational",
        "data": "datamodules.RatedText",
        "data.init_args.source": tmp_path / "rated.jsonl",
        "data.init_args.chunk_length": 5,
        "data.init_args.vocab_size": 12,
        "data.init_args.validation_share": 0.3,
        "trainer.default_root_dir": tmp_path / "run",
        "trainer.logger": "false",
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "epochs": 1,
        "result": result,
    }
    assert call("reproduce", *(f"--{name}={value}" for name, value in options.items())).status == 0
    metrics = json.loads(result.read_text())["metrics"]
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    tested = "best" if config["trainer"].get("tested_weights") == "best" else "last"
    checkpoint = tmp_path / f"run/checkpoints/{tested}.ckpt"
    model = load(checkpoint)
    assert isinstance(model, SentimentRegressor)
    assert model.noise == pytest.approx({"tau": metrics["tau"], "tau_mc": metrics["tau_mc"]}, rel=1e-6)
    (tmp_path / "text.txt").write_text("a good film\n")
    outcome = call("predict", str(checkpoint), str(tmp_path / "text.txt"), "--format", "jsonl")
    [row] = rows(outcome.out)
    assert row["high"] - row["low"] >= 0.9 * 2 * 1.6449 * metrics["tau_mc"] ** -0.5
    assert "90 % interval of model and noise of a chunk (its std: " in outcome.err


def test_help_is_of_texts_without_a_configuration_and_lightnings_with_one(call: Call) -> None:
    ours = call("predict", "--help").out
    assert "MODEL [FILE]" in ours
    assert "--config" in ours  # names the other one
    assert max(map(len, ours.splitlines())) <= 80
    assert "--trainer.max_epochs" in call("predict", "--config", "ptb/small/zaremba", "--help").out


# --- bad input --------------------------------------------------------------------------------------------------------


def refused(outcome: Any, *named: str) -> None:
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("error:") == 1
    assert "Traceback" not in outcome.err
    for part in named:
        assert part in outcome.err


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "text.txt is empty"),
        (b" \n\n", "text.txt is empty"),
        (b"good\nfilm \xff", "line 2: the byte 0xff is not UTF-8"),
        (b"good\0film", "line 1 has a NUL character"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is not UTF-8"),
        (b"xyzzy plugh\n", "none of the words that the model knows"),
    ],
)
def test_a_file_that_is_no_text_of_use_is_refused(
    content: bytes, named: str, sentiment: str, call: Call, text: Any, tmp_path: Path
) -> None:
    output = tmp_path / "out.csv"
    refused(call("predict", sentiment, text(content), "--output", str(output)), "text.txt", named)
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--mc_samples 1", "error: --mc_samples must be 0 (the approximation alone) or from 2 to 1000, got 1"),
        ("--mc_samples 2.5", "argument --mc_samples"),
        ("--interval 1", "error: --interval must be above 0 and below 1, got 1.0"),
        ("--interval nan", "error: --interval must be a finite number, got nan"),
        ("--interval 0.5 --mc_samples 0", "--interval needs sampled networks"),
        ("--seed -1", "error: --seed must be at least 0 and at most 9223372036854775807, got -1"),
        ("--format xml", "argument --format"),
        ("--generate 5", "--generate needs a language model; "),
        ("--top_k 5", "--top_k needs a language model and --generate"),
        (
            "--modle 3",
            "main.py predict: unrecognized arguments: --modle 3 (`main.py predict --help` lists the options)",
        ),
    ],
)
def test_options_of_no_use_to_a_sentiment_model_are_refused(
    options: str, named: str, sentiment: str, call: Call, text: Any, tmp_path: Path
) -> None:
    file, output = text("good\n"), tmp_path / "out"
    refused(call("predict", sentiment, file, *options.split(), "--output", str(output)), named)
    assert not output.exists()


def test_options_of_no_use_to_a_language_model_are_refused(language: str, call: Call, text: Any) -> None:
    file = text("w1 w2\n")
    for options, named in {
        "--interval 0.5": "--interval needs a sentiment model",
        "--whole": "--whole needs a sentiment model",
        "--temperature 2": "--temperature needs a language model and --generate",
        "--generate 0": "error: --generate must be at least 1 and at most 100000, got 0",
        "--generate 1000000": "error: --generate must be at least 1 and at most 100000, got 1000000",
        "--generate 3 --temperature -1": "error: --temperature must be at least 0, got -1.0",
        "--generate 3 --top_k 13": "error: --top_k must be at least 1 and at most 12, got 13",
        "--generate 3 --sequences 0": "error: --sequences must be at least 1",
        "--generate 3 --mc_samples 1": "error: --mc_samples must be 0 (the approximation alone) or from 2 to 1000",
        "--mc_samples 1": "error: --mc_samples must be 0 (the approximation alone) or from 2 to 1000, got 1",
    }.items():
        refused(call("predict", language, file, *options.split()), named)


def test_samples_of_a_model_without_dropout_are_refused_by_the_option_that_was_typed(
    sentiment: str, call: Call, text: Any, tmp_path: Path
) -> None:
    checkpoint = torch.load(sentiment, weights_only=True)
    checkpoint["hyper_parameters"] |= {"output_dropout": 0.0, "recurrent_dropout": 0.0}
    torch.save(checkpoint, tmp_path / "plain.ckpt")
    outcome = call("predict", str(tmp_path / "plain.ckpt"), text("good\n"), "--mc_samples", "5")
    refused(outcome, "error: --mc_samples=5, but the model has no dropout")


def test_a_word_that_a_vocabulary_without_unk_lacks_is_refused(language: str, call: Call, text: Any) -> None:
    refused(call("predict", language, text("w1 xyzzy\n")), "'xyzzy' is unknown")


def test_a_table_that_nobody_would_read_is_refused(language: str, sentiment: str, call: Call, text: Any) -> None:
    advice = "rows is for nobody to read: choose --format csv or jsonl"
    refused(call("predict", sentiment, text("good\n" * 10_001)), f"10,001 {advice}")
    refused(call("predict", language, text("w1 " * 10_001)), f"10,002 {advice}")


def test_one_text_of_many_lines_is_one_row_of_a_table(sentiment: str, call: Call, text: Any) -> None:
    outcome = call("predict", sentiment, text("good\n" * 10_001), "--whole", "--mc_samples", "0")
    assert outcome.status == 0, outcome.err


def test_models_and_files_that_are_not_there_are_answered_with_those_that_are(
    sentiment: str, call: Call, text: Any, tmp_path: Path
) -> None:
    file = text("good\n")
    refused(call("predict", str(tmp_path / "last.ckpt"), file), "last.ckpt is no file", "'sentiment.ckpt'")
    (tmp_path / "runs").mkdir()
    refused(call("predict", "runs/last", file), f"{tmp_path}/runs/last is no file or folder", "hub is not asked for it")
    refused(call("predict", sentiment, str(tmp_path / "other.txt")), "other.txt does not exist", "'text.txt'")
    for folder in (str(tmp_path), ""):
        refused(call("predict", sentiment, folder), f"error: {tmp_path} is a folder, but a file is needed: name one")
    refused(call("predict", "", file), "error: . has no config.json")
    refused(call("predict", sentiment, file, "--output", str(tmp_path / "no/out")), "no/out", "name a file in a folder")
    refused(call("predict", sentiment, file, "--output", str(tmp_path)), "name a file in a folder")
    refused(call("predict"), "MODEL")


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_predicted(
    sentiment: str, call: Call, text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SentimentRegressor, "rate", None)  # or it is a TypeError
    said = "/proc/out.csv cannot be written, since no file can be made in /proc"
    refused(call("predict", sentiment, text("good\n"), "--output", "/proc/out.csv"), said, "(--output)")


def test_an_output_that_could_not_be_written_to_its_end_is_not_there(
    sentiment: str, call: Call, text: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = text("good\n")
    (tmp_path / "out.csv").write_text("of yesterday")
    before = sorted(tmp_path.iterdir())

    def full(self: Path, *_: Any, **__: Any) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for name in ("out.csv", "new.csv"):
        refused(call("predict", sentiment, file, "--output", name), f"{name} cannot be written", "No space left")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "out.csv").read_text() == "of yesterday"


def test_neither_the_model_nor_the_text_is_written_over(
    sentiment: str, call: Call, text: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = text("good\n")
    assert call("export", sentiment, "saved").status == 0
    (tmp_path / "link").symlink_to(sentiment)
    files = [Path(sentiment), Path(file), *(tmp_path / "saved").iterdir()]
    before = [path.read_bytes() for path in files]
    for model, output, what in (
        (sentiment, sentiment, "model"),
        ("sentiment.ckpt", str(tmp_path / "saved/../sentiment.ckpt"), "model"),
        (sentiment, "link", "model"),
        ("saved", "saved/model.safetensors", "model"),
        ("saved", "saved/new.csv", "model"),
        (sentiment, file, "text"),
        (sentiment, "./text.txt", "text"),
    ):
        said = f"--output {Path(output)} would write over the {what}"
        refused(call("predict", model, file, "--output", output), said)
    assert [path.read_bytes() for path in files] == before
    assert not (tmp_path / "saved/new.csv").exists()
    assert call("predict", sentiment, file, "--output", "out.csv").status == 0, "beside them"


def test_what_is_no_checkpoint_is_refused(sentiment: str, call: Call, text: Any, tmp_path: Path) -> None:
    file = text("good\n")
    refused(call("predict", file, file), "text.txt is damaged, or none")
    content = bytearray(Path(sentiment).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged.ckpt").write_bytes(content)
    refused(call("predict", str(tmp_path / "damaged.ckpt"), file), "damaged.ckpt is damaged")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.ckpt")
    refused(call("predict", str(tmp_path / "other.ckpt"), file), "other.ckpt is no checkpoint of this repository")


def test_a_checkpoint_without_a_vocabulary_says_so(sentiment: str, call: Call, text: Any, tmp_path: Path) -> None:
    torch.save(torch.load(sentiment, weights_only=True) | {"reader": None}, tmp_path / "older.ckpt")
    refused(call("predict", str(tmp_path / "older.ckpt"), text("good\n")), "older than that")


def test_a_model_of_a_run_that_diverged_is_refused(
    language: str, sentiment: str, call: Call, text: Any, tmp_path: Path
) -> None:
    for source, words in ((language, "w1 w2\n"), (sentiment, "good\n")):
        checkpoint = torch.load(source, weights_only=True)
        name, weight = next((name, value) for name, value in checkpoint["state_dict"].items() if value.dim() == 2)
        for value in (math.nan, math.inf):
            weight[1, 1] = value
            torch.save(checkpoint, tmp_path / "diverged.ckpt")
            said = f"diverged.ckpt are not finite ('{name}'): its run diverged"
            refused(call("predict", str(tmp_path / "diverged.ckpt"), text(words)), said)
            refused(call("export", str(tmp_path / "diverged.ckpt"), str(tmp_path / "exported")), said)
    assert not (tmp_path / "exported").exists()


def test_a_perplexity_beyond_all_numbers_is_refused(language: str, call: Call, text: Any, tmp_path: Path) -> None:
    checkpoint = torch.load(language, weights_only=True)
    checkpoint["state_dict"]["softmax.bias"][:3] = 1e12
    torch.save(checkpoint, tmp_path / "diverged.ckpt")
    outcome = call("predict", str(tmp_path / "diverged.ckpt"), text("w1 w2\nw8 w9\n"))
    refused(outcome, "the perplexity of the text by", "diverged.ckpt is inf: its run diverged")


def test_a_perplexity_of_the_sampled_networks_alone_beyond_all_numbers_is_refused(
    language: str, call: Call, text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Surprisals, "perplexity_mc", math.inf)
    refused(call("predict", language, text("w1 w2\n"), "--mc_samples", "2"), "last.ckpt is inf: its run diverged")
