"""What ends a run before its time: nothing computed is lost, nothing damaged is left, and it says what to do."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from datamodules import PennTreebank
from experiments import files
from lightning_modules import LanguageModel, load
from lightning_modules.loading import read_checkpoint
from tests.tiny import small_disk, tiny_program, tiny_run
from training.checkpoints import AtomicCheckpointIO, find_checkpoint
from training.recorder import options_that_count

Call = Callable[..., Any]
RESULT = "results/ptb/small/variational_tied/seed0.json"


def options(tmp_path: Path, folder: str, *more: str) -> list[str]:
    """A run of three epochs of 12 windows in a folder, saved after every window."""
    return [
        "reproduce",
        *tiny_run(tmp_path, "--result", str(tmp_path / folder / RESULT), "--epochs", "3"),
        *("--trainer.default_root_dir", str(tmp_path / folder)),
        *("--trainer.checkpoint_minutes", "0"),
        *more,
    ]


def outcome(tmp_path: Path, folder: str) -> dict[str, Any]:
    """Result and final parameters of a run, without what differs between equal runs."""
    report = json.loads((tmp_path / folder / RESULT).read_text())
    for values in (report["metrics"], *report["curve"]):
        for measured in ("seconds", "words_per_s"):
            del values[measured]
    last = torch.load(tmp_path / folder / "checkpoints/last.ckpt", weights_only=True)
    return {
        "metrics": report["metrics"],
        "curve": report["curve"],
        "parameters": {name: value.tolist() for name, value in last["state_dict"].items()},
    }


def damage(file: Path) -> None:
    """Turn over one bit of a parameter, which torch.load does not notice."""
    with zipfile.ZipFile(file) as archive:
        part = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(file.read_bytes())
    content[part.header_offset + 100 + part.file_size // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    file = tmp_path / "checkpoints/last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.arange(1000.0)}, file)
    return file


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_reads_as_it_was_written(checkpoint: Path) -> None:
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(checkpoint)["weights"], torch.arange(1000.0))
    assert [file.name for file in checkpoint.parent.iterdir()] == ["last.ckpt"]


def test_a_bit_that_is_turned_over_is_found(checkpoint: Path) -> None:
    damage(checkpoint)
    assert not torch.equal(
        torch.load(checkpoint)["weights"], torch.arange(1000.0)
    )  # torch reads it as if it were whole
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged: its part .*data/0"):
        AtomicCheckpointIO().load_checkpoint(checkpoint)


@pytest.mark.parametrize("kept", [0, 10, 1000, -1])
def test_a_checkpoint_that_is_cut_off_is_found(kept: int, checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged"):
        read_checkpoint(checkpoint)


def test_a_checkpoint_that_would_inflate_is_refused_before_it_is_read(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(checkpoint, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    monkeypatch.setattr(zipfile.ZipFile, "open", None)  # or it is a TypeError
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged, or none: its parts claim 10 MB, but it has 0 MB"):
        read_checkpoint(checkpoint)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_a_trap_is_one(tmp_path: Path) -> None:
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "trap.ckpt")
    torch.load(tmp_path / "trap.ckpt", weights_only=False)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("protocol", [2, 5])
def test_code_in_a_checkpoint_is_not_executed(
    protocol: int, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # what other programs may want changes nothing here
    torch.save({"state_dict": {}, "more": Trap(tmp_path / "sprung")}, checkpoint, pickle_protocol=protocol)
    with pytest.raises(UnpicklingError, match=r"last\.ckpt is refused: it holds .* beside tensors and plain values"):
        AtomicCheckpointIO().load_checkpoint(checkpoint)
    with pytest.raises(UnpicklingError, match=r"last\.ckpt is refused"):
        find_checkpoint(checkpoint.parent)
    with pytest.raises(ValueError, match=r"weights_only=False would execute what is in the checkpoint .*last\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(checkpoint, weights_only=False)
    assert checkpoint.exists(), "it is not taken for a damaged one, which is put aside"
    assert not (tmp_path / "sprung").exists()


def test_a_refusal_names_what_a_checkpoint_holds(checkpoint: Path) -> None:
    torch.save({"state_dict": {}, "when": signal.SIGTERM}, checkpoint)
    with pytest.raises(UnpicklingError, match=r"it holds signal\.Signals beside tensors"):
        read_checkpoint(checkpoint)


def test_what_is_no_checkpoint_is_refused(checkpoint: Path) -> None:
    torch.save(torch.zeros(3), checkpoint)
    with pytest.raises(ValueError, match=r"last\.ckpt is none: it holds a Tensor"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "reproduce", "predict MODEL", "export"])
def test_every_command_refuses_a_checkpoint_that_would_execute_code(
    command: str, call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    run = options(tmp_path, "run", "--epochs", "1")
    assert call(*run).status == 0
    last = tmp_path / "run/checkpoints/last.ckpt"
    torch.save(torch.load(last, weights_only=True) | {"more": Trap(tmp_path / "sprung")}, last)
    content = last.read_bytes()
    if command == "predict MODEL":
        run = ["predict", str(last)]
    elif command == "export":
        run = ["export", str(last), "saved"]
    elif command != "reproduce":
        run = [command, *tiny_run(tmp_path, "--ckpt_path", str(last))]
    refused = call(*run)
    assert refused.status == 2
    assert re.fullmatch(rf"error: the checkpoint {last} is refused: it holds .+\n\(TRACEBACK=1 shows .+\n", refused.err)
    assert "resumed from" not in refused.out
    assert last.read_bytes() == content
    assert not (tmp_path / "sprung").exists()


def test_no_command_has_an_option_to_execute_what_is_in_a_checkpoint(
    call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    outcome = call("test", *tiny_run(tmp_path, "--weights_only", "false"))
    assert outcome.status == 2
    assert "there is no option 'weights_only'" in outcome.err


def test_checkpoints_hold_tensors_and_plain_values_alone(call: Call, tiny_treebank: Path, tmp_path: Path) -> None:
    outcome = call(*options(tmp_path, "run", "--epochs", "1"))
    assert "weights_only" not in outcome.out + outcome.err
    for file in (tmp_path / "run/checkpoints").iterdir():
        assert torch.serialization.get_unsafe_globals_in_checkpoint(file) == []
        assert read_checkpoint(file)["global_step"] > 0


def test_a_full_disk_leaves_the_former_checkpoint_whole_and_no_part(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"last\.ckpt of 0 MB cannot be written \(No space left on device\)"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(7)}, checkpoint)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(checkpoint)["weights"], torch.arange(1000.0))
    assert [file.name for file in checkpoint.parent.iterdir()] == ["last.ckpt"]


def test_the_checkpoint_before_is_taken_where_the_last_one_is_damaged_or_missing(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint.parent
    assert find_checkpoint(folder) == checkpoint
    previous = folder / "previous.ckpt"
    shutil.copy(checkpoint, previous)
    damage(checkpoint)
    assert find_checkpoint(folder) == previous
    assert re.search(r"last\.ckpt is damaged.*going on from the one before, .*previous\.ckpt", capsys.readouterr().out)
    assert sorted(file.name for file in folder.iterdir()) == ["damaged.ckpt", "previous.ckpt"]
    assert find_checkpoint(folder) == previous
    AtomicCheckpointIO().save_checkpoint({}, checkpoint)
    read_checkpoint(previous)
    damage(previous)
    damage(checkpoint)
    with pytest.raises(ValueError, match=r"previous\.ckpt is damaged.*Delete .*checkpoints to begin anew"):
        find_checkpoint(folder)
    previous.unlink()
    checkpoint.unlink()
    assert find_checkpoint(folder) is None


def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before_and_ends_alike(
    call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    assert call(*options(tmp_path, "whole")).status == 0
    assert call(*options(tmp_path, "damaged", "--epochs", "2")).status == 0
    damage(tmp_path / "damaged/checkpoints/last.ckpt")
    resumed = call(*options(tmp_path, "damaged"))
    assert resumed.status == 0, resumed.err
    assert "is damaged" in resumed.out
    assert f"resumed from {tmp_path}/damaged/checkpoints/previous.ckpt" in resumed.out
    assert outcome(tmp_path, "damaged") == outcome(tmp_path, "whole")


# --- signals ----------------------------------------------------------------------------------------------------------


class Send(L.Callback):
    """Sends this process a signal after a batch."""

    number: int
    batch: int

    def on_train_batch_end(self, trainer: Any, model: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        if (trainer.current_epoch, batch_index) == (1, self.batch):
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("batch", [0, 7, 11])
def test_a_run_that_is_asked_to_stop_saves_where_it_is_and_goes_on_from_there(
    number: signal.Signals, batch: int, call: Call, tiny_treebank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rarely = ("--trainer.checkpoint_minutes", "60")
    assert call(*options(tmp_path, "whole", *rarely)).status == 0
    monkeypatch.setattr(Send, "number", number, raising=False)
    monkeypatch.setattr(Send, "batch", batch, raising=False)
    stopped = call(*options(tmp_path, "stopped", *rarely, "--trainer.callbacks+=tests.training.test_faults.Send"))
    assert stopped.status == 128 + number
    last = tmp_path / "stopped/checkpoints/last.ckpt"
    assert f"stopped by {number.name}: the same command goes on from {last}" in stopped.out
    assert torch.load(last, weights_only=True)["global_step"] == 12 + batch + 1
    assert not (tmp_path / "stopped" / RESULT).exists()
    resumed = call(*options(tmp_path, "stopped", *rarely))
    assert resumed.status == 0
    assert f"resumed from {last}" in resumed.out
    assert outcome(tmp_path, "stopped") == outcome(tmp_path, "whole")


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_a_run_in_another_precision_goes_on_bit_for_bit_from_mid_epoch(
    precision: str, call: Call, tiny_treebank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rarely = ("--trainer.checkpoint_minutes", "60", "--trainer.precision", precision)
    assert call(*options(tmp_path, "whole", *rarely)).status == 0
    monkeypatch.setattr(Send, "number", signal.SIGTERM, raising=False)
    monkeypatch.setattr(Send, "batch", 7, raising=False)
    stopped = call(*options(tmp_path, "stopped", *rarely, "--trainer.callbacks+=tests.training.test_faults.Send"))
    assert stopped.status == 128 + signal.SIGTERM
    saved = torch.load(tmp_path / "stopped/checkpoints/last.ckpt", weights_only=True)
    dtype = torch.float64 if precision == "64-true" else torch.float32
    assert {value.dtype for value in saved["state_dict"].values()} == {dtype}
    assert call(*options(tmp_path, "stopped", *rarely)).status == 0
    assert outcome(tmp_path, "stopped") == outcome(tmp_path, "whole")


def test_weights_in_float64_are_tested_and_loaded_as_they_are(call: Call, tiny_treebank: Path, tmp_path: Path) -> None:
    double = ("--trainer.precision", "64-true")
    assert call(*options(tmp_path, "run", *double)).status == 0
    file = tmp_path / "run/checkpoints/last.ckpt"
    saved = torch.load(file, weights_only=True)["state_dict"]
    for model in (load(file), LanguageModel.load_from_checkpoint(file)):
        assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    tested = json.loads((tmp_path / "run" / RESULT).read_text())["metrics"]["test_ppl"]
    model = load(file)
    model.mc_samples = 0
    trainer = L.Trainer(accelerator="cpu", logger=False, precision="64-true", enable_progress_bar=False)
    treebank = PennTreebank(tmp_path / "data", vocab_size=12, batch_size=2, window=5)
    assert trainer.test(model, datamodule=treebank, verbose=False)[0]["test_ppl"] == tested


@pytest.mark.parametrize("batch", [7, 9])
def test_a_run_with_validations_in_mid_epoch_is_stopped_after_one_that_is_due_and_loses_no_metric(
    batch: int, call: Call, tiny_treebank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = ("fit", *tiny_run(tmp_path, "--trainer.max_epochs", "2", "--trainer.val_check_interval", "4"))
    fit = (*fit, "--trainer.limit_train_batches", "11")  # the last validation of an epoch is before its end
    monkeypatch.setattr(Send, "number", signal.SIGTERM, raising=False)
    monkeypatch.setattr(Send, "batch", batch, raising=False)

    def ended(folder: str) -> dict[str, Any]:
        last = torch.load(tmp_path / folder / "checkpoints/last.ckpt", weights_only=True)
        curve = [{name: entry[name] for name in entry.keys() - {"seconds", "words_per_s"}} for entry in last["curve"]]
        return {"curve": curve, "weights": {name: value.tolist() for name, value in last["state_dict"].items()}}

    whole, parts = (("--trainer.default_root_dir", str(tmp_path / name)) for name in ("whole", "parts"))
    assert call(*fit, *whole).status == 0
    assert call(*fit, *parts, "--trainer.callbacks+=tests.training.test_faults.Send").status == 128 + signal.SIGTERM
    last = tmp_path / "parts/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 11 + batch + 1
    assert call(*fit, *parts, "--ckpt_path", str(last)).status == 0
    assert "valid_ppl" in ended("whole")["curve"][1]
    assert ended("parts") == ended("whole")


class SendTwice(L.Callback):
    """Presses Ctrl-C in the second epoch, and again before it had an effect."""

    def on_train_batch_start(self, trainer: Any, model: Any, batch: Any, batch_index: int) -> None:
        if (trainer.current_epoch, batch_index) == (1, 3):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)


def test_a_second_ctrl_c_ends_at_once_and_the_last_epoch_is_still_there(
    call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    rarely = ("--trainer.checkpoint_minutes", "60")
    stopped = call(*options(tmp_path, "run", *rarely, "--trainer.callbacks+=tests.training.test_faults.SendTwice"))
    assert stopped.status == 1
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 12
    assert call(*options(tmp_path, "run", *rarely)).status == 0


def test_ctrl_c_is_the_caller_s_again_when_training_has_ended(call: Call, tiny_treebank: Path, tmp_path: Path) -> None:
    assert call(*options(tmp_path, "run")).status == 0
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


class SendAtTheEnd(L.Callback):
    """Sends this process a signal when training has ended, and nothing has been tested."""

    def on_train_end(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_is_asked_to_stop_before_its_test_does_not_begin_it(
    call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    stopped = call(*options(tmp_path, "run", "--trainer.callbacks+=tests.training.test_faults.SendAtTheEnd"))
    assert stopped.status == 128 + signal.SIGTERM
    assert not (tmp_path / "run" / RESULT).exists()
    assert call(*options(tmp_path, "run")).status == 0


def test_fit_says_how_to_go_on_after_a_signal(
    call: Call, tiny_treebank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Send, "number", signal.SIGTERM, raising=False)
    monkeypatch.setattr(Send, "batch", 3, raising=False)
    fit = ["fit", *tiny_run(tmp_path, "--trainer.max_epochs", "3")]
    stopped = call(*fit, "--trainer.callbacks+=tests.training.test_faults.Send")
    assert stopped.status == 128 + signal.SIGTERM
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert f"the same command with --ckpt_path goes on from {last}" in stopped.out
    changed = call(*fit, "--ckpt_path", str(last), "--data.init_args.window", "3")
    assert changed.status == 2
    assert "window: 5 in the checkpoint, 3 here" in changed.err
    assert call(*fit, "--ckpt_path", str(last)).status == 0


def test_training_outside_the_main_thread_is_left_to_its_signals(
    call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    with ThreadPoolExecutor() as threads:
        assert threads.submit(call, *options(tmp_path, "run")).result().status == 0


class SendInTest(L.Callback):
    """Sends this process a signal in the test."""

    number: int

    def on_test_batch_end(self, *_: Any) -> None:
        os.kill(os.getpid(), self.number)


def test_a_run_that_is_asked_to_stop_in_its_test_ends_at_once_and_is_only_tested_again(
    call: Call, tiny_treebank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SendInTest, "number", signal.SIGUSR1, raising=False)
    run = options(tmp_path, "run", "--trainer.callbacks+=tests.training.test_faults.SendInTest")
    assert call(*run).status == 128 + signal.SIGUSR1
    saved = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()
    again = call(*run)
    assert again.status == 2, "or a job whose test is longer than its time would be started for ever"
    assert "time limit came before the end of a test" in again.err
    assert call(*options(tmp_path, "run")).status == 0
    assert (tmp_path / "run/checkpoints/last.ckpt").read_bytes() == saved


# --- what a resumed run must have kept --------------------------------------------------------------------------------


def test_a_run_of_another_seed_does_not_go_on_in_the_same_folder(
    call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    assert call(*options(tmp_path, "run")).status == 0
    other = str(tmp_path / "run/results/ptb/small/variational_tied/seed1.json")
    refused = call(*options(tmp_path, "run", "--seed_everything", "1", "--result", other))
    assert refused.status == 2
    assert "seed: 0 in the checkpoint, 1 here" in refused.err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--data.init_args.batch_size", "1"), "batch_size: 2 in the checkpoint, 1 here"),
        (("--trainer.precision", "64-true"), "precision: not given in the checkpoint, 64-true here"),
        (
            ("--trainer.gradient_clip_algorithm", "value"),
            "gradient_clip_algorithm: not given in the checkpoint, value here",
        ),
        (("--optimizer", "Adam"), "optimizer: not given in the checkpoint, {'class_path': 'torch.optim.Adam'"),
    ],
    ids=["batch size", "precision", "clipping", "optimiser"],
)
def test_a_run_is_not_resumed_with_options_that_learn_otherwise(
    changed: tuple[str, ...], message: str, call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    fit = ("fit", *tiny_run(tmp_path, "--trainer.max_epochs", "1"))
    assert call(*fit).status == 0
    refused = call(*fit, "--ckpt_path", str(tmp_path / "run/checkpoints/last.ckpt"), *changed)
    assert refused.status == 2
    assert message in refused.err


def test_an_option_of_data_or_trainer_must_be_kept_unless_it_is_known_not_to_matter() -> None:
    data = {"init_args": {"some_new_option": 1, "data_dir": "here", "eval_batch_size": 5}}
    trainer = {"some_new_limit": 2, "devices": 4, "precision": "32-true"}
    kept = options_that_count({"data": data, "trainer": trainer, "model": {"init_args": {}}, "ckpt_path": "there"})
    assert kept == {"some_new_option": 1, "some_new_limit": 2, "precision": "32-true"}


def test_a_run_stopped_in_mid_epoch_is_not_tested_as_one_of_fewer_epochs(
    call: Call, tiny_treebank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Send, "number", signal.SIGTERM, raising=False)
    monkeypatch.setattr(Send, "batch", 5, raising=False)
    call(*options(tmp_path, "run", "--trainer.callbacks+=tests.training.test_faults.Send"))
    refused = call(*options(tmp_path, "run", "--epochs", "1"))
    assert refused.status == 2
    assert "in the middle of epoch 2, past the end of epoch 1: let it end that epoch, epochs=2" in refused.err
    assert call(*options(tmp_path, "run", "--epochs", "2")).status == 0


def test_the_best_epoch_is_known_again_when_the_folder_has_been_moved(
    call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    best = ("--trainer.tested_weights", "best", "--model.init_args.learning_rate", "30")  # the first epoch is the best
    assert call(*options(tmp_path, "whole", *best)).status == 0
    report = json.loads((tmp_path / "whole" / RESULT).read_text())
    assert report["tested_epoch"] < 3
    assert call(*options(tmp_path, "before", *best, "--epochs", "2")).status == 0
    files.LOCKS.pop(tmp_path / "before").close()  # as the end of the process does
    (tmp_path / "before").rename(tmp_path / "after")
    assert call(*options(tmp_path, "after", *best)).status == 0
    moved = json.loads((tmp_path / "after" / RESULT).read_text())
    assert moved["tested_epoch"] == report["tested_epoch"]
    assert moved["metrics"]["test_ppl"] == report["metrics"]["test_ppl"]


def test_a_run_that_stopped_early_is_only_tested_when_started_again(
    call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    early = (
        "--trainer.callbacks+=EarlyStopping",
        *("--trainer.callbacks.monitor", "valid_ppl"),
        *("--trainer.callbacks.patience", "1"),
        *("--trainer.callbacks.min_delta", "1000"),
        *("--epochs", "9"),
    )
    assert call(*options(tmp_path, "run", *early)).status == 0
    report = json.loads((tmp_path / "run" / RESULT).read_text())
    assert report["epochs"] == 2
    (tmp_path / "run" / RESULT).unlink()
    assert call(*options(tmp_path, "run", *early)).status == 0
    assert json.loads((tmp_path / "run" / RESULT).read_text())["curve"] == report["curve"]


def test_a_trial_of_some_batches_leaves_the_checkpoints_of_a_run_alone(
    call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    assert call(*options(tmp_path, "run")).status == 0
    folder = tmp_path / "run/checkpoints"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert call("fit", *tiny_run(tmp_path, "--trainer.fast_dev_run", "true")).status == 0
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--trainer.val_check_interval", "0.5"), "val_check_interval must be 1.0 for reproduce, got 0.5"),
        (("--trainer.accumulate_grad_batches", "0"), "accumulate_grad_batches must be at least 1, got 0"),
        (("--trainer.checkpoint_minutes", "-1"), "checkpoint_minutes must be at least 0, got -1"),
    ],
)
def test_what_could_not_be_resumed_exactly_is_refused(
    changed: tuple[str, ...], message: str, call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    refused = call(*options(tmp_path, "run", *changed))
    assert refused.status == 2
    assert message in refused.err


def test_a_file_system_without_locks_is_only_told_of(
    call: Call, tiny_treebank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files, "fcntl", SimpleNamespace(flock=refuse, LOCK_EX=2, LOCK_SH=1, LOCK_NB=4))
    run = call(*options(tmp_path, "run"))
    assert run.status == 0
    assert f"{tmp_path}/run/lock cannot be locked (No locks available): start no second run there" in run.out
    assert not files.is_running(tmp_path / "run")


# --- results ----------------------------------------------------------------------------------------------------------


def test_a_result_that_cannot_be_written_ends_the_run_before_it_trains(
    call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/results").write_text("a file where a folder should be")
    ended = call(*options(tmp_path, "run"))
    assert ended.status == 2
    assert f"{tmp_path / 'run' / RESULT} cannot be written, since no file can be made in" in ended.err
    assert f"{tmp_path / 'run/results'} (Not a directory): choose another folder (--result; RESULTS=" in ended.err
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize("command", ["fit", "reproduce", "test", "predict"])
@pytest.mark.parametrize(
    ("root", "blocked"), [("file", "file"), ("file/new/run", "file"), ("/proc/run", "/proc"), ("sealed/run", "sealed")]
)
def test_a_folder_of_runs_that_cannot_be_written_is_refused_before_anything_is_done(
    root: str, blocked: str, command: str, call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    (tmp_path / "sealed").mkdir(mode=0o500)
    if blocked == "sealed" and os.access(tmp_path / "sealed", os.W_OK):
        pytest.skip("nothing is read-only for this user")
    more = ["--result", str(tmp_path / RESULT)] if command == "reproduce" else []
    before = sorted(tmp_path.rglob("*"))
    ended = call(command, *tiny_run(tmp_path, *more, "--trainer.default_root_dir", str(tmp_path / root), logger=()))
    assert ended.status == 2
    assert f"error: {tmp_path / root}/" in ended.err
    assert f"cannot be written, since no file can be made in {tmp_path / blocked} (" in ended.err
    assert ended.err.strip().count("\n") == 1, "the message, and how to see where it was raised"
    assert "choose another folder (--trainer.default_root_dir; RUNS=... for make)" in ended.err
    assert ended.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_where_the_checkpoints_should_be_ends_a_run_before_it_trains(
    call: Call, tiny_treebank: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").touch()
    ended = call("fit", *tiny_run(tmp_path))
    assert ended.status == 2
    assert f"no file can be made in {tmp_path}/run/checkpoints (Not a directory)" in ended.err
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["checkpoints"]


def test_predictions_that_could_not_be_written_are_not_made(call: Call, tiny_treebank: Path, tmp_path: Path) -> None:
    assert call("fit", *tiny_run(tmp_path, "--trainer.max_epochs", "1")).status == 0
    (tmp_path / "file").touch()
    run = tiny_run(tmp_path, "--ckpt_path", str(tmp_path / "run/checkpoints/last.ckpt"))
    ended = call("predict", *run, "--trainer.default_root_dir", str(tmp_path / "file/run"))
    assert ended.status == 2
    assert f"error: {tmp_path}/file/run/predictions.pt cannot be written, since" in ended.err


# --- processes --------------------------------------------------------------------------------------------------------


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "PL_", "LOCAL_RANK"))}
    return subprocess.Popen(
        [*tiny_program(tmp_path), *arguments],
        env=outside | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "cache"), "HF_DATASETS_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit status and what it printed."""
    printed, _ = process.communicate(timeout=180)
    return process.returncode, printed


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_in_one_go(tiny_treebank: Path, tmp_path: Path) -> None:
    status, printed = finish(start(tmp_path, *options(tmp_path, "whole")))
    assert status == 0, printed
    last, source = tmp_path / "killed/checkpoints/last.ckpt", random.Random(1)
    for _ in range(4):
        process = start(tmp_path, *options(tmp_path, "killed"))
        before = last.stat().st_mtime_ns if last.exists() else 0
        while process.poll() is None and not (last.exists() and last.stat().st_mtime_ns > before):
            time.sleep(0.01)
        time.sleep(source.uniform(0, 0.3))  # in a step, in an evaluation, or while a checkpoint is written
        if process.poll() is not None:  # only the test was left
            break
        os.killpg(process.pid, signal.SIGKILL)
        finish(process)
    status, printed = finish(start(tmp_path, *options(tmp_path, "killed")))
    assert status == 0, printed
    assert "resumed from" in printed
    assert outcome(tmp_path, "killed") == outcome(tmp_path, "whole")


@pytest.mark.slow
def test_the_death_of_one_process_ends_the_others_and_the_run_goes_on_from_its_checkpoint(
    tiny_treebank: Path, tmp_path: Path
) -> None:
    together = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    status, printed = finish(start(tmp_path, *options(tmp_path, "whole", *together)))
    assert status == 0, printed
    last = tmp_path / "killed/checkpoints/last.ckpt"
    for rank in (1, 0):
        process = start(tmp_path, *options(tmp_path, "killed", *together))
        before = last.stat().st_mtime_ns if last.exists() else 0
        wait_for(lambda: last.exists() and last.stat().st_mtime_ns > before, process)  # noqa: B023
        found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "program.py"], capture_output=True, text=True)
        victims = [process.pid, *map(int, found.stdout.split())]
        assert len(victims) == 2
        os.kill(victims[rank], signal.SIGKILL)
        status, printed = finish(process)
        assert status != 0
        assert "start the same command again, it goes on from the last checkpoint" in printed
    status, printed = finish(start(tmp_path, *options(tmp_path, "killed", *together)))
    assert status == 0, printed
    assert "resumed from" in printed
    assert outcome(tmp_path, "killed") == outcome(tmp_path, "whole")


@pytest.mark.slow
def test_of_two_runs_started_for_the_same_target_one_wins_and_the_other_says_so(
    tiny_treebank: Path, tmp_path: Path
) -> None:
    processes = [start(tmp_path, *options(tmp_path, "run")) for _ in range(2)]
    (won, _), (lost, printed) = sorted(map(finish, processes))
    assert (won, lost) == (0, 2)
    assert f"{tmp_path / 'run'} is the folder of a run that another process has not ended: wait for it" in printed
    assert (tmp_path / "run" / RESULT).exists()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that holds one checkpoint, not three."""
    with small_disk(tmp_path / "full", "24k") as folder:
        yield folder


@pytest.mark.slow
def test_a_run_whose_disk_is_full_says_so_and_goes_on_when_there_is_room(
    call: Call, full_disk: Path, tiny_treebank: Path, tmp_path: Path
) -> None:
    assert call(*options(tmp_path, "whole")).status == 0
    ended = call(*options(tmp_path, "full"))
    assert ended.status == 2
    assert "cannot be written (No space left on device). Make room" in ended.err
    left = {file.name for file in (full_disk / "checkpoints").iterdir()}
    assert left
    assert left <= {"best.ckpt", "last.ckpt", "previous.ckpt"}, "no part of a file"
    subprocess.run(["mount", "-o", "remount,size=8m", full_disk], check=True)
    resumed = call(*options(tmp_path, "full"))
    assert resumed.status == 0, resumed.err
    assert "resumed from" in resumed.out
    assert outcome(tmp_path, "full") == outcome(tmp_path, "whole")
