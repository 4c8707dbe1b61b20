"""What runs leave in W&B, read back from their records, and sent to a stand-in of its server."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

import wandb
from datamodules import FilmReviews, PennTreebank, film_reviews, penn_treebank
from lightning_modules import LanguageModel, tracking
from lightning_modules.tracking import ID_FILE, WandbLogger
from tests.tiny import tiny_run
from tests.wandb_server import running

Call = Callable[..., Any]
WANDB = str(Path(sys.executable).with_name("wandb"))


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    yield
    wandb.teardown()


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return tmp_path / "results/ptb/small/variational_tied/seed0.json"


@pytest.fixture
def train(call: Call, tiny_treebank: Path, tmp_path: Path, result: Path) -> Call:
    """Train to so many epochs, with records, in tmp_path/run."""

    def run(epochs: int, *more: str) -> Any:
        outcome = call(
            "reproduce", *tiny_run(tmp_path, "--epochs", str(epochs), *more, logger=()), "--result", str(result)
        )
        wandb.teardown()
        return outcome

    return run


def offline_runs(root: Path) -> list[Path]:
    """Their folders, oldest first."""
    return sorted(root.glob("wandb/offline-run-*"))


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """What W&B's own reader finds of a kind."""
    done = subprocess.run([WANDB, "leet", "inspect", "--json", str(folder)], capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [record[kind] for record in found if record["type"] == kind]


def rows(folder: Path) -> list[dict[str, Any]]:
    """Of the history."""
    return [record["item"] for record in records(folder, "history")]


def updates(folder: Path, kind: str) -> dict[str, Any]:
    """All of config or summary together."""
    together: dict[str, Any] = {}
    for record in records(folder, kind):
        together |= record.get("update", {})
    return together


def test_a_run_without_an_account_is_recorded_offline_under_the_names_of_its_result(
    train: Call, tmp_path: Path, result: Path
) -> None:
    outcome = train(2)
    assert outcome.status == 0, outcome.err
    assert f"W&B: no account is logged in. The run is recorded offline in {tmp_path / 'run/wandb'};" in outcome.out
    assert "anonymous" not in outcome.err
    [folder] = offline_runs(tmp_path / "run")
    [run] = records(folder, "run")
    assert (run["project"], run["run_group"], run["job_type"]) == ("variational-rnn", "ptb/small", "variational_tied")
    assert run["display_name"] == "variational_tied-seed0"
    assert run["tags"] == ["ptb", "small", "variational_tied", "lstm"]
    assert run["run_id"] == (tmp_path / "run" / ID_FILE).read_text().strip()


def test_every_epoch_is_recorded_as_it_is_in_the_result_file(train: Call, tmp_path: Path, result: Path) -> None:
    train(2)
    report = json.loads(result.read_text())
    [folder] = offline_runs(tmp_path / "run")
    history = rows(folder)
    for name in ("valid_ppl", "train_ppl", "words_per_s", "gradient_norm", "learning_rate"):
        found = {row["epoch"]: row[name] for row in history if name in row}
        assert found == pytest.approx({entry["epoch"]: entry[name] for entry in report["curve"]}, rel=1e-6), name
    [tested] = [row for row in history if "test_ppl" in row]
    assert tested["epoch"] == 2
    assert tested["test_ppl_mc"] == pytest.approx(report["metrics"]["test_ppl_mc"], rel=1e-6)
    assert {row["trainer/global_step"] for row in history} == {row["trainer/global_step"] for row in history} - {None}
    [table] = (tmp_path / "run/csv").rglob("metrics.csv")
    logged = [float(row["valid_ppl"]) for row in csv.DictReader(table.open()) if row.get("valid_ppl")]
    assert logged == pytest.approx([entry["valid_ppl"] for entry in report["curve"]], rel=1e-6)


def test_errors_are_shown_by_epoch_and_summarised_by_their_lowest(train: Call, tmp_path: Path) -> None:
    train(1)
    [folder] = offline_runs(tmp_path / "run")
    metrics = {record.get("name") or record["glob_name"]: record for record in records(folder, "metric")}
    assert metrics["*"]["step_metric"] == "trainer/global_step"
    for errors in ("train_*", "valid_*", "test_*"):
        assert metrics[errors]["step_metric"] == "epoch"
        assert metrics[errors]["summary"] == {"min": True, "last": True}


def test_the_configuration_is_the_resolved_one_with_commit_and_hardware(
    train: Call, tmp_path: Path, result: Path
) -> None:
    train(1)
    [folder] = offline_runs(tmp_path / "run")
    report = json.loads(result.read_text())
    config = updates(folder, "config")
    assert config["model"]["init_args"]["word_dropout"] == report["config"]["model"]["init_args"]["word_dropout"]
    assert config["data"]["class_path"] == "datamodules.PennTreebank"
    assert config["trainer"]["max_epochs"] == report["config"]["trainer"]["max_epochs"]
    assert (config["commit"], config["hardware"]) == (report["provenance"]["commit"], report["provenance"]["hardware"])
    summary = updates(folder, "summary")
    assert summary["parameters"] == report["parameters"]
    dropout = ("word_dropout", "input_dropout", "recurrent_dropout", "output_dropout")
    assert [summary[name] for name in dropout] == [config["model"]["init_args"][name] for name in dropout]


def test_result_and_tested_checkpoint_are_artifacts_that_name_the_corpus_by_its_hash(
    train: Call, tmp_path: Path, result: Path
) -> None:
    train(1)
    [folder] = offline_runs(tmp_path / "run")
    artifacts = {artifact["type"]: artifact for artifact in records(folder, "artifact")}
    assert artifacts.keys() == {"result", "model"}
    assert artifacts["result"]["name"] == "ptb-small-variational_tied-seed0-result"
    assert sorted(artifacts["model"]["aliases"]) == ["last", "latest"]
    hashes = {name: penn_treebank.SHA256[split] for split, name in penn_treebank.FILES.items()}
    for artifact in artifacts.values():
        assert json.loads(artifact["metadata"]) == {"corpus": "penn-treebank", "sha256": hashes}
    assert [entry["path"] for entry in artifacts["result"]["manifest"]["contents"]] == ["seed0.json"]


def test_corpora_are_named_by_the_hashes_of_their_published_files() -> None:
    assert PennTreebank().corpus[1].keys() == {"ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"}
    assert FilmReviews().corpus == ("film-reviews", film_reviews.SHA256)


def test_a_resumed_run_goes_on_under_its_id_and_a_new_one_has_another(train: Call, tmp_path: Path) -> None:
    for epochs in (1, 2):
        train(epochs)
    first, second = offline_runs(tmp_path / "run")
    ids = [records(folder, "run")[0]["run_id"] for folder in (first, second)]
    assert ids[0] == ids[1]
    epochs = [[row["epoch"] for row in rows(folder) if "valid_ppl" in row] for folder in (first, second)]
    assert epochs == [[1], [2]]
    (tmp_path / "run/checkpoints/last.ckpt").unlink()
    train(1)
    assert records(offline_runs(tmp_path / "run")[2], "run")[0]["run_id"] != ids[0]


def test_in_a_sweep_the_id_is_the_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    assert WandbLogger(tmp_path).version == "given"


def test_a_run_that_is_stopped_keeps_its_rows(train: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validated = LanguageModel.on_validation_epoch_end

    def stopped(model: LanguageModel) -> None:
        validated(model)
        if model.current_epoch == 1:
            raise SIGTERMException

    monkeypatch.setattr(LanguageModel, "on_validation_epoch_end", stopped)
    assert train(3).status == 128 + signal.SIGTERM
    [folder] = offline_runs(tmp_path / "run")
    assert [row["epoch"] for row in rows(folder) if "valid_ppl" in row] == [1]
    [end] = records(folder, "exit")
    assert end["exit_code"] == 1
    monkeypatch.undo()


STARTED = """
import sys, time
from pathlib import Path
from lightning_modules import tracking
run = tracking.start(project="p", dir=sys.argv[1])
for i in range(50):
    run.log({"value": i})
time.sleep(3)
print("logged", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_what_was_logged_seconds_ago_outlives_the_death_of_all_processes(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", STARTED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line == "logged\n":
            break
    helpers = [
        int(status.parent.name)
        for status in Path("/proc").glob("[0-9]*/cmdline")
        if f"--pid\0{process.pid}".encode() in status.read_bytes()
    ]
    assert helpers, "W&B writes in a process of its own"
    for pid in (*helpers, process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    [folder] = offline_runs(tmp_path)
    assert len(rows(folder)) == 50


@pytest.mark.slow
@pytest.mark.parametrize("server", ["refuses", "is silent"])
def test_without_a_server_a_run_goes_on_offline_with_one_message(
    server: str, train: Call, tmp_path: Path, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if server == "is silent":
            listening.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setitem(tracking.SETTINGS, "init_timeout", 5.0)
        started = time.monotonic()
        outcome = train(1)
    assert outcome.status == 0, outcome.err
    assert time.monotonic() - started < 60
    assert outcome.out.count("W&B: ") == 1
    assert "`make sync` uploads it later" in outcome.out
    assert result.exists()
    [folder] = offline_runs(tmp_path / "run")
    assert [row["epoch"] for row in rows(folder) if "valid_ppl" in row] == [1]


def test_a_run_goes_on_where_no_record_can_be_written(
    train: Call, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = wandb.init

    def full(**options: Any) -> Any:
        if options.get("mode") == "disabled":
            return init(**options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb, "init", full)
    outcome = train(1)
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("W&B: ") == 1
    assert "No space left on device. Nothing is recorded there" in outcome.out
    assert result.exists()


def test_artifacts_that_cannot_be_stored_do_not_end_a_run(
    train: Call, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb.Artifact, "add_file", full)
    outcome = train(1)
    assert outcome.status == 0, outcome.err
    assert "No space left on device. The result file and the checkpoint are not logged as artifacts" in outcome.out
    assert result.exists()


@pytest.mark.slow
def test_offline_runs_are_uploaded_by_make_sync_once(train: Call, tmp_path: Path) -> None:
    for epochs in (1, 2):
        train(epochs)
    root = Path(tracking.__file__).parents[1]
    with running() as server:

        def sync() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["make", "-s", "sync", f"RUNS={tmp_path}"],
                cwd=root,
                env={name: value for name, value in os.environ.items() if name != "WANDB_MODE"} | server.environment,
                capture_output=True,
                text=True,
                timeout=120,
            )

        first = sync()
        assert first.returncode == 0, first.stderr
        run_id = (tmp_path / "run" / ID_FILE).read_text().strip()
        assert [row["epoch"] for row in server.streams[run_id] if "valid_ppl" in row] == [1, 2]
        assert {upload["name"] for upload in server.sent("upsertBucket")} == {run_id}
        kinds = [sent["input"]["artifactTypeName"] for sent in server.sent("createArtifact(")]
        assert set(kinds) == {"result", "model"}
        assert first.stderr.count("Finished syncing") == 2
        before = len(server.streams[run_id])
        second = sync()
        assert second.returncode == 0, second.stderr
        assert "Skipped 2 synced run(s)" in second.stderr
        assert len(server.streams[run_id]) == before
    empty = subprocess.run(
        ["make", "-s", "sync", f"RUNS={tmp_path / 'none'}"], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert empty.stdout == f"There are no offline runs below {tmp_path / 'none'}.\n"
