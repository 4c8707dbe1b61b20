"""The command line: configurations, bad input, and a whole run."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

import main
from benchmarks import cost
from benchmarks.cost import MeasuringTrainer
from experiments.catalogue import CONFIGS, merged_config
from tests.tiny import tiny_program, tiny_run
from training import cli

Call = Callable[..., Any]


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return tmp_path / "results" / "ptb" / "small" / "variational_tied" / "seed0.json"


# --- configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"], ["-c", "{}"]])
def test_every_way_to_name_a_row_puts_its_configuration_there_from_any_folder(
    form: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["fit", *(word.format("ptb/small/zaremba") for word in form), "--x", "1"]
    assert cli.with_rows(words) == ["fit", "--config", merged_config("ptb/small/zaremba"), "--x", "1"]
    assert cli.with_rows(cli.with_rows(words)) == cli.with_rows(words), "further processes get these arguments"


def test_a_file_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("model: {}")
    assert cli.with_rows(["--config", "mine.yaml"]) == ["--config", str(tmp_path / "mine.yaml")]


def test_other_arguments_stay_as_they_are() -> None:
    arguments = ["reproduce", "--result", "configs/a.json", "--model.config", "x", "a b", ""]
    assert cli.with_rows(arguments) == arguments


def test_config_prints_the_options_of_a_row(call: Call) -> None:
    printed = call("config", "ptb/medium/zaremba")
    assert printed.status == 0
    assert yaml.safe_load(printed.out)["model"]["init_args"]["hidden_size"] == 650
    assert call("config", "ptb/medium/zarembra").status == 2


def test_help_needs_no_torch() -> None:
    code = "import sys, main; main.main(['--help']); assert not {'torch', 'lightning', 'wandb'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(main.__file__).parent)
    assert done.returncode == 0, done.stderr
    assert "reproduce" in done.stdout


# --- bad input --------------------------------------------------------------------------------------------------------


def result_options(tmp_path: Path) -> list[str]:
    return ["--result", str(tmp_path / "results/ptb/small/variational_tied/seed0.json")]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--model.init_args.word_dropout", "1.5"], ["word_dropout", "[0, 1)", "1.5"]),
        (["--model.init_args.output_dropout", "-0.5"], ["[0, 1)", "-0.5"]),
        (["--model.init_args.recurrent_dropout", "lots"], ["recurrent_dropout must be a number, got lots"]),
        (["--model.init_args.weight_decay", "2"], ["weight_decay must be at least 0 and below 1", "2"]),
        (["--model.init_args.cell", "rnn"], ["cell", "'lstm', 'gru'", "rnn"]),
        (["--model.init_args.mc_masks", "forever"], ["mc_masks", "'stream', 'window', 'both'", "forever"]),
        (["--trainer.tested_weights", "first"], ["tested_weights", "'last', 'best'", "first"]),
        (["--epochs", "0"], ["epochs must be at least 1", "0"]),
        (["--data.init_args.vocab_size", "99"], ["vocab_size=99", "12 word types"]),
        (["--data.init_args.window", "5000"], ["window of 5000", "too short"]),
        (["--modle", "1.5"], ["there is no option 'modle': did you mean 'model'?"]),
        (["--model.init_args.hidden", "1"], ["has no option 'hidden'"]),
    ],
)
def test_bad_input_ends_with_one_message_and_no_result(
    options: list[str], named: list[str], call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    outcome = call("reproduce", *tiny_run(tmp_path, *options), *result_options(tmp_path))
    assert outcome.status == 2
    for part in named:
        assert part in outcome.err
    assert outcome.err.count("error:") == 1
    assert "Traceback" not in outcome.out + outcome.err
    assert not (tmp_path / "results").exists()


def test_cost_is_measured_and_printed_and_nothing_is_written(
    tiny_treebank: Path, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    options = tiny_run(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    main.main(["reproduce", *options, *result_options(tmp_path), "--epochs", "3"], MeasuringTrainer)
    assert re.search(r"seed0 +about +\d+ s: 3 epochs of \d+ s, test \d+ s", capsys.readouterr().out)
    assert [path for path in sorted(tmp_path.rglob("*")) if "cache" not in path.parts] == before


def test_cost_is_that_of_every_window_of_the_epochs_that_are_left_and_of_the_test(
    tiny_treebank: Path,
    tmp_path: Path,
    call: Call,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = tiny_run(tmp_path, "--data.init_args.sliding_test", "true", "--data.init_args.train_eval_windows", "2")

    def printed() -> str:
        main.main(["reproduce", *options, *result_options(tmp_path), "--epochs", "3"], MeasuringTrainer)
        return capsys.readouterr().out

    # 12 + 19 * 6 = 126 words in 2 streams of 63: 12 windows of 5; 78 words, 39 in each: 7; 54 words in one stream: 11.
    monkeypatch.setattr(cost, "_seconds", lambda *_: 1.0)
    epoch, test = 12 + 7 + 2, 11 + 1
    assert f"about {3 * epoch + test:>9} s: 3 epochs of {epoch} s, test {test} s" in printed()
    assert call("reproduce", *options, *result_options(tmp_path), "--epochs", "2").status == 0
    assert f"about {epoch + test:>9} s: 1 epoch of {epoch} s, test {test} s" in printed()


def test_predictions_say_of_which_model_they_are(call: Call, tiny_treebank: Path, tmp_path: Path) -> None:
    options = tiny_run(tmp_path, "--seed_everything", "5")
    assert call("fit", *options, "--trainer.max_epochs", "1").status == 0
    checkpoint = str(tmp_path / "run/checkpoints/last.ckpt")
    assert call("predict", *options, "--ckpt_path", checkpoint).status == 0
    content = torch.load(tmp_path / "run/predictions.pt", weights_only=True)
    assert (content["seed"], content["mc_samples"]) == (5, 3)
    assert content["provenance"].keys() >= {"commit", "date", "hardware"}
    assert sum(len(window["mc"]) for window in content["predictions"]) == 12 + 7 * 6 - 1
    assert [window.keys() for window in content["validation"]] == [{"approximation"}] * 16
    assert sum(len(window["approximation"]) for window in content["validation"]) == 12 + 11 * 6 - 1


def test_a_row_that_is_not_there_is_answered_with_those_like_it(call: Call) -> None:
    outcome = call("reproduce", "--config", "ptb/small/zarembra", "--result", "r/a/b/c/seed0.json")
    assert outcome.status == 2
    assert "--config ptb/small/zarembra is no file" in outcome.err
    assert "ptb/small/zaremba" in outcome.err


def test_a_table_is_not_taken_for_a_configuration(call: Call) -> None:
    outcome = call("fit", "--config", str(CONFIGS / "ptb/small.yaml"))
    assert outcome.status == 2
    assert "small.yaml is a table: name one of its rows, --config ptb/small/ROW" in outcome.err


def test_config_without_a_value_is_not_taken_for_the_current_folder(call: Call, tmp_path: Path) -> None:
    outcome = call("fit", "--config")
    assert outcome.status == 2
    assert str(tmp_path) not in outcome.err


def test_missing_file_of_the_corpus_is_named_with_where_to_get_it(
    call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    missing = tiny_treebank / "ptb.valid.txt"
    missing.unlink()
    outcome = call("reproduce", *tiny_run(tmp_path), *result_options(tmp_path))
    assert outcome.status == 2
    assert f"{missing} does not exist" in outcome.err
    assert "simple-examples.tgz" in outcome.err
    assert "DATA_DIR" in outcome.err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "path", ["results/ptb/small/zaremba/result.json", "results/ptb/small/zaremba/seed.json", "seed0.json"]
)
def test_result_with_an_unusable_name_is_refused_with_the_pattern(
    path: str, call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    outcome = call("reproduce", *tiny_run(tmp_path, "--epochs", "1"), "--result", path)
    assert outcome.status == 2
    assert path in outcome.err
    assert "EXPERIMENT/GROUP/ROW/seed" in outcome.err


def test_vocabulary_size_given_to_the_model_alone_is_refused_and_not_silently_replaced(
    call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    options = ("--model.init_args.vocab_size", "5", "--epochs", "1")
    outcome = call("reproduce", *tiny_run(tmp_path, *options), *result_options(tmp_path))
    assert outcome.status == 2
    assert "data.init_args.vocab_size" in outcome.err


def test_unknown_subcommand_is_answered_with_the_known_ones(call: Call) -> None:
    outcome = call("dance")
    assert outcome.status == 2
    for name in ("dance", "fit", "validate", "test", "predict", "reproduce"):
        assert name in outcome.err


def test_help_lists_every_command_with_a_whole_sentence(call: Call) -> None:
    listed = dict(re.findall(r"^  ([a-z]+)\b.*  ([A-Z].*)$", call("--help").out, re.MULTILINE))
    assert listed.keys() == {*cli.CommandLine.subcommands(), "export", "config"}
    assert all(does.endswith(".") for does in listed.values())
    assert "\n  predict MODEL [FILE]" in call("--help").out
    assert f"\n{listed['test']}\n" in call("test", "--help").out


def test_traceback_is_shown_on_request(
    call: Call, tiny_treebank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEBACK", "1")
    with pytest.raises(ValueError, match="word_dropout"):
        call("reproduce", *tiny_run(tmp_path, "--model.init_args.word_dropout", "1.5"), *result_options(tmp_path))


# --- a whole run ------------------------------------------------------------------------------------------------------


def test_reproduce_leaves_a_result_with_its_configuration(
    call: Call, tiny_treebank: Path, tmp_path: Path, result: Path
) -> None:
    outcome = call("reproduce", *tiny_run(tmp_path, "--epochs", "2"), "--result", str(result))
    assert (outcome.status, outcome.err) == (0, "")
    report = json.loads(result.read_text())
    assert (report["epochs"], report["planned_epochs"], report["seed"]) == (2, 13, 0)
    model = report["config"]["model"]
    assert model["class_path"] == "lightning_modules.LanguageModel"
    assert model["init_args"]["hidden_size"] == 6  # command line
    assert model["init_args"]["word_dropout"] == 0.25  # row
    assert model["init_args"]["learning_rate_decay"] == 2.0  # common.yaml of the size
    assert model["init_args"]["learning_rate"] == 1.0  # common.yaml of the corpus
    assert report["config"]["data"]["init_args"]["vocab_size"] == 12
    assert report["config"]["seed_everything"] == 0
    assert str(tmp_path) not in json.dumps(report["config"]), "folders of the machine do not belong in a result"
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["model"] == model


def test_an_interrupted_run_is_resumed_from_its_last_epoch_and_not_from_its_best(
    call: Call, tiny_treebank: Path, tmp_path: Path, result: Path
) -> None:
    still = ("--model.init_args.learning_rate", "0.0")  # no epoch is better than the first
    call("reproduce", *tiny_run(tmp_path, *still, "--epochs", "3"), "--result", str(result))
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt")["epoch"] == 2
    first = json.loads(result.read_text())
    outcome = call("reproduce", *tiny_run(tmp_path, *still, "--epochs", "4"), "--result", str(result))
    assert outcome.status == 0, outcome.err
    assert json.loads(result.read_text())["curve"][:3] == first["curve"]


def test_epochs_continues_a_run_and_another_model_is_refused(
    call: Call, tiny_treebank: Path, tmp_path: Path, result: Path
) -> None:
    call("reproduce", *tiny_run(tmp_path, "--epochs", "1"), "--result", str(result))
    outcome = call("reproduce", *tiny_run(tmp_path, "--epochs", "2"), "--result", str(result))
    assert outcome.status == 0, outcome.err
    report = json.loads(result.read_text())
    assert report["epochs"] == 2
    assert len(report["provenance"]["resumed"]) == 1
    other = tiny_run(tmp_path, "--epochs", "3", "--model.init_args.hidden_size", "7")
    outcome = call("reproduce", *other, "--result", str(result))
    assert outcome.status == 2
    assert "embedding.weight: [12, 6] in the checkpoint, [12, 7] here" in outcome.err
    assert json.loads(result.read_text()) == report


def test_what_is_chosen_at_test_time_holds_against_the_checkpoint(
    call: Call, tiny_treebank: Path, tmp_path: Path, result: Path
) -> None:
    call("reproduce", *tiny_run(tmp_path, "--epochs", "1"), "--result", str(result))
    checkpoint = ("--ckpt_path", str(tmp_path / "run/checkpoints/last.ckpt"))
    outcome = call("test", *tiny_run(tmp_path, *checkpoint, "--model.init_args.mc_samples", "5"))
    assert outcome.status == 0, outcome.err
    values = dict(line.split("│")[1:3] for line in outcome.out.splitlines() if line.count("│") == 3)
    metrics = {name.strip(): float(value) for name, value in values.items()}
    assert metrics["mc_samples"] == 5
    assert metrics["test_ppl"] == pytest.approx(json.loads(result.read_text())["metrics"]["test_ppl"], rel=1e-6)


def test_loggers_of_ones_own_are_kept(
    call: Call, tiny_treebank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> list[Any]:
        raise AssertionError("default loggers made although there is one of the user's own")

    monkeypatch.setattr(cli, "default_loggers", none)
    own = ("--trainer.logger.class_path", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", "own")
    outcome = call("fit", *tiny_run(tmp_path, "--trainer.max_epochs", "1", logger=own))
    assert outcome.status == 0, outcome.err
    assert list((tmp_path / "own").rglob("metrics.csv"))


ONE_EPOCH = ("--trainer.max_epochs", "1")


@pytest.mark.parametrize("name", ["CSVLogger", "WandbLogger"])
def test_a_logger_of_lightning_is_found_by_its_name(
    name: str, call: Call, tiny_treebank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    own = ("--trainer.logger", name, "--trainer.logger.save_dir", str(tmp_path / "own"))
    outcome = call("fit", *tiny_run(tmp_path, *ONE_EPOCH, logger=own))
    assert outcome.status == 0, outcome.err
    if name == "CSVLogger":
        assert list((tmp_path / "own").rglob("metrics.csv"))
    logger = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["trainer"]["logger"]
    assert logger["class_path"] == f"lightning.pytorch.loggers.{name}"


class Mark(L.Callback):
    """Leaves a file."""

    def on_fit_end(self, *_: Any) -> None:
        Path("marked").touch()


@pytest.mark.parametrize(
    "callbacks",
    [
        ["--trainer.callbacks", "tests.test_main.Mark"],
        ["--trainer.callbacks+=tests.test_main.Mark"],
        ["--trainer.callbacks", "{class_path: tests.test_main.Mark}"],
        ["--config", "mark.yaml"],
    ],
    ids=["name", "appended", "mapping", "file"],
)
def test_one_callback_need_not_be_a_list(callbacks: list[str], call: Call, tiny_treebank: Path, tmp_path: Path) -> None:
    (tmp_path / "mark.yaml").write_text("trainer:\n  callbacks:\n    class_path: tests.test_main.Mark\n")
    outcome = call("fit", *tiny_run(tmp_path, *ONE_EPOCH), *callbacks)
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "marked").exists()
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()


@pytest.mark.parametrize("bar", ["RichProgressBar", "TQDMProgressBar"])
def test_a_progress_bar_of_ones_own_takes_the_place_of_the_usual_one(
    bar: str, call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    shown = ("--trainer.enable_progress_bar", "true", "--trainer.callbacks", bar)
    outcome = call("fit", *tiny_run(tmp_path, *ONE_EPOCH, *shown))
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize(
    "options", [["--trainer.enable_checkpointing", "false"], ["--trainer.barebones", "true", *ONE_EPOCH]]
)
def test_checkpoints_that_are_not_wanted_are_not_written(
    options: list[str], call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    arguments = tiny_run(tmp_path, *ONE_EPOCH, logger=())
    if "--trainer.barebones" in options:  # which refuses that more is switched off
        arguments = [*arguments[: arguments.index("--trainer.accelerator")], "--trainer.num_sanity_val_steps", "null"]
        arguments += ["--trainer.enable_model_summary", "null"]
    else:
        options = [*options, "--trainer.logger", "false"]
    outcome = call("fit", *arguments, *options)
    assert outcome.status == 0, outcome.err
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize("command", ["fit", "reproduce"])
@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "valid_pp"],
            "EarlyStopping monitors 'valid_pp', which is not measured; there are: gradient_norm, learning_rate, "
            "train_eval_ppl, train_ppl, valid_ppl, valid_ppl_lua, words_per_s\n",
        ),
        (
            ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor", "loss"],
            "ModelCheckpoint monitors 'loss', which is not measured; there are: ",
        ),
        (["--trainer.callbacks+=LearningRateMonitor"], "Cannot use `LearningRateMonitor` callback with `Trainer` that"),
        (
            ["--trainer.callbacks+=GradientAccumulationScheduler", "--trainer.callbacks.scheduling", "{0: 2}"],
            "the callback GradientAccumulationScheduler is not supported: ",
        ),
        (["--trainer.accumulate_grad_batches", "2"], "trainer.accumulate_grad_batches must be 1 for a language model"),
        (
            ["--trainer.precision", "bf16-true"],
            "trainer.precision=bf16-true would round ratings and metrics, too: choose 32-true",
        ),
    ],
    ids=["early stopping", "checkpoint", "learning rate", "schedule", "accumulation", "precision"],
)
def test_what_cannot_be_trained_or_measured_is_said_before_training_and_leaves_nothing(
    callback: list[str], message: str, command: str, call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    result = result_options(tmp_path) if command == "reproduce" else []
    outcome = call(command, *tiny_run(tmp_path, *callback, *result))
    assert outcome.status == 2
    assert outcome.err.startswith(f"error: {message}"), outcome.err
    assert len(outcome.err.splitlines()) == 2
    assert "epoch 1" not in outcome.out
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "results").exists()


def test_every_second_validation_leaves_the_last_epoch_saved(call: Call, tiny_treebank: Path, tmp_path: Path) -> None:
    options = ("--trainer.check_val_every_n_epoch", "2", "--trainer.max_epochs", "3")
    outcome = call("fit", *tiny_run(tmp_path, *options))
    assert outcome.status == 0, outcome.err
    lines = [line for line in outcome.out.splitlines() if " epoch " in line]
    assert ["valid_ppl " in line for line in lines] == [False, True, False]
    epochs = {name: torch.load(tmp_path / f"run/checkpoints/{name}.ckpt")["epoch"] for name in ("best", "last")}
    assert epochs == {"best": 1, "last": 2}
    refused = call("reproduce", *tiny_run(tmp_path, *options), *result_options(tmp_path))
    assert refused.status == 2
    assert "trainer.check_val_every_n_epoch must be 1 for reproduce, got 2" in refused.err
    assert not (tmp_path / "results").exists()


def test_a_run_without_a_last_epoch_has_no_estimate_of_its_end(call: Call, tiny_treebank: Path, tmp_path: Path) -> None:
    outcome = call("fit", *tiny_run(tmp_path, "--trainer.max_epochs", "-1", "--trainer.max_steps", "60"))
    assert outcome.status == 0, outcome.err
    assert "takes about" not in outcome.out
    lines = [line for line in outcome.out.splitlines() if " epoch " in line]
    assert [line.split("  ")[1] for line in lines] == [f"epoch {k}" for k in (1, 2, 3, 4, 5)]
    assert not any(line.endswith("left") for line in lines)


def test_a_run_limited_by_steps_is_not_resumed(call: Call, tiny_treebank: Path, tmp_path: Path) -> None:
    """Lightning would end the epoch of the checkpoint twice."""
    steps = ("--trainer.max_steps", "12")
    assert call("fit", *tiny_run(tmp_path, *steps)).status == 0
    last = str(tmp_path / "run/checkpoints/last.ckpt")
    refused = call("fit", *tiny_run(tmp_path, "--trainer.max_steps", "20", "--ckpt_path", last))
    assert refused.status == 2
    assert "trainer.max_steps=20: a run that is limited by steps cannot be resumed" in refused.err


def test_a_tilde_is_the_home_folder_in_every_path(
    call: Call, tiny_treebank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "row.yaml").write_text("trainer:\n  max_epochs: 1\n")
    arguments = tiny_run(tmp_path, "--config=~/row.yaml", "--trainer.default_root_dir", "~/mine")
    result = "~/results/ptb/small/row/seed0.json"
    assert call("reproduce", *arguments, "--result", result).status == 0
    assert (tmp_path / "results/ptb/small/row/seed0.json").exists()
    assert call("test", *arguments, "--ckpt_path=~/mine/checkpoints/last.ckpt").status == 0
    assert not (tmp_path / "~").exists()


def test_a_home_folder_that_nobody_has_is_a_name_as_any_other(call: Call, tiny_treebank: Path, tmp_path: Path) -> None:
    outcome = call("test", *tiny_run(tmp_path, "--ckpt_path", "~nobody-there/last.ckpt"))
    assert outcome.status == 2
    assert "--ckpt_path ~nobody-there/last.ckpt is no file" in outcome.err


@pytest.mark.slow
def test_a_run_does_not_warn_of_slurm_that_is_installed_and_not_used(tiny_treebank: Path, tmp_path: Path) -> None:
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    srun.touch(mode=0o755)
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        [*tiny_program(tmp_path), "fit", *tiny_run(tmp_path, "--trainer.max_epochs", "1")],
        env=outside | {"PATH": f"{srun.parent}:{os.environ['PATH']}", "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert "`srun`" not in done.stderr


def test_a_run_that_is_told_to_stop_does_not_end_as_if_it_had_finished(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(trainer_class: type) -> None:
        raise cli.SIGTERMException

    monkeypatch.setattr(cli, "run", stopped)
    assert call("reproduce").status == 143


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_weights_that_were_never_trained_are_not_evaluated(
    call: Call, tiny_treebank: Path, tmp_path: Path, command: str
) -> None:
    outcome = call(command, *tiny_run(tmp_path))
    assert outcome.status == 2
    assert f"{command} needs --ckpt_path" in outcome.err


def test_ablate_evaluates_a_finished_run_and_refuses_one_that_is_not(
    call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    options, result = tiny_run(tmp_path), result_options(tmp_path)
    assert call("reproduce", *options, *result, "--epochs", "1").status == 0
    checkpoint = ["--ckpt_path", str(tmp_path / "run/checkpoints/last.ckpt")]
    assert call("ablate", *options, *result, *checkpoint).status == 0
    [file] = tmp_path.rglob("ablation_*.json")
    written = json.loads(file.read_text())
    assert [choice["samples"] for choice in written["choices"]] == [0, *[1, 2, 3] * 4]
    assert str(tmp_path) not in file.read_text()
    file.unlink()
    refused = call("ablate", *options, *result, *checkpoint, "--trainer.devices", "2")
    assert refused.status == 2
    assert "ablate runs on one device, got 2 processes: use --trainer.devices 1" in refused.err
    Path(result[1]).unlink()
    refused = call("ablate", *options, *result, *checkpoint)
    assert refused.status == 2
    assert "an ablation is of a finished run; run it first" in refused.err
    assert not file.exists()
