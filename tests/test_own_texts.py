"""Texts of one's own through the command line: configurations of the repository, results, resumption, bad input."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_modules.loading import read_checkpoint
from reproduction.figures import main as figures
from reproduction.report import main as report
from reproduction.table import main as table

Call = Callable[..., Any]
LANGUAGE, RATINGS = "mine/small/variational_tied", "mine/reviews/variational_lstm"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with a plain text of 20 words, and with rated ones, from 0 to 100."""
    source, words = random.Random(0), [f"w{i}" for i in range(20)]
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name, lines in (("train", 40), ("valid", 20), ("test", 20)):
        sentences = [words, *(source.choices(words, k=6) for _ in range(lines))]
        (folder / f"{name}.txt").write_text("".join(f"{' '.join(sentence)}\n" for sentence in sentences))
    reviews = [(source.choices(words, k=source.randint(1, 9)), source.uniform(0, 100)) for _ in range(40)]
    (folder / "reviews.csv").write_text("text,stars\n" + "".join(f"{' '.join(text)},{r}\n" for text, r in reviews))
    return folder


@pytest.fixture
def language(texts: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """A tiny run of a Penn Treebank row on the plain text."""
    return lambda *more: [
        *("reproduce", "--config", "ptb/small/variational_tied"),
        *("--data", "datamodules.PlainText", "--data.init_args.data_dir", str(texts)),
        *("--data.init_args.vocab_size", "22", "--data.init_args.batch_size", "2", "--data.init_args.window", "5"),
        *("--model.init_args.hidden_size", "6", "--model.init_args.mc_samples", "2"),
        *small(tmp_path, LANGUAGE),
        *more,
    ]


@pytest.fixture
def ratings(texts: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """A tiny run of a sentiment row on the rated texts, of which some are held out."""
    return lambda *more: [
        *("reproduce", "--config", "sentiment/figure2_modern/variational_lstm"),
        *("--data", "datamodules.RatedText", "--data.init_args.source", str(texts / "reviews.csv")),
        *("--data.init_args.rating_column", "stars", "--data.init_args.chunk_length", "5"),
        *("--data.init_args.validation_share", "0.2", "--data.init_args.vocab_size", "24"),
        *("--model.init_args.hidden_size", "6", "--model.init_args.mc_samples", "2"),
        *small(tmp_path, RATINGS),
        *more,
    ]


def small(tmp_path: Path, place: str) -> list[str]:
    return [
        *("--result", str(tmp_path / f"results/{place}/seed0.json"), "--epochs", "1"),
        *("--trainer.default_root_dir", str(tmp_path / "runs" / place), "--trainer.logger", "false"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    ]


def test_configurations_train_on_texts_of_ones_own_and_all_that_shows_results_shows_them(
    language: Callable[..., list[str]],
    ratings: Callable[..., list[str]],
    call: Call,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for options in (language(), ratings()):
        outcome = call(*options)
        assert (outcome.status, outcome.err) == (0, "")
    found = {place: json.loads((tmp_path / f"results/{place}/seed0.json").read_text()) for place in (LANGUAGE, RATINGS)}
    assert found[LANGUAGE]["config"]["model"]["init_args"]["word_dropout"] == 0.25, "of the row"
    assert found[LANGUAGE]["provenance"]["corpus"]["name"] == "a folder"
    assert found[RATINGS]["provenance"]["corpus"]["sha256"].keys() == {"reviews.csv"}
    assert str(tmp_path) not in json.dumps([result["config"] for result in found.values()])

    results = ["--results", str(tmp_path / "results")]
    table([*results, "--experiment", "mine"])
    shown = capsys.readouterr().out
    for heading in ("### mine", "#### mine, small", "#### mine, reviews"):
        assert heading in shown
    metrics = {name: value for result in found.values() for name, value in result["metrics"].items()}
    for metric in ("test_ppl", "test_ppl_mc"):
        assert f" {metrics[metric]:.1f} |" in shown
    for metric in ("test_rmse", "constant_rmse", "valid_rmse"):
        assert f" {metrics[metric]:.4f} |" in shown
    assert "not run" not in shown
    assert "paper |" not in shown, "nothing is published on them"
    figures([*results, "--experiment", "mine"])
    drawn = {file.name for file in (tmp_path / "results/figures").glob("*.svg")}
    assert drawn == {"mine_small.svg", "mine_small_mc.svg", "mine_reviews.svg"}
    report(results)
    page = (tmp_path / "results/report.html").read_text()
    assert "mine, small" in page
    assert "mine, reviews" in page


@pytest.mark.parametrize("task", ["language", "ratings"])
def test_a_run_goes_on_with_the_same_texts_and_not_with_others(
    task: str, texts: Path, call: Call, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    options, name = request.getfixturevalue(task), {"language": "valid.txt", "ratings": "reviews.csv"}[task]
    assert call(*options()).status == 0
    assert call(*options("--epochs", "2")).status == 0
    file, [result] = texts / name, (tmp_path / "results").rglob("seed0.json")
    before, written = file.read_text(), result.read_text()
    file.write_text(re.sub("w1 ", "w2 ", before, count=1))
    outcome = call(*options("--epochs", "3"))
    assert outcome.status == 2
    assert outcome.err.count("error:") == 1
    assert f"the checkpoint is of a run on other texts ({name} had another SHA-256" in outcome.err
    assert result.read_text() == written
    file.write_text(before)
    assert call(*options("--epochs", "3")).status == 0


@pytest.mark.parametrize("option", ["test_share", "tokens"])
def test_a_run_does_not_go_on_with_another_choice_of_texts_or_words(
    option: str, ratings: Callable[..., list[str]], call: Call
) -> None:
    assert call(*ratings()).status == 0
    other = {"test_share": "0.4", "tokens": "spaces"}[option]
    outcome = call(*ratings("--epochs", "2", f"--data.init_args.{option}", other))
    assert outcome.status == 2
    differs = {"test_share": "vocabulary", "tokens": "tokens"}[option]
    assert f"the data differ in their {differs} from those that the model was trained on" in outcome.err


@pytest.mark.parametrize(
    ("task", "option", "model_and_data"),
    [
        ("language", ("tokens", "words"), "'spaces'; 'words'"),
        ("ratings", ("tokens", "spaces"), "'words'; 'spaces'"),
        ("ratings", ("chunk_length", "6"), "5; 6"),
    ],
)
def test_a_model_is_not_tested_on_texts_that_are_split_or_cut_otherwise_though_the_vocabulary_is_the_same(
    task: str, option: tuple[str, str], model_and_data: str, call: Call, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(task)()
    assert call(*run).status == 0
    [last] = (tmp_path / "runs").rglob("last.ckpt")
    result = run.index("--result")
    test = ["test", *run[1:result], *run[result + 4 :], "--ckpt_path", str(last)]  # without --result and --epochs
    name, value = option
    outcome = call(*test, f"--data.init_args.{name}", value)
    assert outcome.status == 2
    assert f"error: the data differ in their {name} from those that the model was trained on" in outcome.err
    assert f"(the model's, then the data's: {model_and_data})" in outcome.err
    assert f"--data.init_args.{name}" in outcome.err
    assert call(*test).status == 0


@pytest.mark.parametrize(
    ("task", "options", "content", "named"),
    [
        ("language", [], {"valid.txt": b"caf\xe9"}, ["valid.txt, line 1: the byte 0xe9"]),
        ("language", [], {"test.txt": b""}, ["test.txt is empty"]),
        ("language", ["--data.init_args.vocab_size", "99"], {}, ["vocab_size=99", "train.txt has only 22 word types"]),
        ("language", ["--data.init_args.tokens", "letters"], {}, ["tokens", "'spaces', 'words'", "letters"]),
        ("language", ["--data.init_args.data_dir", "nowhere"], {}, ["nowhere/train.txt does not exist"]),
        ("ratings", [], {"reviews.csv": b"text,stars\ngood,\n"}, ["reviews.csv, line 2: 'stars' is missing"]),
        ("ratings", ["--data.init_args.text_column", "body"], {}, ["no column 'body', but 'text', 'stars'"]),
        ("ratings", ["--data.init_args.source", "nowhere.tsv"], {}, ["nowhere.tsv does not exist"]),
        ("ratings", ["--data.init_args.test_share", "1.5"], {}, ["test_share", "1.5"]),
    ],
)
def test_bad_texts_end_with_one_message_and_no_result(
    task: str,
    options: list[str],
    content: dict[str, bytes],
    named: list[str],
    texts: Path,
    call: Call,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    for name, replaced in content.items():
        (texts / name).write_bytes(replaced)
    outcome = call(*request.getfixturevalue(task)(*options))
    assert outcome.status == 2
    for part in named:
        assert part in outcome.err
    assert outcome.err.count("error:") == 1
    assert "Traceback" not in outcome.out + outcome.err
    assert not (tmp_path / "results").exists()
    assert not list((tmp_path / "runs").rglob("*.ckpt"))


@pytest.mark.parametrize("command", ["fit", "reproduce", "validate", "test", "predict", "ablate"])
@pytest.mark.parametrize(
    ("config", "data", "told"),
    [
        ("ptb/small/variational_tied", "RatedText", "RatedText serves ratings, LanguageModel needs running text"),
        (
            "sentiment/figure2_modern/variational_lstm",
            "PlainText",
            "PlainText serves running text, SentimentRegressor needs ratings",
        ),
    ],
)
def test_a_model_is_not_given_data_of_the_other_kind_and_nothing_is_written(
    command: str, config: str, data: str, told: str, texts: Path, call: Call, tmp_path: Path
) -> None:
    source = {"RatedText": ("source", str(texts / "reviews.csv")), "PlainText": ("data_dir", str(texts))}[data]
    more = ["--result", f"results/{LANGUAGE}/seed0.json"] if command in ("reproduce", "ablate") else []
    more += ["--ckpt_path", "last.ckpt"] if command not in ("fit", "reproduce") else []
    before = sorted(tmp_path.rglob("*"))
    outcome = call(
        *(command, "--config", config, "--trainer.accelerator", "cpu", *more),
        *("--data", f"datamodules.{data}", f"--data.init_args.{source[0]}", source[1]),
    )
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {told}, as ")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_same_batches_are_learned_in_every_epoch_where_overfit_batches_asks_for_it(
    ratings: Callable[..., list[str]], language: Callable[..., list[str]], call: Call, tmp_path: Path
) -> None:
    for (_, *options), place in ((ratings(), RATINGS), (language(), LANGUAGE)):
        of_reproduce = options.index("--result")
        del options[of_reproduce : of_reproduce + 4]  # and --epochs
        outcome = call("fit", *options, "--trainer.overfit_batches", "2", "--trainer.max_epochs", "2")
        assert outcome.status == 0, outcome.err
        assert len(read_checkpoint(tmp_path / "runs" / place / "checkpoints/last.ckpt")["curve"]) == 2


def test_a_text_that_is_prepared_already_is_refused_with_what_to_do_instead_of_prepared_again(
    language: Callable[..., list[str]], texts: Path, call: Call, tmp_path: Path
) -> None:
    assert call(*language()).status == 0
    [last] = (tmp_path / "runs").rglob("last.ckpt")
    (texts / "prepared.txt").write_text("w1 w2 <eos>\nw3 w4 <eos>\n")
    outcome = call("predict", str(last), str(texts / "prepared.txt"))
    assert (outcome.status, outcome.out) == (2, "")
    assert "line 1 ends with <eos>, which is added to every line: remove it from the ends of the lines" in outcome.err
    (texts / "train.txt").write_text((texts / "train.txt").read_text().replace("\n", " <eos>\n"))
    outcome = call(*language("--epochs", "2"))
    assert outcome.status == 2
    assert "train.txt, line 1 ends with <eos>" in outcome.err
