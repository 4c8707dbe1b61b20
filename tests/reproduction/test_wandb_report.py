"""What is sent to W&B besides the runs: tables and charts, a report, a workspace."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from experiments import wandb_runs
from experiments.results import load_results
from reproduction import table, tables, wandb_report
from reproduction.tables import ptb_table
from tests.wandb_server import ENTITY, running

WriteResult = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    wandb_runs.teardown()  # another test of this process may have left W&B set up without a server
    for name in [name for name in os.environ if name.startswith("WANDB_")]:  # of W&B's process of another test, too
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb_runs.teardown()


@pytest.fixture
def results(folder: Path, write_result: WriteResult) -> Path:
    for seed in (0, 1):
        write_result("ptb", "small", "zaremba", seed=seed)
    write_result("sentiment", "figure2", "naive_lstm")
    return folder


def test_tables_are_logged_as_they_are_with_the_curves_of_their_runs(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table.main(["--results", str(results), "--experiment", "ptb", "--size", "small", "--wandb", str(tmp_path / "runs")])
    assert "| [Zaremba et al.]" in capsys.readouterr().out
    media = "wandb/offline-run-*/files/media/table"
    [file] = (tmp_path / "runs").glob(f"{media}/ptb_small_[0-9]*.table.json")
    logged = json.loads(file.read_text())
    expected = ptb_table("small", [run for run in load_results(results) if run.experiment == "ptb"])
    assert logged["columns"] == list(expected.columns)
    assert logged["data"] == expected.to_numpy().tolist()
    [file] = (tmp_path / "runs").glob(f"{media}/ptb_small_curves_table_*.table.json")
    logged = json.loads(file.read_text())
    assert [dict(zip(logged["columns"], row, strict=True)) for row in logged["data"]] == [
        {"step": epoch, "lineKey": f"Zaremba et al., seed {seed}, {name}", "lineVal": value}
        for seed in (0, 1)
        for name, values in (("train_ppl", (100.0, 50.0, 100.0 / 3)), ("valid_ppl", (200.0, 150.0, 100 + 100 / 3)))
        for epoch, value in enumerate(values, start=1)
    ]


@pytest.mark.slow
def test_tables_and_curves_are_logged_to_the_server(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        table.main(["--results", str(results), "--wandb", str(tmp_path / "runs")])
        wandb_runs.teardown()
        logged = {name: value for row in server.streams["tables"] for name, value in row.items()}
    assert "the tables are not all logged" not in capsys.readouterr().out
    expected = ptb_table("small", [run for run in load_results(results) if run.experiment == "ptb"])
    assert (logged["ptb_small"]["_type"], logged["ptb_small"]["nrows"]) == ("table-file", len(expected))
    assert {"ptb_small_curves_table", "sentiment_figure2", "sentiment_figure2_curves_table"} <= logged.keys()
    assert {sent["input"]["artifactTypeName"] for sent in server.sent("createArtifact(")} == {"run_table"}


def test_tables_that_cannot_be_logged_end_with_one_message(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb.Run, "log", full)
    table.main(["--results", str(results), "--wandb", str(tmp_path / "runs")])
    said = "W&B: the tables are not all logged ([Errno 28] No space left on device); `make wandb-table` tries again.\n"
    assert capsys.readouterr().out.endswith(said)


def test_the_demo_has_tables_and_curves_where_it_was_run(
    results: Path, write_result: WriteResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not [block for block in spec(capsys, results)["report"]["blocks"] if "Demo" in json.dumps(block)]
    write_result("demo", "language_model", "naive")
    write_result("demo", "sentiment", "naive")
    blocks = spec(capsys, results)["report"]["blocks"]
    grids = {grid["runsets"][0]["name"]: grid for grid in blocks if "runsets" in grid}
    for group, name, metric in (
        ("language_model", "Demo, language model", "valid_ppl"),
        ("sentiment", "Demo, sentiment regression", "test_rmse"),
    ):
        assert f"'demo/{group}'" in grids[name]["runsets"][0]["filters"]
        assert metric in grids[name]["panels"][0]["y"]
    table.main(["--results", str(results), "--wandb", str(tmp_path / "runs")])
    logged = {file.name for file in (tmp_path / "runs").glob("wandb/offline-run-*/files/media/table/demo_*")}
    for name in ("demo_language_model", "demo_language_model_curves", "demo_sentiment", "demo_sentiment_curves"):
        assert [file for file in logged if file.startswith(f"{name}_")], name


def spec(capsys: pytest.CaptureFixture[str], results: Path) -> dict[str, Any]:
    wandb_report.main(["--results", str(results), "--dry_run"])
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_a_dry_run_prints_report_and_workspace_without_an_account(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = spec(capsys, results)
    blocks = printed["report"]["blocks"]
    grids = {grid["runsets"][0]["name"]: grid for grid in blocks if "runsets" in grid}
    small = grids["Penn Treebank, small (2 × 200 units)"]
    assert "'ptb/small'" in small["runsets"][0]["filters"]
    assert small["runsets"][0]["groupby"] == ["jobType"]
    assert small["panels"][0]["y"] == ["train_eval_ppl", "valid_ppl"]
    assert {"ptb_dropout", "sentiment_dropout"} <= grids.keys()
    assert [section["name"] for section in printed["workspace"]["sections"]] == ["Penn Treebank", "Film reviews"]


def test_the_report_has_every_table_and_the_claims_but_curves_only_of_what_was_run(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = spec(capsys, results)["report"]["blocks"]
    texts = [block["text"] for block in blocks if isinstance(block.get("text"), str)]
    for part in (*tables.sections("ptb", load_results(results)), *tables.sections("sentiment", load_results(results))):
        assert part.title in texts
        for cell in part.table.iloc[:, 0]:
            assert any(re.search(rf"\| *{re.escape(cell)} *\|", text) for text in texts), cell
    assert not any("](configs/" in text for text in texts), "a link of this repository leads nowhere there"
    names = [grid["runsets"][0]["name"] for grid in blocks if "runsets" in grid]
    assert len(names) == 2 + 2


def test_charts_are_of_epochs_with_the_mean_and_range_of_seeds_and_of_final_errors(
    results: Path, write_result: WriteResult, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result("demo", "sentiment", "naive")
    blocks = spec(capsys, results)["report"]["blocks"]
    grids = {grid["runsets"][0]["filters"].split("'")[1]: grid["panels"] for grid in blocks if "runsets" in grid}
    for group, is_log, metrics, final in (
        (
            "ptb/small",
            True,
            [["train_eval_ppl", "valid_ppl"], ["valid_ppl"], ["train_ppl"]],
            ["test_ppl.last", "test_ppl_mc.last"],
        ),
        (
            "sentiment/figure2",
            False,
            [["train_rmse", "test_rmse"], ["test_rmse"], ["test_rmse", "test_rmse_mc"]],
            ["test_rmse.last", "test_rmse_mc.last"],
        ),
    ):
        *lines, bars = grids[group]
        assert [panel["y"] for panel in lines] == metrics
        for panel in lines:
            assert (panel["x"], panel["log_y"]) == ("epoch", is_log)
            assert (panel["groupby_aggfunc"], panel["groupby_rangefunc"]) == ("mean", "minmax")
        assert bars["metrics"] == final
    assert [panel.get("y") for panel in grids["demo/sentiment"]] == [
        panel.get("y") for panel in grids["sentiment/figure2"]
    ]


def test_sweeps_are_held_against_their_lowest_validation_error(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = spec(capsys, results)["report"]["blocks"]
    grids = {grid["runsets"][0]["name"]: grid["panels"] for grid in blocks if "runsets" in grid}
    for sweep, lowest in (("ptb_dropout", "valid_ppl.min"), ("sentiment_dropout", "valid_rmse.min")):
        coordinates, importance = grids[sweep]
        assert [column["metric"]["name"] for column in coordinates["columns"]][-1] == lowest
        assert importance["with_respect_to"] == lowest


@pytest.mark.slow
def test_report_and_workspace_are_created_on_the_server(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        wandb_report.main(["--results", str(results)])
        wandb_runs.teardown()  # which would wait for a server that is gone
        report, workspace = server.sent("upsertView")
    assert (report["entityName"], report["projectName"]) == (ENTITY, "variational-rnn")
    assert report["displayName"].startswith("A Theoretically Grounded Application of Dropout")
    sent = json.loads(report["spec"])
    grids = [block for block in sent["blocks"] if block["type"] == "panel-grid"]
    filters = json.dumps([grid["metadata"]["runSets"][0]["filters"] for grid in grids])
    for group in ("ptb/small", "sentiment/figure2", "sweeps/ptb_dropout", "sweeps/sentiment_dropout"):
        assert f'"{group}"' in filters
    assert workspace["displayName"] == "Overfitting curves"


def test_without_an_account_the_report_says_what_can_be_had_without(results: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"the report was not created .*`\.venv/bin/wandb login`.*--dry_run.*`make report`"
    ):
        wandb_report.main(["--results", str(results)])
