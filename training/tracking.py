"""What a run records of itself besides its result file: in Weights & Biases, online or offline, and as CSV."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers as loggers
import wandb
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from experiments import print_any_text
from experiments.files import is_running, lock_run_folder
from experiments.runs import Run
from experiments.wandb_runs import FAILURES, PROJECT, artifact_name, first_line, start, teardown, without_records
from lightning_modules.loading import read_checkpoint

# Curves; other metrics have one value. W&B keeps one definition of a metric, any one: no two patterns may fit it.
LOWER_IS_BETTER = ("train_*", "valid_*", "test_ppl*", "test_rmse*")
BY_STEP = ("gradient_norm", "learning_rate", "words_per_s")
ID_FILE, RECORDED_FILE = "wandb_id", "recorded_epochs"  # in the run's folder
FOLDER = "--trainer.default_root_dir; RUNS=... for make"  # how that is chosen

FLUSHED = 10.0  # seconds after which W&B has written a row, generously
DROPOUT = ("word_dropout", "input_dropout", "recurrent_dropout", "memory_dropout", "output_dropout")


class EpochsFromOne:
    """What makes a logger of Lightning's number epochs from 1, as result files do."""

    _is_fitted = False

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log them under that number."""
        shift = 0 if self._is_fitted else 1  # after training, Lightning's number is that of finished epochs
        lightning: Any = super()
        lightning.log_metrics({k: v + shift if k == "epoch" else v for k, v in metrics.items()}, step)

    def finalize(self, status: str) -> None:
        """Training, or what else the logger was for, has ended."""
        self._is_fitted |= status == "success"
        lightning: Any = super()
        lightning.finalize(status)


class RunCSVLogger(EpochsFromOne, loggers.CSVLogger):
    """Lightning's logger of metrics.csv."""


class RunWandbLogger(EpochsFromOne, loggers.WandbLogger):
    """Lightning's logger, for runs that must go on without W&B and whose records must outlive them.

    Args:
        root: folder of the run.
        result: its result file, which names and groups it; or None.
        kind: "fit" or "reproduce", whose runs keep their id in the folder; any other is a run of its own.
        is_new: whether it replaces the run in the folder and gets an id of its own, instead of continuing that run.
        cell: "lstm" or "gru", for the tags.

    Raises:
        ValueError: the path of the result has another form.
    """

    def __init__(
        self,
        root: Path,
        result: Path | None = None,
        kind: str = "reproduce",
        is_new: bool = False,
        cell: str = "lstm",
    ) -> None:
        named: dict[str, Any] = {} if kind in ("fit", "reproduce") else {"job_type": kind}
        if result:
            run = Run.parse(result)
            experiment, group, row = run.experiment, run.group, run.row
            scheme = row.removesuffix("_lstm").removesuffix("_gru")
            table = ["table1"] if experiment == "ptb" and group in ("medium", "large") else []
            beyond = ["beyond"] if experiment == "ptb" and group.startswith(("inan_", "press_")) else []
            named = {
                "name": f"{row}-seed{run.seed}",
                "group": f"{experiment}/{group}",
                "job_type": row,
                "tags": [
                    tag[:64]  # W&B refuses longer ones
                    for tag in dict.fromkeys([experiment, group, scheme, cell, *table, *beyond])
                ],
            }
        self._kind = kind
        self._id_file = root / ID_FILE if kind in ("fit", "reproduce") else None
        self._epochs = 0  # logged so far
        self._saved_id = ""
        if self._id_file is not None and self._id_file.is_file() and not is_new:
            self._saved_id = self._id_file.read_text(encoding="utf-8", errors="replace").strip()
            if not re.fullmatch(r"[\w-]{1,64}", self._saved_id, flags=re.ASCII):
                self._saved_id = ""
        super().__init__(
            project=PROJECT,
            save_dir=root,
            id=os.environ.get("WANDB_RUN_ID") or self._saved_id or uuid.uuid4().hex[:8],
            **named,
        )
        self._wandb_init.pop("anonymous", None)  # of which wandb would say that it has no effect

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started by the first use."""
        if self._experiment is None:
            try:
                self._save_id()  # before W&B starts, so that a run that is killed now keeps its id
                self._experiment = start(**self._wandb_init)
            except OSError as error:
                self._experiment = without_records(error)
            self._experiment.define_metric("trainer/global_step")
            self._experiment.define_metric("epoch")
            for name in BY_STEP:
                self._experiment.define_metric(name, step_metric="trainer/global_step", step_sync=True)
            for errors in LOWER_IS_BETTER:
                self._experiment.define_metric(errors, step_metric="epoch", summary="min,last")
        return self._experiment

    def _save_id(self) -> None:
        if self._id_file is not None and self._id != self._saved_id:
            self._id_file.parent.mkdir(parents=True, exist_ok=True)
            lock_run_folder(self._id_file.parent)
            (self._id_file.parent / RECORDED_FILE).unlink(missing_ok=True)
            self._id_file.write_text(f"{self._id}\n", encoding="utf-8")

    def _save_epochs(self) -> None:
        """Note which epochs are recorded, so that `log_lost_epochs` does not log them again."""
        if self._id_file is not None and self._epochs and self._experiment and not self._experiment.disabled:
            (self._id_file.parent / RECORDED_FILE).write_text(f"{self._epochs}\n", encoding="utf-8")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log them, as long as W&B can be reached."""
        try:
            super().log_metrics(metrics, step)
            if "learning_rate" in metrics:  # with what training has measured, at the end of an epoch
                self._epochs = int(metrics["epoch"]) + 1
        except FAILURES as error:  # W&B's own process has died
            self._experiment = without_records(error)

    @rank_zero_only
    def log_run(self, config: dict[str, Any], model: Any, provenance: Mapping[str, Any]) -> None:
        """Log the resolved configuration, and how many parameters and which dropout the model has."""
        kept = ("commit", "dirty", "hardware", "versions")
        told = {name: provenance[name] for name in kept if name in provenance}
        self.experiment.config.update(config | told, allow_val_change=True)
        dropout = {name: model.hparams[name] for name in DROPOUT if name in model.hparams}
        parameters = sum(p.numel() for p in model.parameters())
        self.experiment.summary.update({"parameters": parameters} | dropout)

    @rank_zero_only
    def log_result(self, result: Path, checkpoints: Mapping[str, Path]) -> None:
        """Log the result file and checkpoints as artifacts, with their run, epoch, commit and corpus.

        Args:
            result: file.
            checkpoints: files by their alias, "best" and "last".
        """
        if self.experiment.disabled:
            return
        run = str(Run.parse(result))
        files = [("result", result, []), *(("model", path, [alias]) for alias, path in checkpoints.items())]
        try:
            report = json.loads(result.read_text(encoding="utf-8"))
            corpus = report["provenance"].get("corpus")
            origin = {"run": run, "commit": report["provenance"]["commit"], "dirty": report["provenance"]["dirty"]}
            origin |= {"corpus": corpus["name"], "sha256": corpus["sha256"]} if corpus else {}
            if corpus and not self.experiment.offline:  # W&B knows no used artifacts of an offline run
                used = wandb.Artifact(
                    artifact_name(corpus["name"]), "dataset", metadata={n: origin[n] for n in ("corpus", "sha256")}
                )
                with used.new_file("SHA256SUMS") as file:
                    file.writelines(f"{digest}  {path}\n" for path, digest in corpus["sha256"].items())
                self.experiment.use_artifact(used)
            for kind, path, aliases in files:
                of_epoch = report["tested_epoch"] if kind == "result" else len(read_checkpoint(path)["curve"])
                artifact = wandb.Artifact(
                    artifact_name(f"{run}-{kind}"), type=kind, metadata=origin | {"epoch": of_epoch}
                )
                artifact.add_file(str(path))
                self.experiment.log_artifact(artifact, aliases=["latest", *aliases])
            self._save_epochs()
        except (*FAILURES, ValueError) as error:  # the result is there, whatever happens here
            print(f"W&B: {first_line(error)} Result file and checkpoints are not all logged as artifacts.", flush=True)
            if isinstance(error, (ConnectionError, wandb.errors.Error)):
                teardown()  # as in `without_records`

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Nothing: checkpoints are logged at the end."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the records of a run that failed or was stopped, or what is buffered would be lost with the process."""
        super().finalize(status)
        is_end = status == "failed" or (status == "success" and self._kind == "fit")  # a test follows `reproduce`'s
        if is_end and self._experiment is not None:
            try:
                self._experiment.finish(exit_code=int(status == "failed"))
                self._save_epochs()
            except FAILURES as error:
                self._experiment = without_records(error)


class LoggersOfARun(Callback):
    """Gives the trainer its loggers when the data are in order: those it has before make folders that a refusal leaves.

    Args:
        loggers: of the trainer.
    """

    def __init__(self, loggers: list[Any]) -> None:
        self.loggers = loggers

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """The data are; model and checkpoint will be, too, when something is logged first."""
        if not trainer.fast_dev_run:
            trainer.loggers = self.loggers


def default_loggers(root: Path, result: Path | None, kind: str, is_new: bool, cell: str) -> list[Any]:
    """W&B and a CSV file, below the run's folder."""
    return [RunWandbLogger(root, result, kind, is_new, cell), RunCSVLogger(root, name="csv")]


def log_lost_epochs(root: Path, trainer: Any, curve: list[dict[str, float]]) -> None:
    """Log the last epochs of a checkpoint again, whose rows are lost if the process was killed soon after them.

    Args:
        root: folder of the run, with the number of epochs that are certainly recorded.
        trainer: with the loggers, about to train.
        curve: of the checkpoint.
    """
    recorded = 0
    with suppress(OSError, ValueError):
        recorded = int((root / RECORDED_FILE).read_text(encoding="utf-8"))
    lost, age = [], 0.0
    for entry in reversed(curve):
        if entry["epoch"] <= recorded or age > FLUSHED:
            break
        lost.append(entry)
        age += entry["seconds"]
    steps = int(trainer.num_training_batches) // trainer.accumulate_grad_batches
    for entry in reversed(lost):
        epoch = int(entry["epoch"]) - 1  # Lightning's number
        metrics = {name: value for name, value in entry.items() if name != "seconds"} | {"epoch": epoch}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, steps * (epoch + 1) - 1)
            logger.save()


def main(folder: Path) -> None:
    """Upload every run below a folder that was recorded offline, unless it is still running."""
    runs = sorted(folder.rglob("wandb/offline-run-*"))
    running = {run.parents[1] for run in runs if is_running(run.parents[1])}
    for root in sorted(running):
        print(f"{root} is still running: its records are left for later.", flush=True)
    ended = [str(run) for run in runs if run.parents[1] not in running]
    if not ended:
        print(f"There are no offline runs to upload below {folder}.")
        return
    os.environ.pop("WANDB_MODE", None)  # is for runs
    try:  # without a server, `wandb sync` would go on asking for one
        reason = "" if wandb.login(prompt=False) else "no account is logged in."
    except FAILURES as error:
        reason = first_line(error)
    if reason:
        teardown()  # else at the end of the process, without a limit
        advice = "log in with `.venv/bin/wandb login`, or try again when the server answers"
        sys.exit(f"W&B: {reason} Nothing is uploaded: {advice}.")
    environment = os.environ | {"WANDB_DIR": str(folder)}  # for its own log, else in the current folder
    sys.exit(subprocess.run([sys.executable, "-m", "wandb", "sync", *ended], env=environment).returncode)


if __name__ == "__main__":
    print_any_text()
    main(Path(sys.argv[1]))
