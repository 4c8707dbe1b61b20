"""The grids of `configs/sweeps`: their points as runs, and as a W&B sweep."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import __main__ as commands
from experiments import grid, wandb_runs
from tests.wandb_server import running
from training import cli as command_line

WriteResult = Callable[..., Path]
ROOT = Path(grid.__file__).parents[1]


def test_an_option_with_plus_signs_sets_each_and_appending_to_a_list_is_left_alone() -> None:
    words = ["--model.a+model.b=0.5", "--trainer.callbacks+=X", "--c=1+2"]
    expected = ["--model.a=0.5", "--model.b=0.5", "--trainer.callbacks+=X", "--c=1+2"]
    assert command_line.with_rows(words) == expected


def test_a_grid_has_every_combination_once() -> None:
    sweep = {"parameters": {"a": {"values": [1, 2]}, "b": {"values": [0.5, 0.0, 3]}}}
    expected = {f"{a}_{b}": [f"--a={a}", f"--b={b}"] for a in (1, 2) for b in (0.5, 0.0, 3)}
    assert grid.points(sweep) == expected


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="there is no sweep 'nothing' in configs/sweeps; choose from: ptb_dropout"):
        grid.load("nothing")
    with pytest.raises(ValueError, match=r"there is no point '9_9' in the grid; choose from: 0\.1_0\.2,"):
        grid.options(grid.load("ptb_dropout"), "9_9")


def test_the_points_that_were_run_are_shown_best_first(
    folder: Path, write_result: WriteResult, capsys: pytest.CaptureFixture[str]
) -> None:
    for point, lowest in (("0.1_0.2", 88.0), ("0.2_0.5", 81.25)):
        curve = [{"epoch": epoch, "valid_ppl": lowest + abs(epoch - 2)} for epoch in (1, 2, 3)]
        write_result("sweeps", "ptb_dropout", point, curve=curve)
    grid.show("ptb_dropout", folder)
    lines = [
        " ".join(line.replace("│", " ").replace("┃", " ").split()) for line in capsys.readouterr().out.splitlines()
    ]
    assert "ptb_dropout: 2 of 25 points" in lines
    assert lines.index("0.2 0.5 81.25 2 3 0") < lines.index("0.1 0.2 88 2 3 0")


def test_only_the_points_of_the_sweep_are_shown_and_each_is_counted_once(
    folder: Path, write_result: WriteResult, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = [{"epoch": 1, "valid_ppl": 80.0}, {"epoch": 2, "valid_ppl": 90.0}]
    for seed in (0, 1):
        write_result("sweeps", "ptb_dropout", "0.1_0.2", seed=seed, curve=curve)
    write_result("sweeps", "other", "0.3_0.2", curve=curve)
    grid.show("ptb_dropout", folder)
    printed = capsys.readouterr().out
    assert "ptb_dropout: 1 of 25 points" in printed
    lines = [" ".join(line.replace("│", " ").split()) for line in printed.splitlines()]
    assert [line for line in lines if line.startswith("0.")] == [f"0.1 0.2 80 1 3 {seed}" for seed in (0, 1)]


def test_the_options_of_a_point_are_those_of_the_sweep_without_what_the_agent_fills_in() -> None:
    assert grid.options(grid.load("ptb_dropout"), "0.1_0.6") == [
        "--config=ptb/medium/variational_untied",
        "--model.init_args.mc_samples=0",
        "--model.init_args.word_dropout+model.init_args.recurrent_dropout=0.1",
        "--model.init_args.input_dropout+model.init_args.output_dropout=0.6",
    ]


def test_each_point_and_seed_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(commands, "start_here", lambda plans, _: started.extend(plan.arguments for plan in plans))
    monkeypatch.setattr(grid, "show", lambda *_: None)
    given = {"NAME": "ptb_dropout", "SEEDS": "0 1", "RESULTS": str(tmp_path), "EPOCHS": "2", "DATA_DIR": "/d"}
    commands.main("grid", commands.Variables.read(given))
    assert len({" ".join(arguments) for arguments in started}) == 2 * 25
    point = "sweeps/ptb_dropout/0.3_0.5/seed1"
    [run] = [" ".join(arguments) for arguments in started if f"{tmp_path}/{point}.json" in arguments]
    assert run.startswith("reproduce --config=ptb/medium/variational_untied --model.init_args.mc_samples=0 ")
    assert (
        f" --seed_everything 1 --data.init_args.data_dir /d --trainer.default_root_dir {tmp_path}/runs/{point}" in run
    )
    assert run.endswith("--epochs 2")


def test_a_sweep_without_an_account_ends_with_what_logs_in_and_what_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PATH", os.environ["PATH"])  # of which the agent's is made
    with pytest.raises(ValueError, match=r"^W&B: the sweep was not run \(.*`\.venv/bin/wandb login`.*`make grid NAME="):
        grid.start_agent("ptb_dropout", [])
    wandb_runs.teardown()


@pytest.mark.slow
def test_a_sweep_is_registered_and_its_agent_starts_what_the_server_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = grid.load("ptb_dropout")["parameters"]
    run = {
        "type": "run",
        "run_id": "abc",
        "program": "main.py",
        "args": {first: {"value": 0.2}, second: {"value": 0.5}},
    }
    variables = {"DATA_DIR": str(tmp_path), "HOME": str(tmp_path), "NAME": "ptb_dropout", "ARGS": "--count 1"}
    with running() as server:
        server.commands = [run, {"type": "exit"}]
        done = subprocess.run(
            [sys.executable, "-m", "experiments", "sweep"],
            cwd=ROOT,
            env=dict(os.environ) | server.environment | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        [registered] = server.sent("upsertSweep")
    assert registered["projectName"] == "variational-rnn"
    assert "method: grid" in registered["config"]
    [started] = [line for line in done.stderr.splitlines() if "About to run command" in line]
    assert "WANDB_RUN_GROUP=sweeps/ptb_dropout" in started
    assert f"{first}=0.2" in started
    assert f"--data.init_args.data_dir={tmp_path}" in started
