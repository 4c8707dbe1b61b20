"""What a run records of itself besides its result file: in Weights & Biases, online or offline, and as CSV."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers as loggers
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

import wandb

PROJECT = "variational-rnn"
ID_FILE = "wandb_id"  # in the run's folder

SETTINGS = {
    "init_timeout": 30.0,  # seconds; a server that does not answer must not hold up a run
    "finish_timeout": 300.0,  # what is not uploaded by then stays on disk
    "x_transaction_log_flush_interval": 1.0,  # what a run that is killed can lose
}
DROPOUT = (
    "word_dropout",
    "embedding_dropout",
    "input_dropout",
    "recurrent_dropout",
    "memory_dropout",
    "output_dropout",
)


def start(**init: Any) -> Any:
    """`wandb.init`, offline where nobody is logged in or no server answers, and without records where no disk is.

    Args:
        init: of `wandb.init`; `dir` is required. WANDB_MODE is respected, but for a server that cannot be reached.

    Returns:
        The W&B run.
    """
    settings = SETTINGS | init.pop("settings", {})
    reason = "no account is logged in."
    try:
        if "WANDB_MODE" in os.environ or wandb.login(prompt=False):
            return wandb.init(**init, settings=wandb.Settings(**settings))
    except wandb.errors.Error as error:
        wandb.teardown()  # or what failed would be asked again
        reason = _first_line(error)
    except OSError as error:
        return _without_records(error)
    try:
        run = wandb.init(**init, mode="offline", settings=wandb.Settings(**settings, silent=True))
    except (wandb.errors.Error, OSError) as error:
        return _without_records(error)
    where = Path(init["dir"]) / "wandb"
    print(f"W&B: {reason} The run is recorded offline in {where}; `make sync` uploads it later.", flush=True)
    return run


def _without_records(error: Exception) -> Any:
    print(f"W&B: {_first_line(error)} Nothing is recorded there; result file and CSV are not concerned.", flush=True)
    return wandb.init(mode="disabled")


def _first_line(error: Exception) -> str:
    return f"{(str(error).strip() or type(error).__name__).splitlines()[0].rstrip('.')}."


class WandbLogger(loggers.WandbLogger):
    """Lightning's logger, for runs that must go on without W&B and whose records must outlive them.

    Args:
        root: folder of the run.
        result: its result file, RESULTS/EXPERIMENT/GROUP/ROW/seedK.json, which names and groups it; or None.
        is_resumed: whether it goes on from a checkpoint: then under the id of the first attempt.
        cell: "lstm" or "gru", for the tags.
    """

    def __init__(self, root: Path, result: Path | None = None, is_resumed: bool = False, cell: str = "lstm") -> None:
        named: dict[str, Any] = {}
        if result:
            experiment, group, row = result.parts[-4:-1]
            scheme = row.removesuffix("_lstm").removesuffix("_gru")
            named = {
                "name": f"{row}-{result.stem}",
                "group": f"{experiment}/{group}",
                "job_type": row,
                "tags": list(dict.fromkeys([experiment, group, scheme, cell])),
            }
        self._id_file = root / ID_FILE
        known = is_resumed and self._id_file.is_file()
        super().__init__(
            project=PROJECT,
            save_dir=root,
            id=self._id_file.read_text().strip() if known else os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8],
            **named,
        )
        del self._wandb_init["anonymous"]  # of which wandb would say that it has no effect
        self._is_fitted = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started by the first use."""
        if self._experiment is None:
            Path(self._wandb_init["dir"]).mkdir(parents=True, exist_ok=True)
            self._experiment = start(**self._wandb_init)
            self._id_file.write_text(f"{self._id}\n")
            self._experiment.define_metric("trainer/global_step")
            self._experiment.define_metric("epoch")
            self._experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
            for errors in ("train_*", "valid_*", "test_*"):
                self._experiment.define_metric(errors, step_metric="epoch", summary="min,last")
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log them, with epochs from 1, as in result files."""
        shift = 0 if self._is_fitted else 1  # after training, Lightning's number is that of finished epochs
        super().log_metrics({k: v + shift if k == "epoch" else v for k, v in metrics.items()}, step)

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
    def log_result(self, result: Path, checkpoint: Path, alias: str, corpus: tuple[str, dict[str, str]] | None) -> None:
        """Log the result file and the tested checkpoint as artifacts, with the corpus that they come from.

        Args:
            result: file.
            checkpoint: file.
            alias: of the checkpoint, "best" or "last".
            corpus: its name, and the SHA-256 of its files, which are not uploaded; or None.
        """
        if self.experiment.disabled:
            return
        name = "-".join([*result.parts[-4:-1], result.stem])
        origin = {"corpus": corpus[0], "sha256": corpus[1]} if corpus else {}
        try:
            if corpus and not self.experiment.offline:  # W&B knows no used artifacts of an offline run
                used = wandb.Artifact(corpus[0], type="dataset", metadata=origin)
                with used.new_file("SHA256SUMS") as file:
                    file.writelines(f"{digest}  {path}\n" for path, digest in corpus[1].items())
                self.experiment.use_artifact(used)
            for kind, path, aliases in (("result", result, []), ("model", checkpoint, [alias])):
                artifact = wandb.Artifact(f"{name}-{kind}", type=kind, metadata=origin)
                artifact.add_file(str(path))
                self.experiment.log_artifact(artifact, aliases=["latest", *aliases])
        except (wandb.errors.Error, ValueError, OSError) as error:  # the result is there, whatever happens here
            print(
                f"W&B: {_first_line(error)} The result file and the checkpoint are not logged as artifacts.", flush=True
            )

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Nothing: the tested checkpoint is logged at the end."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run's records if it was interrupted, or what is buffered would be lost with the process."""
        self._is_fitted = True
        if status != "success" and self._experiment is not None:
            self._experiment.mark_preempting()
            self._experiment.finish(exit_code=1)


def default_loggers(root: Path, result: Path | None, is_resumed: bool, cell: str) -> list[Any]:
    """W&B and a CSV file, below the run's folder."""
    return [WandbLogger(root, result, is_resumed, cell), loggers.CSVLogger(root, name="csv")]
