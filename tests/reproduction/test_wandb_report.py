"""What is sent to W&B besides the runs: tables and charts, a report, a workspace."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from reproduction import table, wandb_report
from reproduction.results import load_results
from reproduction.table import ptb_table
from tests.wandb_server import ENTITY, running

WriteResult = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb.teardown()


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
    lines = {line for _, line, _ in json.loads(file.read_text())["data"]}
    assert lines == {f"Zaremba et al., seed {seed}, {name}" for seed in (0, 1) for name in ("train_ppl", "valid_ppl")}


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
    for part in (*table.sections("ptb", load_results(results)), *table.sections("sentiment", load_results(results))):
        assert part.title in texts
        for cell in part.table.iloc[:, 0]:
            assert any(re.search(rf"\| *{re.escape(cell)} *\|", text) for text in texts), cell
    assert not any("](configs/" in text for text in texts), "a link of this repository leads nowhere there"
    names = [grid["runsets"][0]["name"] for grid in blocks if "runsets" in grid]
    assert len(names) == 2 + 2


@pytest.mark.slow
def test_report_and_workspace_are_created_on_the_server(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        wandb_report.main(["--results", str(results)])
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
    with pytest.raises(SystemExit, match=r"the report was not created .*`wandb login`.*--dry_run.*`make report`"):
        wandb_report.main(["--results", str(results)])
