"""What is said of configurations and options that are wrong."""

import fcntl
from collections.abc import Callable
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from experiments.catalogue import CONFIGS
from tests.tiny import tiny_run
from training.parser import check_config, in_short
from training.trainer import Trainer

Call = Callable[..., Any]
DEMO = ("--config", "demo/language_model/variational")
SENTIMENT = ("--config", "demo/sentiment/variational")
CPU = ("--trainer.accelerator", "cpu")
RESUMED = ("--ckpt_path", "run/checkpoints/last.ckpt")


@pytest.fixture(autouse=True)
def no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def written(folder: Path, content: bytes | str) -> Path:
    path = folder / "row.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_configuration_of_the_repository_is_in_order() -> None:
    configs = list(CONFIGS.rglob("*.yaml"))
    assert len(configs) > 10
    for path in configs:
        check_config(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "model:\n  hidden_size: 1\ndata: 2\nmodel:\n  cell: gru\n",
            r", line 4: 'model' is there already, in line 1: ",
        ),
        ("model:\n  init_args:\n    cell: gru\n    cell: lstm\n", r", line 4: 'cell' is there already, in line 3: "),
        ("a:\n- b: 1\n  b: 2\n", r", line 3: 'b' is there already, in line 2: "),
        ("model: [1,\n  - x: {", r" is no YAML: .* line 2, column 3"),
        (bytes(range(256)), r" is no YAML: 'utf-8' codec can't decode byte 0x80 in position 128"),
        ("a: b\0c", r" is no YAML: "),
        ("", r" has no options"),
        ("# a comment", r" has no options"),
        ("- a\n- b", r" has no options"),
        ("hello", r" has no options"),
        ("? [a, b]\n: c", r", line 1: the name of an option must be a word"),
        ("a: " + "[" * 5000 + "]" * 5000, r" is nested too deeply"),
        ("a: 1\n---\nb: 2\n", r" is no YAML: expected a single document"),
    ],
)
def test_a_configuration_that_is_wrong_is_named_with_the_line(
    tmp_path: Path, content: bytes | str, message: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=f"^--config {path}{message}"):
        check_config(path)


def bomb(levels: int) -> str:
    """Lists of nine aliases of the list before: nine to the power of the levels."""
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    lines += [f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]" for before, name in pairwise("abcdefgh"[:levels])]
    return "\n".join(lines)


@pytest.mark.parametrize("content", [bomb(7), bomb(5), "a: &x [1, *x]\n", "a: &x {b: *x}\n"])
def test_aliases_that_multiply_are_refused_before_they_are_written_out(
    call: Call, tmp_path: Path, content: str
) -> None:
    path = written(tmp_path, content)
    assert len(content) < 271
    outcome = call("fit", *DEMO, "--config", str(path))
    message = f"error: --config {path} has aliases (*name) that expand to over 10000 values"
    assert (outcome.status, outcome.err.splitlines()[0]) == (2, message)


@pytest.mark.parametrize("content", ["a: &x {b: 1}\nc: *x\n", "a: &x {b: 1}\nc:\n  <<: *x\n"])
def test_aliases_are_no_duplicates(tmp_path: Path, content: str) -> None:
    check_config(written(tmp_path, content))


@given(content=st.binary(max_size=200) | st.text("ab:-[]{}&*?!<>|'\"\n #,", max_size=80))
@example(content="a: &b\n- *b\n- *b")
@example(content="<<: 1\n<<: 2")
@example(content="!!python/object/apply:os.system [echo]")
def test_whatever_is_in_a_configuration_it_is_read_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, content: bytes | str
) -> None:
    path = written(tmp_path_factory.mktemp("config"), content)
    try:
        check_config(path)
    except ValueError as error:
        assert str(error).startswith(f"--config {path}")  # noqa: PT017
    else:
        assert isinstance(yaml.compose(path.read_text()), yaml.MappingNode)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (),
            "there is no command: choose fit, reproduce, validate, test, predict, ablate with --config, or predict",
        ),
        (("dance",), "there is no command 'dance': choose fit, "),
        (("reproduce", *DEMO), "--result must be given\n(`main.py --help` lists the commands)"),
        (("ablate", *DEMO, "--ckpt_path", "last.ckpt"), "--result must be given\n"),
        (
            ("fit", *DEMO, "--trainer.max_epochs", "0"),
            "trainer.max_epochs must be more than 0, got 0: it trains nothing",
        ),
        (
            ("reproduce", *DEMO, "--result", "results/a/b/c/seed0.json", "--trainer.limit_train_batches", "0.0"),
            "trainer.limit_train_batches must be more than 0, got 0.0: it trains nothing",
        ),
        (("fit",), "there is no model: name a configuration, such as --config demo/sentiment/variational"),
        (("fit", "--config", str(CONFIGS)), f"--config {CONFIGS} is a folder: name one of its files"),
        (
            ("fit", *DEMO, "--trainer.max_epoch", "1"),
            "there is no option 'trainer.max_epoch': did you mean 'trainer.max_epochs'?",
        ),
        (
            ("fit", *DEMO, "--modle.init_args.cell", "gru"),
            "there is no option 'modle.init_args.cell': did you mean 'model'?",
        ),
        (("fit", *DEMO, "--nothing=1"), "there is no option 'nothing'\n"),
        (
            ("fit", "--model", "lightning_modules.LanguageModel", "--model.init_args.hidden_size", "8"),
            "there is no data: name some by --data",
        ),
        (
            ("fit", *DEMO, "--data.class_path", "[1]"),
            "data must name one class, such as datamodules.PlainText, got [1]",
        ),
        (("fit", *DEMO, "--model", "5"), "model must name one class, such as lightning_modules.LanguageModel, got 5"),
        (
            ("fit", *DEMO, "--model.init_args.wordd_dropout", "0.1"),
            "lightning_modules.LanguageModel has no option 'wordd_dropout': did you mean 'word_dropout'?",
        ),
        (("fit", *DEMO, "--model.init_args.zzz", "0.1"), "lightning_modules.LanguageModel has no option 'zzz'\n"),
        (("fit", *DEMO, "--model.init_args.word_dropout", "half"), "word_dropout must be a number, got half"),
        (("fit", *DEMO, "--model.init_args.word_dropout", "nan"), "word_dropout must be a number, got nan"),
        (
            ("fit", *DEMO, "--model.init_args.word_dropout", "1.5"),
            "word_dropout is the probability to drop and must lie",
        ),
        (
            ("fit", *DEMO, "--data", "absent.Text"),
            "Problem with given class_path 'absent.Text': No module named 'absent'",
        ),
        (("fit", *DEMO, "--model.init_args.cell", "rnn"), "cell must be 'lstm', 'gru', got rnn"),
        (("fit", *DEMO, "--model.init_args.hidden_size", "0"), "hidden_size must be at least 1, got 0"),
        (("fit", *DEMO, "--model.init_args.num_layers", "0"), "num_layers must be at least 1, got 0"),
        (("fit", *DEMO, "--model.init_args.init_scale", "-1"), "init_scale must be at least 0, got -1.0"),
        (("fit", *DEMO, "--model.init_args.learning_rate", "-1"), "learning_rate must be at least 0, got -1.0"),
        (("fit", *DEMO, "--model.init_args.learning_rate_decay", "0"), "learning_rate_decay must be above 0"),
        (
            ("fit", *DEMO, "--model.init_args.weight_decay", "1"),
            "weight_decay must be at least 0 and below 1",
        ),
        (("fit", *DEMO, "--data.init_args.window", "0"), "window must be at least 1, got 0"),
        (("fit", *DEMO, "--data.init_args.vocab_size", "2"), "vocab_size must be at least 3, got 2"),
        (("fit", *DEMO, "--trainer.gradient_clip_val", "-1"), "gradient_clip_val must be at least 0, got -1"),
        (("fit", *DEMO, *CPU, "--trainer.devices", "x"), "trainer.devices must be auto, a number of processes, or"),
        (("fit", *DEMO, *CPU, "--trainer.devices", "0,1"), "trainer.devices must be auto, a number of processes, or"),
        (("fit", *DEMO, "--trainer.precision", "8"), "trainer.precision must be 64, 32, 16 or 'transformer-engine'"),
        (("fit", *SENTIMENT, "--model.init_args.l2", "-1"), "l2 must be at least 0, got -1.0"),
        (("fit", *SENTIMENT, "--model.init_args.mc_every", "-1"), "mc_every must be at least 0, got -1"),
        (("fit", *SENTIMENT, "--data.init_args.length", "0"), "length must be at least 1, got 0"),
        (("fit", *SENTIMENT, "--data.init_args.vocab_size", "3"), "vocab_size must be at least 5, got 3"),
        (("test", *DEMO, "--ckpt_path", "absent.ckpt"), "--ckpt_path absent.ckpt is no file"),
        (("test", *DEMO, "--ckpt_path", str(CONFIGS)), f"--ckpt_path {CONFIGS} is no file"),
        (("fit", *DEMO, "--trainer.default_root_dir", __file__), f"{__file__}/checkpoints/last.ckpt cannot be written"),
    ],
)
def test_an_option_that_is_wrong_is_one_message_and_leaves_nothing(
    call: Call, arguments: tuple[str, ...], message: str
) -> None:
    outcome = call(*arguments)
    assert (outcome.status, outcome.err.startswith(f"error: {message}")) == (2, True), outcome.err
    assert len(outcome.err.splitlines()) == 2
    assert list(Path.cwd().rglob("*")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "model:\n  class_path: lightning_modules.LanguageModel\n  init_args:\n    hidden_size: eight\n",
            "line 4: hidden_size must be a whole number, got eight",
        ),
        ("model:\n  init_args:\n    word_dropout: half\n", "line 3: word_dropout must be a number, got half"),
        ("data:\n  init_args:\n    window: [1]\n", "line 3: window must be a whole number, got [1]"),
        ("trainer:\n  max_epochs: many\n", "line 2: trainer.max_epochs must be a whole number, got many"),
        (
            "trainer:\n  max_epoch: 3\n",
            "line 2: there is no option 'trainer.max_epoch': did you mean 'trainer.max_epochs'?",
        ),
        (
            "model:\n  init_args:\n    hidden: 8\n",
            "line 3: lightning_modules.LanguageModel has no option 'hidden': did you mean 'hidden_size'?",
        ),
        ("modell: {}\n", "line 1: there is no option 'modell': did you mean 'model'?"),
        ("modell:\n", "line 1: there is no option 'modell': did you mean 'model'?"),
        ("trainer: {unknown: {}}\n", "line 1: trainer.unknown is empty: give it a value, or leave it out"),
        ("data:\n  unknown: {}\n", "line 2: data.unknown is empty: give it a value, or leave it out"),
        (
            "model: {init_args: {no: {}}}\n",
            "line 1: model.init_args.no is empty: give it a value, or leave it",
        ),
        ("trainer: [1]\n", "line 1: trainer must have options below it"),
        ("trainer: 5\n", "line 1: trainer must have options below it"),
    ],
)
def test_what_is_wrong_in_a_configuration_is_named_with_file_and_line(
    call: Call, tmp_path: Path, content: str, message: str
) -> None:
    path = written(tmp_path, content)
    outcome = call("fit", *DEMO, "--config", str(path))
    assert outcome.status == 2
    assert outcome.err.splitlines()[0].startswith(f"error: --config {path}, {message}")


@pytest.mark.parametrize("content", ["trainer:\nseed_everything: 1\n", "trainer: {}\nmodel: {init_args: {}}\n"])
def test_a_section_of_a_configuration_may_be_left_empty(call: Call, tmp_path: Path, content: str) -> None:
    outcome = call("fit", *DEMO, "--config", str(written(tmp_path, content)), "--trainer.max_epochs", "0")
    assert outcome.err.startswith("error: trainer.max_epochs must be more than 0"), outcome.err


@pytest.mark.parametrize("class_path", ["[1]", "1"])
def test_a_class_path_in_a_configuration_that_is_no_name_is_one_message(
    call: Call, tmp_path: Path, class_path: str
) -> None:
    outcome = call("fit", *DEMO, "--config", str(written(tmp_path, f"data:\n  class_path: {class_path}\n")))
    message = f"data must name one class, such as datamodules.PlainText, got {{'class_path': {class_path}}}"
    assert (outcome.status, outcome.err.splitlines()[0]) == (2, f"error: {message}")


def test_what_the_command_line_says_is_not_sought_in_a_configuration(call: Call, tmp_path: Path) -> None:
    path = written(tmp_path, "trainer:\n  max_epochs: 3\n")
    outcome = call("fit", *DEMO, "--config", str(path), "--trainer.max_epochs", "many")
    assert outcome.err.splitlines()[0] == "error: trainer.max_epochs must be a whole number, got many"


@pytest.mark.parametrize("seed", ["-1", "4294967296", "1.5", "one", "[1, 2]"])
def test_a_seed_that_is_none_is_one_message_with_those_that_are(call: Call, seed: str) -> None:
    outcome = call("fit", *DEMO, f"--seed_everything={seed}")
    assert outcome.status == 2
    message, _ = outcome.err.splitlines()
    assert message == f"error: --seed_everything must be a whole number from 0 to 4294967295, got {seed}"


def test_a_module_that_is_named_in_a_message_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "foreign.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    message = "config.json is of the model class_path 'foreign.Model': Option 'x' is not accepted"
    assert in_short(message) == "foreign.Model has no option 'x'"


def test_a_run_that_is_refused_before_its_first_step_leaves_no_folder_of_its_own(
    call: Call, tmp_path: Path, tiny_treebank: Path
) -> None:
    arguments = (*tiny_run(tmp_path, logger=()), "--data.init_args.window", "100000")
    outcome = call("fit", *arguments)
    assert outcome.status == 2
    assert "too short for a window of 100000" in outcome.err
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").write_text("mine")
    assert call("fit", *arguments).status == 2
    assert (tmp_path / "run/mine.txt").read_text() == "mine"


@pytest.mark.parametrize("command", ["fit", "reproduce"])
def test_a_run_that_is_refused_leaves_no_folder_above_its_own_unless_it_was_there(
    command: str, call: Call, tmp_path: Path, tiny_treebank: Path
) -> None:
    (tmp_path / "there").mkdir()
    result = ["--result", "results/mine/small/row/seed0.json"] if command == "reproduce" else []
    too_long = ("--data.init_args.window", "100000")
    for root in ("runs/mine/small", "there/mine/small"):
        outcome = call(command, *tiny_run(tmp_path, "--trainer.default_root_dir", root, *too_long, *result, logger=()))
        assert (outcome.status, "too short for a window of 100000" in outcome.err) == (2, True), outcome.err
    assert not (tmp_path / "runs").exists()
    assert list((tmp_path / "there").iterdir()) == []


def test_a_run_that_is_refused_leaves_what_has_come_beside_it(
    call: Call, tmp_path: Path, tiny_treebank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Trainer.fit

    @wraps(fit)
    def later(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        (tmp_path / "runs/mine/other").mkdir(parents=True)
        fit(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "fit", later)
    named = ("--trainer.default_root_dir", "runs/mine/small", "--data.init_args.window", "100000")
    assert call("fit", *tiny_run(tmp_path, *named, logger=())).status == 2
    assert [path.name for path in (tmp_path / "runs/mine").iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.init_args.window", "100000"], "too short for a window of 100000"),
        ([*RESUMED, "--model.init_args.hidden_size", "7"], "is of another model than"),
        ([*RESUMED, "--data.init_args.window", "3"], "is of a run with other options"),
    ],
)
def test_a_refusal_leaves_nothing_in_the_folder_of_a_run(
    options: list[str],
    message: str,
    call: Call,
    tmp_path: Path,
    tiny_treebank: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert call("fit", *tiny_run(tmp_path, "--trainer.max_epochs", "1", logger=())).status == 0
    folder = tmp_path / "run"
    files = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*") if "wandb" not in path.parts}
    records = {path.name for path in (folder / "wandb").iterdir()}
    assert list(folder.glob("csv/version_0/metrics.csv")), "what is not refused has its records there"
    assert list(folder.glob("wandb/offline-run-*"))
    outcome = call("fit", *tiny_run(tmp_path, *options, logger=()))
    assert (outcome.status, message in outcome.err) == (2, True), outcome.err
    left = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*") if "wandb" not in path.parts}
    assert left == files
    assert {path.name for path in (folder / "wandb").iterdir()} == records


@pytest.mark.parametrize("root", ["~/mine", "absent/../mine"])
def test_a_folder_that_was_there_stays_however_it_is_named(
    root: str, call: Call, tmp_path: Path, tiny_treebank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/mine.txt").touch()
    named = f"--trainer.default_root_dir={root}"
    assert call("fit", *tiny_run(tmp_path, named, "--data.init_args.window", "100000")).status == 2
    assert (tmp_path / "mine/mine.txt").exists()
    assert call("fit", *tiny_run(tmp_path, named, "--trainer.max_epochs", "1", logger=())).status == 0
    assert (tmp_path / "mine/checkpoints/last.ckpt").is_file()
    assert not {"~", "absent", "run"} & {path.name for path in tmp_path.iterdir()}


def test_a_refused_run_leaves_the_folder_that_another_process_has_made_in_the_meantime(
    call: Call, tmp_path: Path, tiny_treebank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fit = Trainer.fit

        @wraps(fit)
        def later(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
            (tmp_path / "run").mkdir()
            (tmp_path / "lock").rename(tmp_path / "run/lock")
            fit(trainer, *args, **kwargs)

        monkeypatch.setattr(Trainer, "fit", later)
        outcome = call("fit", *tiny_run(tmp_path))
    assert (outcome.status, "another process has not ended" in outcome.err) == (2, True), outcome.err
    assert (tmp_path / "run/lock").exists()


def test_what_a_test_has_measured_stays_whatever_fails_after_it(
    call: Call, tmp_path: Path, tiny_treebank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("fit", *tiny_run(tmp_path, "--trainer.max_epochs", "1")).status == 0
    test = Trainer.test

    @wraps(test)
    def full(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        test(trainer, *args, **kwargs)
        (tmp_path / "tested").mkdir(exist_ok=True)
        raise OSError("No space left on device")

    monkeypatch.setattr(Trainer, "test", full)
    last = str(tmp_path / "run/checkpoints/last.ckpt")
    outcome = call(
        "test", *tiny_run(tmp_path, "--ckpt_path", last, "--trainer.default_root_dir", str(tmp_path / "tested"))
    )
    assert (outcome.status, "No space left" in outcome.err) == (2, True), outcome.err
    assert (tmp_path / "tested").exists()
