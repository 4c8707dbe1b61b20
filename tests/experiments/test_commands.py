"""What the targets of the Makefile do with their variables."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import __main__ as module
from experiments.__main__ import Variables, main
from experiments.catalogue import groups_of
from experiments.launch import Plan

ROWS = ["non_regularized", "moon", "moon_embedding", "zaremba", "variational_tied", "variational_untied"]
SMALL = {"SIZE": "small", "ROWS": "variational_tied"}

Do = Callable[..., list[Any]]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Variables]:
    """Variables of make; results are looked for in tmp_path."""
    return lambda **given: Variables.read({"RESULTS": str(tmp_path)} | given)


@pytest.fixture
def do(read: Callable[..., Variables], monkeypatch: pytest.MonkeyPatch) -> Do:
    """Do a command, and return what it would start: arguments of Python, of main.py for a run, and submissions."""
    done: list[Any] = []
    monkeypatch.setattr(module, "_call", lambda *arguments: done.append([str(word) for word in arguments]))
    monkeypatch.setattr(
        module, "start_here", lambda plans, jobs: done.extend(["main.py", *each.arguments] for each in plans)
    )
    monkeypatch.setattr(module, "submit", lambda *arguments: done.append(arguments))

    def act(command: str, **given: str) -> list[Any]:
        done.clear()
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name in ("A", "B", "MODEL", "TEXT")]:
                patch.delenv(name)
            for name, value in given.items():
                patch.setenv(name, value)
            main(command, read(**given))
        return list(done)

    return act


@pytest.fixture
def runs_of(do: Do) -> Callable[..., list[str]]:
    """The rows and seeds of the runs that a command would start, e.g. "ptb/small/moon 0"."""

    def find(command: str, **given: str) -> list[str]:
        arguments = [each for each in do(command, **given) if each[:2] == ["main.py", "reproduce"]]
        return [f"{each[each.index('--config') + 1]} {each[each.index('--seed_everything') + 1]}" for each in arguments]

    return find


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., None]:
    """The start of a result file, of `epochs` out of `planned_epochs`."""

    def result(name: str, epochs: int, planned_epochs: int) -> None:
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"epochs": epochs, "planned_epochs": planned_epochs}))

    return result


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> Callable[[str], None]:
    """An empty file where a run's checkpoint is."""

    def checkpoint(run: str) -> None:
        folder = tmp_path / "runs" / run / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "last.ckpt").touch()

    return checkpoint


# --- variables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "value", "choices"),
    [
        ({"SIZE": "foo"}, 'SIZE="foo"', list(groups_of("ptb"))),
        ({"SIZE": "small", "ROWS": "foo"}, 'ROWS="foo"', ROWS),
        ({"SIZE": "small", "ROWS": "moon foo zaremba"}, 'ROWS="foo"', ROWS),
        ({"FIGURES": "figure3", "CURVES": "foo"}, 'CURVES="foo"', ["all", *groups_of("sentiment")["figure3"].rows]),
        ({"FIGURES": "foo"}, 'FIGURES="foo"', list(groups_of("sentiment"))),
        ({"LAUNCH": "pbs"}, 'LAUNCH="pbs"', ["here", "slurm"]),
    ],
)
def test_unknown_choices_are_refused_with_the_known_ones(
    given: dict[str, str], value: str, choices: list[str], read: Callable[..., Variables]
) -> None:
    with pytest.raises(ValueError) as refusal:
        read(**given)
    said, offered = str(refusal.value).split(" is unknown; choose from: ")
    assert said == value
    assert offered.split(";")[0].split() == choices


def test_a_curve_of_a_figure_that_was_not_named_is_refused_with_the_figures(read: Callable[..., Variables]) -> None:
    with pytest.raises(ValueError, match=r'; or name another FIGURES="figure2 figure10 figure3", of: .*length_sweep'):
        read(CURVES="t20")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"EPOCHS": "two"}, "EPOCHS=\"two\": 'two' is not a number"),
        ({"EPOCHS": "1 2"}, 'EPOCHS="1 2": one number is needed'),
        ({"EPOCHS": "0"}, 'EPOCHS="0": at least one is needed'),
        ({"EPOCHS": "²"}, "is not a number"),
        ({"SEEDS": "", "MAKEFLAGS": "s -- SEEDS="}, 'SEEDS="": at least one is needed'),
        ({"SEEDS": "0 one"}, "SEEDS=\"0 one\": 'one' is not a number"),
        ({"SEEDS": "-1"}, "is not a number"),
        ({"JOBS": "0"}, 'JOBS="0": at least one is needed'),
        ({"NODES": "two", "LAUNCH": "slurm"}, "'two' is not a number"),
        ({"NODES": "0", "LAUNCH": "slurm"}, 'NODES="0": at least one is needed'),
        ({"NODES": "2"}, 'NODES="2": several machines need LAUNCH=slurm, or torchrun'),
        ({"ARGS": "--x 'y"}, "has an open quote: close it"),
    ],
)
def test_values_that_cannot_be_are_refused(given: dict[str, str], message: str, read: Callable[..., Variables]) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read(**given)


def test_a_blank_within_a_value_does_not_begin_another_variable(read: Callable[..., Variables]) -> None:
    assert read(ARGS="--x SEEDS=", MAKEFLAGS=r"s -- ARGS=--x\ SEEDS=").seeds == [0]


def test_runs_lie_below_the_results_unless_said_otherwise(read: Callable[..., Variables]) -> None:
    assert read(RESULTS="results").runs == Path("runs")
    assert read(RESULTS="my results").runs == Path("my results/runs")
    assert read(RESULTS="mine", RUNS="else where").runs == Path("else where")


# --- what is run ------------------------------------------------------------------------------------------------------


def test_a_missing_result_is_run_with_these_options(do: Do, tmp_path: Path) -> None:
    given = SMALL | {"SEEDS": "4", "DATA_DIR": "/some data", "RUNS": "/some/runs", "GPU": "/dev/nvidia0"}
    run, table = do("reproduce-ptb", **given, EPOCHS="2", DEVICES="4", ARGS="--model.init_args.mc_samples 10 --x 'a b'")
    assert run == [
        *("main.py", "reproduce", "--config", "ptb/small/variational_tied", "--seed_everything", "4"),
        *("--data.init_args.data_dir", "/some data"),
        *("--trainer.default_root_dir", "/some/runs/ptb/small/variational_tied/seed4"),
        *("--trainer.devices", "4", "--trainer.num_nodes", "1"),
        *("--result", f"{tmp_path}/ptb/small/variational_tied/seed4.json", "--epochs", "2"),
        *("--model.init_args.mc_samples", "10", "--x", "a b"),
    ]
    shown = ["--experiment", "ptb", "--size", "small", "--wandb", "/some/runs"]
    assert table == ["-m", "reproduction.table", "--results", str(tmp_path), *shown]


def test_a_size_runs_every_row_of_the_table_once_for_every_seed(runs_of: Callable[..., list[str]]) -> None:
    found = runs_of("reproduce-ptb", SIZE="medium", SEEDS="0 1 2")
    assert sorted(found) == sorted(f"ptb/medium/{row} {seed}" for row in ROWS for seed in "012")
    assert runs_of("reproduce-ptb", SIZE="medium", ROWS="moon_loop") == ["ptb/medium/moon_loop 0"]
    beyond = runs_of("reproduce-ptb", SIZE="inan_small")
    assert beyond == [f"ptb/inan_small/{row} 0" for row in ("vd", "vd_al", "vd_re", "vd_real")]


def test_several_sizes_run_those_of_the_rows_that_they_have(runs_of: Callable[..., list[str]]) -> None:
    found = runs_of("reproduce-ptb", SIZE="small gal1250", ROWS="zaremba variational_untied")
    expected = ("small/zaremba", "small/variational_untied", "gal1250/variational_untied")
    assert found == [f"ptb/{name} 0" for name in expected]


@pytest.mark.parametrize(
    ("gpu", "sizes"), [("", ["small", "v1"]), ("/dev/nvidia3", ["medium"]), ("/dev/nvidia2 /dev/nvidia3", ["medium"])]
)
def test_the_default_sizes_are_what_the_machine_can_train(
    gpu: str, sizes: list[str], runs_of: Callable[..., list[str]]
) -> None:
    assert runs_of("reproduce-ptb", ROWS="zaremba", GPU=gpu) == [f"ptb/{size}/zaremba 0" for size in sizes]


def test_sentiment_runs_the_chosen_curves_of_the_chosen_figures(runs_of: Callable[..., list[str]]) -> None:
    def found(**given: str) -> list[str]:
        return [name.removeprefix("sentiment/").removesuffix(" 0") for name in runs_of("reproduce-sentiment", **given)]

    assert found(CURVES="standard_gru naive_lstm") == ["figure2/naive_lstm", "figure10/standard_gru"]
    assert found(FIGURES="fair figure2", CURVES="naive_lstm") == ["fair/naive_lstm", "figure2/naive_lstm"]
    assert {name.split("/")[0] for name in found()} == {"figure2", "figure3", "figure10"}
    every = [f"{name}/{row}" for name, group in groups_of("sentiment").items() for row in group.own]
    assert found(CURVES="all") == every


def test_sentiment_measures_what_needs_no_network_first_and_ends_with_table_and_figures(do: Do, tmp_path: Path) -> None:
    given = {"FIGURES": "figure2", "CURVES": "naive_lstm"}
    assert [each[1] for each in do("reproduce-sentiment", **given)] == [
        *("training.baselines", "reproduce", "reproduction.table", "reproduction.figures"),
    ]
    (tmp_path / "sentiment").mkdir()
    (tmp_path / "sentiment/baselines.json").touch()
    assert "training.baselines" not in str(do("reproduce-sentiment", **given))


def test_demo_runs_three_models_of_both_experiments(
    runs_of: Callable[..., list[str]], write: Callable[..., None]
) -> None:
    variants = ("standard", "naive", "variational")
    every = [f"demo/{kind}/{name}" for kind in ("language_model", "sentiment") for name in variants]
    assert runs_of("demo") == [f"{name} 0" for name in every]
    for name in every:
        write(f"{name}/seed0", 8, 8)
    assert runs_of("demo") == []
    write("demo/sentiment/naive/seed0", 2, 8)
    assert runs_of("demo") == ["demo/sentiment/naive 0"]


@pytest.mark.parametrize(
    ("epochs", "asked", "runs"),
    [
        (13, "", 0),
        (13, "13", 0),
        (13, "2", 0),
        (13, "40", 0),  # more than the schedule has
        (3, "", 1),
        (3, "5", 1),
        (3, "12", 1),  # as a text, "12" would come before "3"
        (3, "40", 1),
        (3, "3", 0),
        (3, "2", 0),
    ],
)
def test_a_result_is_continued_only_if_more_epochs_are_asked_for(
    epochs: int, asked: str, runs: int, runs_of: Callable[..., list[str]], write: Callable[..., None]
) -> None:
    write("ptb/small/variational_tied/seed0", epochs, 13)
    assert len(runs_of("reproduce-ptb", **SMALL, EPOCHS=asked)) == runs


def test_only_what_is_missing_is_run(runs_of: Callable[..., list[str]], write: Callable[..., None]) -> None:
    write("ptb/small/moon/seed0", 13, 13)
    write("ptb/small/zaremba/seed1", 13, 13)
    found = runs_of("reproduce-ptb", SIZE="small", ROWS="moon zaremba", SEEDS="0 1")
    assert found == ["ptb/small/moon 1", "ptb/small/zaremba 0"]


def test_results_that_exist_are_named(
    do: Do, write: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ptb/small/variational_tied/seed0.json"
    write("ptb/small/variational_tied/seed0", 13, 13)
    do("reproduce-ptb", **SMALL)
    assert f"{file} already exists, skipping. Set RESULTS=DIR to rerun.\n" in capsys.readouterr().out
    write("ptb/small/variational_tied/seed0", 3, 13)
    do("reproduce-ptb", **SMALL, RUNS="mine")
    said = capsys.readouterr().out
    assert (
        f"{file} has 3 of 13 epochs: resuming from its checkpoint in mine, or from the start if there is none." in said
    )
    assert "EPOCHS=3 skips it.\n" in said
    do("reproduce-ptb", **SMALL, EPOCHS="3")
    assert "already exists, skipping" in capsys.readouterr().out
    file.write_text("{")
    with pytest.raises(ValueError, match=r"variational_tied/seed0\.json is damaged .*: delete it and repeat the run"):
        do("reproduce-ptb", **SMALL)


def test_what_is_missing_is_measured_first_where_there_is_no_gpu(do: Do, write: Callable[..., None]) -> None:
    given = {"SIZE": "small", "ROWS": "moon zaremba"}
    write("ptb/small/moon/seed0", 13, 13)
    first, second, _ = do("reproduce-ptb", **given)
    assert first[:2] == ["-m", "benchmarks.cost"]
    assert first[2].startswith("reproduce --config ptb/small/zaremba ")
    assert len(first) == 3
    assert second[:2] == ["main.py", "reproduce"]
    assert "benchmarks.cost" not in str(do("reproduce-ptb", **given, GPU="/dev/nvidia0"))
    assert do("cost", **given) == [first]
    write("ptb/small/zaremba/seed0", 13, 13)
    assert "benchmarks.cost" not in str(do("reproduce-ptb", **given))
    assert do("cost", **given) == []


# --- Slurm ------------------------------------------------------------------------------------------------------------


def test_slurm_is_given_what_is_missing_and_nothing_runs_here(
    do: Do, write: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("ptb/small/moon/seed0", 13, 13)
    write("ptb/small/moon/seed1", 3, 13)
    slurm = {"LAUNCH": "slurm", "SIZE": "small", "DEVICES": "4", "NODES": "2"}
    given = {"ROWS": "moon zaremba", "SEEDS": "0 1", "SLURM": "--partition=gpu --comment='two words'"}
    [(plans, folder, options)] = do("reproduce-ptb", **slurm, **given)
    assert all(isinstance(each, Plan) for each in plans)
    assert [str(each.run) for each in plans] == [
        *("ptb/small/moon/seed1", "ptb/small/zaremba/seed0", "ptb/small/zaremba/seed1"),
    ]
    assert all("--trainer.num_nodes 2" in " ".join(each.arguments) for each in plans)
    assert folder == tmp_path / "runs/slurm"
    machines = ["--job-name=reproduce-ptb", "--nodes=2", "--ntasks-per-node=4"]
    assert options == ["--partition=gpu", "--comment=two words", *machines]
    assert do("reproduce-ptb", **slurm, ROWS="moon") == []
    assert "nothing to submit" in capsys.readouterr().out
    [(plans, *_)] = do("reproduce-sentiment", LAUNCH="slurm", CURVES="naive_gru")
    assert len(plans) == 1


def test_the_demo_is_not_submitted(do: Do) -> None:
    with pytest.raises(ValueError, match='LAUNCH="slurm" submits reproduce-ptb and reproduce-sentiment; leave it out'):
        do("demo", LAUNCH="slurm")


# --- other commands ---------------------------------------------------------------------------------------------------


def test_tables_of_the_reproduction_are_logged_to_wandb(do: Do, tmp_path: Path) -> None:
    for command in ("reproduce-ptb", "reproduce-sentiment", "wandb-table"):
        tables = [each for each in do(command) if "reproduction.table" in each]
        assert tables[0][-2:] == ["--wandb", f"{tmp_path}/runs"], command


def test_a_comparison_needs_two_runs(do: Do, tmp_path: Path) -> None:
    for missing, given in (("A", {"B": "x"}), ("B", {"A": "x"}), ("A", {})):
        with pytest.raises(ValueError, match=f'{missing}="": name two runs, A=EXPERIMENT/GROUP/ROW/seedK B='):
            do("compare", **given)
    [command] = do("compare", A="ptb/small/moon/seed0", B="some file.json")
    assert command == [
        *("-m", "reproduction.compare", "--results", str(tmp_path), "ptb/small/moon/seed0", "some file.json"),
    ]


def test_predict_reads_a_text_or_standard_input_with_a_model(do: Do) -> None:
    assert do("predict", MODEL="runs/a b/last.ckpt") == [["main.py", "predict", "runs/a b/last.ckpt"]]
    [command] = do("predict", MODEL="last.ckpt", TEXT="my text", ARGS="--whole")
    assert command == ["main.py", "predict", "last.ckpt", "my text", "--whole"]
    with pytest.raises(ValueError, match='MODEL="": name a checkpoint'):
        do("predict")


def test_one_model_is_no_ensemble(do: Do) -> None:
    with pytest.raises(ValueError, match='SEEDS="0": an ensemble needs several'):
        do("ensemble", SIZE="small")


def test_an_ensemble_predicts_with_the_weights_that_were_tested_and_averages(
    do: Do, write_checkpoint: Callable[[str], None], tmp_path: Path
) -> None:
    for row in ("medium/zaremba", "medium/non_regularized", "inan_small/vd"):
        for seed in (0, 1):
            write_checkpoint(f"ptb/{row}/seed{seed}")
    first, second, average = do("ensemble", SIZE="medium", ROWS="zaremba", SEEDS="0 1")
    folder = f"{tmp_path}/runs/ptb/medium/zaremba"
    assert first[:6] == ["main.py", "predict", "--config", "ptb/medium/zaremba", "--seed_everything", "0"]
    assert second[-2:] == ["--ckpt_path", f"{folder}/seed1/checkpoints/last.ckpt"]
    assert average == [
        *("-m", "inference.ensemble", f"{folder}/seed0/predictions.pt", f"{folder}/seed1/predictions.pt"),
        *("--output", f"{tmp_path}/ptb/medium/zaremba/ensemble.json"),
    ]
    for size, row in (("medium", "non_regularized"), ("inan_small", "vd")):
        assert do("ensemble", SIZE=size, ROWS=row, SEEDS="0 1")[0][-1].endswith("/checkpoints/best.ckpt")
    best = {"ROWS": "zaremba", "SEEDS": "0 1", "ARGS": "--trainer.tested_weights=best"}
    assert do("ensemble", SIZE="medium", **best)[0][-1].endswith("/checkpoints/best.ckpt")
    for seed in (0, 1):
        (tmp_path / f"runs/ptb/medium/zaremba/seed{seed}/predictions.pt").touch()
    assert do("ensemble", SIZE="medium", ROWS="zaremba", SEEDS="0 1") == [average]
    later = (tmp_path / "runs/ptb/medium/zaremba/seed0/predictions.pt").stat().st_mtime + 10  # trained on
    os.utime(tmp_path / "runs/ptb/medium/zaremba/seed0/checkpoints/last.ckpt", (later, later))
    assert len(do("ensemble", SIZE="medium", ROWS="zaremba", SEEDS="0 1")) == 2


def test_runs_without_a_checkpoint_are_named_before_any_is_read(
    do: Do, write: Callable[..., None], write_checkpoint: Callable[[str], None], tmp_path: Path
) -> None:
    write_checkpoint("ptb/small/zaremba/seed1")
    rows = {"SIZE": "small", "ROWS": "zaremba", "SEEDS": "0 1 2"}
    message = f'RUNS="{tmp_path}/runs" has no checkpoint of ptb/small/zaremba/seed0'
    with pytest.raises(ValueError, match=re.escape(f"{message} ptb/small/zaremba/seed2; train first: make reproduce-")):
        do("ensemble", **rows)
    write("ptb/small/zaremba/seed0", 13, 13)
    with pytest.raises(ValueError, match=re.escape(f"{message}; train first")):
        do("ablation", **rows)
    (tmp_path / "ptb/small/zaremba/ablation_seed0.json").touch()
    assert do("ablation", **rows) == []


def test_an_ablation_is_of_the_weights_that_were_tested_of_each_finished_run(
    do: Do, write: Callable[..., None], write_checkpoint: Callable[[str], None], tmp_path: Path
) -> None:
    asked = {"SIZE": "medium", "ROWS": "variational_tied non_regularized", "SEEDS": "0 1", "ARGS": "--x 1"}
    with pytest.raises(ValueError, match="none of these runs is finished, make reproduce-ptb runs them"):
        do("ablation", **asked)
    for row, seed in (("variational_tied", 0), ("variational_tied", 1), ("non_regularized", 0)):
        write(f"ptb/medium/{row}/seed{seed}", 39, 39)
        write_checkpoint(f"ptb/medium/{row}/seed{seed}")
    commands = do("ablation", **asked)
    assert len(commands) == 3
    for row, weights in (("variational_tied", "last"), ("non_regularized", "best")):
        [first] = [each for each in commands if f"{tmp_path}/ptb/medium/{row}/seed0.json" in each]
        assert "--x 1" in " ".join(first)
        assert first[-3].endswith(f"{row}/seed0/checkpoints/{weights}.ckpt")
    (tmp_path / "ptb/medium/variational_tied/ablation_seed0.json").touch()
    assert len(do("ablation", **asked)) == 2, "what exists is not evaluated again"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({}, []),
        ({"SIZE": "v1", "ROWS": "moon"}, ["ptb/v1/moon/seed0"]),
        ({"ROWS": "moon", "SIZE": "v1", "SEEDS": "0 2"}, ["ptb/v1/moon/seed0", "ptb/v1/moon/seed2"]),
        ({"FIGURES": "figure3", "CURVES": "pu0_pe0"}, ["sentiment/figure3/pu0_pe0/seed0"]),
        (
            {"SIZE": "v1", "ROWS": "moon", "FIGURES": "figure3", "CURVES": "pu0_pe0"},
            ["ptb/v1/moon/seed0", "sentiment/figure3/pu0_pe0/seed0"],
        ),
    ],
)
def test_status_is_of_the_runs_that_are_asked_for(
    given: dict[str, str], shown: list[str], do: Do, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(module.status, "show", lambda names, *_: asked.append(names))
    do("status", **given)
    assert asked == [shown]


def test_status_of_seeds_is_of_both_experiments(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(module.status, "show", lambda names, *_: asked.append(names))
    do("status", SEEDS="3")
    assert {"ptb/small/moon/seed3", "sentiment/figure2/naive_lstm/seed3"} <= set(asked[0])


def test_an_unknown_command_is_refused(do: Do) -> None:
    with pytest.raises(ValueError, match="there is no command 'reproduce'; `make help` lists them"):
        do("reproduce")
