"""What runs leave in W&B, read back from their records, and sent to a stand-in of its server."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules import FilmReviews, PennTreebank, film_reviews, penn_treebank
from experiments import files, wandb_runs
from lightning_modules import LanguageModel
from tests.tiny import small_disk, tiny_program, tiny_run
from tests.wandb_server import running
from training import tracking
from training.tracking import ID_FILE, RECORDED_FILE, RunWandbLogger

Call = Callable[..., Any]
WANDB = str(Path(sys.executable).with_name("wandb"))


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(wandb_runs, "TEARDOWN_TIMEOUT", 120.0)  # also on a busy machine
    wandb_runs.teardown()  # of what other tests in this process have left
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    yield
    wandb_runs.teardown()


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
        end_of_process()
        return outcome

    return run


def end_of_process() -> None:
    """What the end of a process does to its records."""
    wandb_runs.teardown()
    while files.LOCKS:
        files.LOCKS.popitem()[1].close()


def offline_runs(root: Path) -> list[Path]:
    """Their folders, oldest first."""
    return sorted(root.glob("wandb/offline-run-*"), key=lambda folder: folder.stat().st_mtime_ns)


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


def test_wandb_mode_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)  # of somebody who is logged in
    run = wandb_runs.start(project="some-project", dir=tmp_path)
    run.log({"a": 1})
    assert run.disabled
    run.finish()
    assert not offline_runs(tmp_path)


def test_a_run_without_an_account_is_recorded_offline_under_the_names_of_its_result(
    train: Call, tmp_path: Path, result: Path
) -> None:
    outcome = train(2)
    assert outcome.status == 0, outcome.err
    where = f"The run is recorded offline in {tmp_path / 'run/wandb'}; `make sync RUNS={tmp_path / 'run'}` uploads it"
    assert f"W&B: no account is logged in. {where} later." in outcome.out
    assert "anonymous" not in outcome.err
    [folder] = offline_runs(tmp_path / "run")
    [run] = records(folder, "run")
    assert (run["project"], run["run_group"], run["job_type"]) == ("variational-rnn", "ptb/small", "variational_tied")
    assert run["display_name"] == "variational_tied-seed0"
    assert run["tags"] == ["ptb", "small", "variational_tied", "lstm"]
    gru = RunWandbLogger(tmp_path, tmp_path / "sentiment/figure10/naive_gru/seed2.json", cell="gru")
    assert gru._wandb_init["tags"] == ["sentiment", "figure10", "naive", "gru"]
    large = RunWandbLogger(tmp_path, tmp_path / "ptb/large/moon/seed2.json")
    assert large._wandb_init["tags"] == ["ptb", "large", "moon", "lstm", "table1"]
    real = RunWandbLogger(tmp_path, tmp_path / "ptb/inan_small/vd_real/seed2.json")
    assert real._wandb_init["tags"] == ["ptb", "inan_small", "vd_real", "lstm", "beyond"]
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
    logged = list(csv.DictReader(table.open()))
    for name in ("valid_ppl", "train_ppl"):
        found = {int(row["epoch"]): float(row[name]) for row in logged if row[name]}
        assert found == pytest.approx({entry["epoch"]: entry[name] for entry in report["curve"]}, rel=1e-6), name
    assert [row["epoch"] for row in logged if row["test_ppl"]] == ["2"]


def test_errors_are_summarised_by_their_lowest_and_last_value_and_the_rest_by_the_last(
    train: Call, tmp_path: Path, result: Path
) -> None:
    train(3)
    [folder] = offline_runs(tmp_path / "run")
    curve = json.loads(result.read_text())["curve"]
    summary = updates(folder, "summary")
    for name in ("train_ppl", "valid_ppl", "valid_ppl_lua"):
        values = [entry[name] for entry in curve]
        assert summary[name] == pytest.approx({"min": min(values), "last": values[-1]}, rel=1e-6), name
    for name in ("test_ppl", "test_ppl_mc"):
        assert summary[name].keys() == {"min", "last"}, name
    for name in ("gradient_norm", "learning_rate", "words_per_s"):
        assert summary[name] == pytest.approx(curve[-1][name], rel=1e-6), name


def test_each_curve_has_one_definition_by_epoch_or_by_step(train: Call, tmp_path: Path, result: Path) -> None:
    train(1)
    [folder] = offline_runs(tmp_path / "run")
    metrics = records(folder, "metric")
    axes = {metric.get("name") or metric["glob_name"]: metric.get("step_metric") for metric in metrics}
    [entry] = json.loads(result.read_text())["curve"]
    for name in entry.keys() - {"epoch", "seconds"}:
        [axis] = [axis for pattern, axis in axes.items() if fnmatch(name, pattern)]
        assert axis == ("epoch" if "ppl" in name else "trainer/global_step"), name


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


def test_result_and_checkpoints_are_artifacts_that_name_the_corpus_by_its_hash(
    train: Call, tmp_path: Path, result: Path
) -> None:
    train(1)
    [folder] = offline_runs(tmp_path / "run")
    artifacts = records(folder, "artifact")
    found = [(artifact["type"], artifact["name"], sorted(artifact["aliases"])) for artifact in artifacts]
    name = "ptb-small-variational_tied-seed0"
    assert sorted(found) == [
        ("model", f"{name}-model", ["best", "latest"]),
        ("model", f"{name}-model", ["last", "latest"]),
        ("result", f"{name}-result", ["latest"]),
    ]
    hashes = {name: penn_treebank.SHA256[split] for split, name in penn_treebank.FILES.items()}
    origin = json.loads(result.read_text())["provenance"]
    for artifact in artifacts:
        assert json.loads(artifact["metadata"]) == {
            "run": "ptb/small/variational_tied/seed0",
            "epoch": 1,
            "commit": origin["commit"],
            "dirty": origin["dirty"],
            "corpus": "penn-treebank",
            "sha256": hashes,
        }
        [file] = artifact["manifest"]["contents"]
        if artifact["type"] == "model":
            assert [file["path"].removesuffix(".ckpt"), "latest"] == sorted(artifact["aliases"])
        assert file["local_path"].startswith(str(tmp_path / "run")), "what is to be uploaded lies in the run's folder"


@pytest.mark.parametrize("row", ["my row", "größer", "long" * 40])
def test_artifacts_of_a_row_of_any_name_are_logged(row: str, call: Call, tiny_treebank: Path, tmp_path: Path) -> None:
    result = tmp_path / "results/ptb/small" / row / "seed0.json"
    outcome = call("reproduce", *tiny_run(tmp_path, "--epochs", "1", logger=()), "--result", str(result))
    end_of_process()
    assert outcome.status == 0, outcome.err
    assert "not all logged" not in outcome.out
    [folder] = offline_runs(tmp_path / "run")
    artifacts = records(folder, "artifact")
    assert sorted(artifact["type"] for artifact in artifacts) == ["model", "model", "result"]
    assert {json.loads(artifact["metadata"])["run"] for artifact in artifacts} == {f"ptb/small/{row}/seed0"}
    names = {"my row": "ptb-small-my-row-seed0-result", "größer": "ptb-small-gr--er-seed0-result"}
    [name] = [artifact["name"] for artifact in artifacts if artifact["type"] == "result"]
    assert name == names.get(row, f"ptb-small-{row}-seed0-result"[-128:])


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
    shutil.rmtree(tmp_path / "run/checkpoints")
    train(1)
    assert records(offline_runs(tmp_path / "run")[2], "run")[0]["run_id"] != ids[0]


def test_rows_that_a_killed_process_lost_are_logged_again_from_the_checkpoint(
    train: Call, tmp_path: Path, result: Path
) -> None:
    train(2)
    whole = rows(offline_runs(tmp_path / "run")[0])
    shutil.rmtree(tmp_path / "run/wandb")
    shutil.rmtree(tmp_path / "run/csv")
    (tmp_path / "run" / RECORDED_FILE).unlink()  # what is left of a process that was killed just after its last epoch
    train(3)
    curve = json.loads(result.read_text())["curve"]
    again = rows(offline_runs(tmp_path / "run")[0])
    [table] = (tmp_path / "run/csv").rglob("metrics.csv")
    logged = list(csv.DictReader(table.open()))
    for name in ("valid_ppl", "train_ppl", "learning_rate", "gradient_norm", "words_per_s"):
        expected = {entry["epoch"]: entry[name] for entry in curve}
        assert {row["epoch"]: row[name] for row in again if name in row} == pytest.approx(expected, rel=1e-6), name
        of_csv = {int(row["epoch"]): float(row[name]) for row in logged if row[name]}
        assert of_csv == pytest.approx(expected, rel=1e-6), name
    steps = {row["epoch"]: row["trainer/global_step"] for row in whole if "train_ppl" in row}
    assert {row["epoch"]: row["trainer/global_step"] for row in again if row["epoch"] in (1, 2)} == steps


def test_rows_that_are_recorded_for_certain_are_not_logged_again(tmp_path: Path) -> None:
    logger = SimpleNamespace(rows=[], save=lambda: None)
    logger.log_metrics = lambda metrics, step: logger.rows.append((metrics, step))
    trainer = SimpleNamespace(loggers=[logger], num_training_batches=12, accumulate_grad_batches=1)
    curve = [{"epoch": epoch, "valid_ppl": 90.0 - epoch, "seconds": 6.0} for epoch in range(1, 7)]
    (tmp_path / RECORDED_FILE).write_text("5\n")
    tracking.log_lost_epochs(tmp_path, trainer, curve)
    assert logger.rows == [({"epoch": 5, "valid_ppl": 84.0}, 71)]  # Lightning's number of the sixth
    for damaged in ("", "two", None):
        logger.rows.clear()
        if damaged is None:
            (tmp_path / RECORDED_FILE).unlink()
        else:
            (tmp_path / RECORDED_FILE).write_text(damaged)
        tracking.log_lost_epochs(tmp_path, trainer, curve)
        assert [metrics["epoch"] for metrics, _ in logger.rows] == [4, 5], "W&B has written what is older than 10 s"


def test_a_run_has_one_id_from_its_first_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(**_: Any) -> None:
        raise Killed

    killed = RunWandbLogger(tmp_path)
    monkeypatch.setattr(tracking, "start", die)
    with pytest.raises(Killed):
        killed.log_metrics({"epoch": 0, "valid_ppl": 3.0}, 1)
    assert (tmp_path / ID_FILE).read_text().strip() == killed.version
    assert RunWandbLogger(tmp_path).version == killed.version
    assert RunWandbLogger(tmp_path, is_new=True).version != killed.version
    (tmp_path / ID_FILE).write_bytes(b"\xff /")
    assert RunWandbLogger(tmp_path).version not in (killed.version, "")


KILLED = """
import os, signal
from training.checkpoints import LastCheckpoint
hook = getattr(LastCheckpoint, {hook!r})
def killed(callback, trainer, *more):
    hook(callback, trainer, *more)
    if trainer.current_epoch == {epoch}:
        os.killpg(0, signal.SIGKILL)
setattr(LastCheckpoint, {hook!r}, killed)
"""


def test_the_configuration_of_a_run_is_there_as_a_whole_or_not_at_all(
    call: Call, tiny_treebank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def full(path: Path, target: Path) -> Path:
        if Path(target).name == "config.yaml":
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full)
    outcome = call("fit", *tiny_run(tmp_path, "--trainer.max_epochs", "1"))
    assert outcome.status == 2
    assert f"{tmp_path / 'run/config.yaml'} cannot be written" in outcome.err
    assert not list(tmp_path.rglob("config.*"))
    monkeypatch.undo()


def test_a_replaced_run_of_fit_has_another_id(call: Call, tiny_treebank: Path, tmp_path: Path) -> None:
    ids = []
    for more in ((), (), ("--ckpt_path", str(tmp_path / "run/checkpoints/last.ckpt"), "--trainer.max_epochs", "2")):
        fit = tiny_run(tmp_path, "--trainer.max_epochs", "1", *more, logger=())
        assert call("fit", *fit).status == 0
        end_of_process()
        ids.append((tmp_path / "run" / ID_FILE).read_text())
    assert ids[0] != ids[1] == ids[2]
    epochs = [[row["epoch"] for row in rows(run) if "train_ppl" in row] for run in offline_runs(tmp_path / "run")]
    assert epochs == [[1], [1], [2]]


@pytest.mark.slow
@pytest.mark.parametrize(("hook", "epoch"), [("on_train_start", 0), ("on_train_epoch_end", 1)])
def test_a_run_that_is_killed_comes_back_under_its_id_and_no_row_is_missing(
    hook: str, epoch: int, tiny_treebank: Path, tmp_path: Path, result: Path
) -> None:
    run = ["reproduce", *tiny_run(tmp_path, "--epochs", "3", "--result", str(result), logger=())]
    program = tiny_program(tmp_path)
    script = Path(program[-1])
    plain = script.read_text()
    killing = plain.replace("import main\n", f"import main\n{KILLED.format(hook=hook, epoch=epoch)}")
    statuses = []
    for content in (killing, plain):
        script.write_text(content)
        process = subprocess.run(
            [*program, *run],
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "cache"), "HF_DATASETS_OFFLINE": "1"},
            capture_output=True,
            text=True,
            start_new_session=True,
            timeout=180,
        )
        statuses.append(process.returncode)
    assert statuses == [-signal.SIGKILL, 0], process.stderr
    run_id = (tmp_path / "run" / ID_FILE).read_text().strip()
    found: dict[int, float] = {}
    for folder in offline_runs(tmp_path / "run"):
        assert all(record["run_id"] == run_id for record in records(folder, "run"))
        found |= {row["epoch"]: row["train_ppl"] for row in rows(folder) if "train_ppl" in row}
    curve = json.loads(result.read_text())["curve"]
    assert found == pytest.approx({entry["epoch"]: entry["train_ppl"] for entry in curve}, rel=1e-6)


@pytest.mark.slow
def test_a_run_that_is_cancelled_with_all_its_processes_ends_with_its_message(
    tiny_treebank: Path, tmp_path: Path, result: Path
) -> None:
    program = tiny_program(tmp_path)
    script = Path(program[-1])
    cancelled = KILLED.format(hook="on_train_epoch_end", epoch=1).replace(
        "os.killpg(0, signal.SIGKILL)", "os.kill(os.getpid(), signal.SIGTERM); end_wandb()"
    )
    script.write_text(
        script.read_text().replace(
            "import main\n",
            f"import main\n{cancelled}\n"
            "from pathlib import Path\n"
            "def end_wandb():\n"
            "    for file in Path('/proc').glob('[0-9]*/cmdline'):\n"
            "        if file.exists() and f'--pid\\0{os.getpid()}'.encode() in file.read_bytes():\n"
            "            os.kill(int(file.parent.name), signal.SIGKILL)\n",
        )
    )
    run = ["reproduce", *tiny_run(tmp_path, "--epochs", "9", "--result", str(result), logger=())]
    environment = {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "cache"), "HF_DATASETS_OFFLINE": "1"}
    ended = subprocess.run([*program, *run], env=os.environ | environment, capture_output=True, text=True, timeout=180)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert f"stopped by SIGTERM: the same command goes on from {last}" in ended.stdout
    assert "Traceback" not in ended.stderr
    assert ended.stdout.count("W&B: ") <= 2, "where it is recorded, and that nothing more is"


@pytest.mark.slow
def test_without_a_home_folder_the_log_of_wandb_is_not_printed(
    tiny_treebank: Path, tmp_path: Path, result: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HOME", "XDG", "WANDB"))}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "cache"), "HF_DATASETS_OFFLINE": "1"}
    environment |= {"WANDB_MODE": "offline"}  # with the home folder of the system's list, there may be an account
    run = ["reproduce", *tiny_run(tmp_path, "--epochs", "1", "--result", str(result), logger=())]
    ended = subprocess.run(
        [*tiny_program(tmp_path), *run], env=environment, capture_output=True, text=True, timeout=180
    )
    assert ended.returncode == 0, ended.stderr
    assert "INFO" not in ended.stdout + ended.stderr
    assert "ERROR" not in ended.stdout + ended.stderr


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk for some checkpoints, not for the records of W&B."""
    with small_disk(tmp_path / "run", "140k") as folder:
        yield folder


@pytest.mark.slow
def test_a_disk_that_is_full_is_answered_with_messages_alone(
    full_disk: Path, tiny_treebank: Path, tmp_path: Path, result: Path
) -> None:
    environment = {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "cache"), "HF_DATASETS_OFFLINE": "1"}
    run = ["reproduce", *tiny_run(tmp_path, "--epochs", "13", "--result", str(result), logger=())]
    ended = subprocess.run(
        [*tiny_program(tmp_path), *run], env=os.environ | environment, capture_output=True, text=True, timeout=180
    )
    assert "No space left on device" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr


def test_in_a_sweep_the_id_is_the_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    assert RunWandbLogger(tmp_path).version == "given"


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


def helpers_of(pid: int) -> list[int]:
    """The processes of W&B that write for a process."""
    files = [file for file in Path("/proc").glob("[0-9]*/cmdline") if file.exists()]
    helpers = [int(file.parent.name) for file in files if f"--pid\0{pid}".encode() in file.read_bytes()]
    assert helpers, "W&B writes in a process of its own"
    return helpers


STARTED = """
import sys, time
from pathlib import Path
from experiments import wandb_runs
run = wandb_runs.start(project="p", dir=sys.argv[1])
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
    helpers = helpers_of(process.pid)
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
        monkeypatch.setitem(wandb_runs.SETTINGS, "init_timeout", 5.0)
        started = time.monotonic()
        outcome = train(1)
    assert outcome.status == 0, outcome.err
    assert time.monotonic() - started < 60
    assert outcome.out.count("W&B: ") == 1
    assert f"`make sync RUNS={tmp_path / 'run'}` uploads it later" in outcome.out
    assert result.exists()
    [folder] = offline_runs(tmp_path / "run")
    assert [row["epoch"] for row in rows(folder) if "valid_ppl" in row] == [1]


def test_a_run_is_recorded_where_what_is_left_of_wandb_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: Any) -> None:
        raise wandb.errors.CommError("the server is gone")

    with monkeypatch.context() as patched:
        patched.setattr(wandb, "login", refuse)
        patched.setattr(wandb, "teardown", threading.Event().wait)
        patched.setattr(wandb_runs, "TEARDOWN_TIMEOUT", 0.1)
        run = wandb_runs.start(project="p", dir=tmp_path / "run")
    run.finish()
    assert "W&B: the server is gone. The run is recorded offline" in capsys.readouterr().out
    assert len(offline_runs(tmp_path / "run")) == 1


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
    assert "No space left on device. Nothing more is recorded there" in outcome.out
    assert result.exists()


def test_artifacts_that_cannot_be_stored_do_not_end_a_run(
    train: Call, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb.Artifact, "add_file", full)
    outcome = train(1)
    assert outcome.status == 0, outcome.err
    assert "No space left on device. Result file and checkpoints are not all logged as artifacts" in outcome.out
    assert result.exists()


def test_a_run_whose_folder_cannot_be_written_has_no_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    logger = RunWandbLogger(tmp_path / "file" / "run")
    logger.log_metrics({"epoch": 0, "valid_ppl": 3.0}, 1)
    logger.log_metrics({"epoch": 1, "valid_ppl": 2.0}, 2)
    logger.finalize("success")
    assert capsys.readouterr().out.count("W&B: [Errno 20] Not a directory") == 1


def test_a_run_outlives_the_process_of_wandb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = RunWandbLogger(tmp_path)
    logger.log_metrics({"epoch": 0, "valid_ppl": 3.0}, 1)
    for pid in helpers_of(os.getpid()):
        os.kill(pid, signal.SIGKILL)
    for step in range(2, 40):
        logger.log_metrics({"epoch": step, "valid_ppl": 2.0}, step)
        time.sleep(0.05)
    logger.finalize("failed")
    with suppress(OSError):
        wandb_runs.teardown()
    assert capsys.readouterr().out.count("Nothing more is recorded there") == 1


def test_a_run_that_is_requeued_is_not_ended_before_its_process(tmp_path: Path) -> None:
    logger = RunWandbLogger(tmp_path)
    logger.log_metrics({"epoch": 0, "valid_ppl": 3.0}, 1)
    logger.finalize("finished")  # by Lightning, when Slurm has told it that time is up
    logger.log_metrics({"epoch": 1, "valid_ppl": 2.0}, 2)
    logger.finalize("failed")
    [folder] = offline_runs(tmp_path)
    assert [row["epoch"] for row in rows(folder)] == [1, 2]
    assert not records(folder, "preempting"), "in a sweep it would be run again, whatever it failed of"


def test_a_result_of_another_form_is_refused_before_anything_is_recorded(
    call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    outcome = call("reproduce", *tiny_run(tmp_path, logger=()), "--result", "seed0.json")
    assert outcome.status == 2
    assert "result must be .../EXPERIMENT/GROUP/ROW/seedK.json, got seed0.json" in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_test_of_a_finished_run_is_a_run_of_its_own(call: Call, train: Call, tmp_path: Path) -> None:
    train(1)
    run_id = (tmp_path / "run" / ID_FILE).read_text()
    checkpoint = ("--ckpt_path", str(tmp_path / "run/checkpoints/best.ckpt"))
    assert call("test", *tiny_run(tmp_path, *checkpoint, logger=())).status == 0
    wandb_runs.teardown()
    [tested] = records(offline_runs(tmp_path / "run")[1], "run")
    assert tested["job_type"] == "test"
    assert tested["run_id"] != run_id.strip()
    assert (tmp_path / "run" / ID_FILE).read_text() == run_id


@pytest.mark.slow
def test_a_folder_in_use_is_not_trained_in_by_another_process(train: Call, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from experiments import files
files.lock_run_folder(Path({str(tmp_path / "run")!r}))
print("held", flush=True)
input()
"""
    (tmp_path / "run").mkdir()
    root = Path(tracking.__file__).parents[1]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": root}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout.readline() == "held\n"  # type: ignore[union-attr]
        outcome = train(1)
        process.communicate("\n")
    assert outcome.status == 2
    assert f"{tmp_path / 'run'} is the folder of a run that another process has not ended" in outcome.err
    assert train(1).status == 0


def test_a_run_below_the_folder_where_make_sync_looks_needs_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb_runs, "__file__", str(tmp_path / "experiments/wandb_runs.py"))
    wandb_runs.start(project="p", dir=tmp_path / "runs/ptb/small")
    assert "; `make sync` uploads it later." in capsys.readouterr().out


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run that was recorded offline; the current folder is another, and empty."""
    run = wandb_runs.start(project="p", dir=tmp_path / "run")
    run.log({"value": 1})
    run.finish()
    wandb_runs.teardown()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "run"


def test_without_an_account_nothing_is_uploaded_and_nothing_left_behind(recorded: Path) -> None:
    with pytest.raises(SystemExit, match=r"^W&B: no account is logged in\. .* log in with `\.venv/bin/wandb login`"):
        tracking.main(recorded)
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_an_upload_to_a_server_that_does_not_answer_ends_with_its_name(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        server = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", server)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        with pytest.raises(
            SystemExit, match=f"^W&B: Failed to authenticate with {server}: .* try again when the server"
        ):
            tracking.main(recorded)


@pytest.mark.slow
def test_offline_runs_are_uploaded_by_make_sync_once(train: Call, tmp_path: Path) -> None:
    for epochs in (1, 2):
        train(epochs)
    root = Path(tracking.__file__).parents[1]
    logs = set(root.glob("wandb/**/*"))
    with running() as server:

        def sync() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["make", "-s", "sync", f"RUNS={tmp_path}"],
                cwd=root,
                env=os.environ | server.environment | {"WANDB_MODE": "offline"},  # as the runs were recorded
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
        live = RunWandbLogger(tmp_path / "live")
        live.log_metrics({"epoch": 0, "valid_ppl": 3.0}, 1)
        second = sync()
        assert second.returncode == 0, second.stderr
        assert f"{tmp_path / 'live'} is still running: its records are left for later." in second.stdout
        assert "Skipped 2 synced run(s)" in second.stderr
        assert len(server.streams[run_id]) == before
        live.log_metrics({"epoch": 1, "valid_ppl": 2.0}, 2)
        live_id = live.version
        end_of_process()
        third = sync()
        assert third.returncode == 0, third.stderr
        assert third.stderr.count("Finished syncing") == 1, third.stderr + third.stdout
        assert set(root.glob("wandb/**/*")) == logs
        assert [row["epoch"] for row in server.streams[str(live_id)]] == [1, 2]
    empty = subprocess.run(
        ["make", "-s", "sync", f"RUNS={tmp_path / 'none'}"], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert empty.stdout == f"There are no offline runs to upload below {tmp_path / 'none'}.\n"
