"""A run from start to result file."""

from __future__ import annotations

import io
import json
import math
import os
import platform
import re
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Checkpoint,
    LearningRateFinder,
    StochasticWeightAveraging,
    Timer,
)

from datamodules.checks import check_count, check_number
from datamodules.rated_sequences import RatedSequences
from datamodules.streams import TokenStreams
from experiments.results import ablation_file, load_result
from experiments.settings import MC, settings
from inference.sharing import weights_sha256
from lightning_modules.language_model import LanguageModel
from lightning_modules.recurrent_module import RecurrentModule
from lightning_modules.sentiment_regressor import SentimentRegressor
from training.ablation import test_time_choices
from training.checkpoints import (
    LAST,
    BestCheckpoint,
    WholeFiles,
    add_to_checkpoint,
    find_checkpoint,
    read_checkpoint,
)
from training.recorder import Recorder, options_that_count, recorder_of, without_paths
from training.tracking import FOLDER, RunWandbLogger, hold, place

CODE = (
    "main.py",
    "pyproject.toml",
    "configs",
    "datamodules",
    "experiments",
    "lightning_modules",
    "training",
    "variational_rnn",
)
"""What a run depends on: uncommitted changes there make its provenance "dirty"."""

NOT_IN_A_RESULT = (BatchSizeFinder, LearningRateFinder, StochasticWeightAveraging)
"""Callbacks that do not train as the configuration says."""

RESULT = "--result; RESULTS=... for make"
"""How the folder of a result is chosen."""

PACKAGES = ("torch", "lightning", "torchmetrics", "datasets", "numpy")


class Trainer(L.Trainer):
    """Lightning's trainer with two more entry points, `reproduce` and `ablate`.

    Args:
        args: those of Lightning's Trainer.
        tested_weights: which weights `reproduce` tests: those of the "last" epoch, or of the epoch with the "best"
            validation.
        checkpoint_minutes: after which a run is saved within an epoch, too.
        kwargs: those of Lightning's Trainer.

    Raises:
        ValueError: a number is out of range, devices is malformed, or a plugin would write the checkpoints.
    """

    run_config: dict[str, Any] = {}  # noqa: RUF012 -- set for each run by main.py
    """The resolved configuration, for the result file."""

    goes_on = False
    """Whether the same command, started again, goes on from the last checkpoint."""

    def __init__(
        self,
        *args: Any,
        tested_weights: Literal["last", "best"] = "last",
        checkpoint_minutes: float = 10.0,
        **kwargs: Any,
    ) -> None:
        check_number(0, checkpoint_minutes=checkpoint_minutes, gradient_clip_val=kwargs.get("gradient_clip_val") or 0)
        check_count(1, accumulate_grad_batches=kwargs.get("accumulate_grad_batches", 1))
        callbacks = _listed(kwargs.get("callbacks") or [])
        if not any(isinstance(callback, Recorder) for callback in callbacks):
            callbacks = [Recorder(), *callbacks]  # its records are then in the checkpoints of those after it
        kwargs["callbacks"] = callbacks
        try:
            super().__init__(*args, **kwargs)
        except (TypeError, ValueError) as error:
            devices = kwargs.get("devices", "auto")
            if devices == "auto" or not re.search("`devices`|invalid literal for int", str(error)):
                raise
            raise ValueError(
                "trainer.devices must be auto, a number of processes, or on GPUs their numbers, such as 0,2; "
                f"got {devices}"
            ) from error
        if any(isinstance(plugin, CheckpointIO) for plugin in _listed(kwargs.get("plugins"))):
            raise ValueError("trainer.plugins must not have a CheckpointIO: the trainer has a crash-safe one")
        self.tested_weights = tested_weights
        self.checkpoint_minutes = checkpoint_minutes
        self.strategy.checkpoint_io = WholeFiles()
        environment = self._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment):
            environment.auto_requeue = False  # it would save in the middle of a step; LastCheckpoint does at its end

    @property
    def recorder(self) -> Recorder:
        """What the run records about itself."""
        return recorder_of(self)

    @property
    def checkpoint_callbacks(self) -> list[Checkpoint]:
        """Those that save checkpoints, which the recorder does not."""
        return [callback for callback in super().checkpoint_callbacks if not isinstance(callback, Recorder)]

    def reproduce(
        self,
        model: RecurrentModule,
        datamodule: L.LightningDataModule,
        result: Path,
        epochs: int | None = None,
    ) -> None:
        """Train, test, and write the result file. An interrupted run goes on from its last checkpoint that is whole.

        Args:
            model: to be trained.
            datamodule: the data.
            result: the file to write, RESULTS/EXPERIMENT/GROUP/ROW/seedK.json.
            epochs: stop after this many epochs of the schedule that trainer.max_epochs defines.

        Raises:
            ValueError: epochs is less than 1, an option of the trainer leaves out a part of the run, result has another
                form, another process is at this run, or all its checkpoints are damaged.
            OSError: result cannot be written.
        """
        if epochs is not None:
            check_count(1, epochs=epochs)
        self._check_is_whole()
        result = Path(os.path.expanduser(result))
        experiment, group, row, seed = place(result)
        self._check_seed(result, seed)
        if self.is_global_zero:
            check_writable(result, RESULT)
            hold(Path(self.default_root_dir))
        recorder = self.recorder
        recorder.provenance = [provenance(self.strategy.root_device, self.world_size)]
        recorder.options = options_that_count(self.run_config) | {"seed": seed}
        self.goes_on = True
        planned_epochs = self.max_epochs or 0
        self.fit_loop.max_epochs = min(epochs or planned_epochs, planned_epochs)
        [checkpoints] = [callback for callback in self.checkpoint_callbacks if isinstance(callback, BestCheckpoint)]
        folder = Path(checkpoints.dirpath or "")
        last = find_checkpoint(folder)
        recorder.name = f"{experiment}/{group}/{row} seed {seed}"
        hardware = recorder.provenance[0]["hardware"]
        parameters = sum(p.numel() for p in model.parameters())
        if result.exists() and not last:
            self.print(f"{result} will be replaced: there is no checkpoint {folder / LAST} to go on from")
        self.print(
            f"{recorder.name}: {self.max_epochs} of {planned_epochs} epochs, {parameters / 1e6:.2f}M parameters, "
            f"on {hardware['gpu'] or hardware['cpu']}, "
            + (f"resumed from {last}" if last else f"checkpoints and logs in {self.default_root_dir}")
        )
        self.fit(model, datamodule=datamodule, ckpt_path=last)

        curve, attempts = recorder.curve, recorder.provenance
        best = None
        if self.tested_weights == "best":
            best = checkpoints.best_model_path
            if not Path(best).is_file():
                raise FileNotFoundError(
                    f"the checkpoint of the best epoch, {best!r}, is not there: it cannot be tested"
                )
        test_start = time.perf_counter()
        parts = self.test(model, datamodule=datamodule, ckpt_path=best, verbose=False)  # one for each loader
        test_metrics = {name: value for part in parts for name, value in part.items()}
        test_seconds = time.perf_counter() - test_start
        tested_epoch = (read_checkpoint(Path(best))["curve"] if best else curve)[-1]

        values = "  ".join(f"{metric} {value:.5g}" for metric, value in test_metrics.items())
        self.print(f"{recorder.name}  tested after epoch {tested_epoch['epoch']:.0f}  {values}")
        if not self.is_global_zero:
            return
        if isinstance(model, SentimentRegressor) and model.noise:
            add_to_checkpoint(Path(best or folder / LAST), {"noise": model.noise})
        report = {
            "experiment": experiment,
            "group": group,
            "row": row,
            "seed": seed,
            "epochs": len(curve),
            "planned_epochs": planned_epochs,
            "tested_epoch": tested_epoch["epoch"],
            "parameters": parameters,
            "metrics": _finite({k: v for k, v in tested_epoch.items() if k != "epoch"} | test_metrics),
            "curve": [_finite(entry) for entry in curve],
            "config": without_paths(self.run_config),
            "provenance": attempts[0]
            | _corpus(datamodule)
            | {
                "weights_sha256": weights_sha256(model),
                "wall_time_s": sum(entry["seconds"] for entry in curve) + test_seconds,
                "resumed": attempts[1:],
            },
        }
        write_atomically(result, json.dumps(report, indent=2) + "\n")
        self.print(f"wrote {result}")
        for logger in self.loggers:
            if isinstance(logger, RunWandbLogger):
                saved = {"best": Path(checkpoints.best_model_path), "last": folder / LAST}
                logger.log_result(result, {name: file for name, file in saved.items() if file.is_file()})

    def _check_is_whole(self) -> None:
        """Refuse options that leave out epochs or data, or that train differently from what a result would say."""
        trainer: Any = self
        if self.max_epochs is None or self.max_epochs < 1:
            raise ValueError(f"reproduce needs a number of epochs: trainer.max_epochs is {self.max_epochs}")
        needed = {
            "fast_dev_run": (trainer.fast_dev_run, False),
            "max_steps": (self.max_steps, -1),
            "overfit_batches": (trainer.overfit_batches or 0.0, 0.0),
            "val_check_interval": (self.val_check_interval, 1.0),
            "check_val_every_n_epoch": (self.check_val_every_n_epoch, 1),
            "limit_val_batches": (self.limit_val_batches, 1.0),
            "limit_test_batches": (self.limit_test_batches, 1.0),
        }
        for name, (value, whole) in needed.items():
            if str(value) != str(whole):  # 1 is one batch, 1.0 are all
                raise ValueError(
                    f"trainer.{name} must be {whole} for reproduce, got {value}: a result is of whole epochs, each "
                    "with its validation, and of the whole test. Use fit for a trial, and epochs for a shorter run."
                )
        if not any(isinstance(callback, BestCheckpoint) for callback in self.checkpoint_callbacks):
            raise ValueError("reproduce writes checkpoints: leave out trainer.enable_checkpointing and barebones")
        if any(isinstance(callback, Timer) for callback in trainer.callbacks):
            raise ValueError("reproduce cannot stop in mid-epoch: leave out trainer.max_time and the callback Timer")
        if changed := [name for name in ("optimizer", "lr_scheduler") if self.run_config.get(name)]:
            raise ValueError(f"--{changed[0]} is not for reproduce, whose models have their own: use fit")
        if others := [type(c).__name__ for c in trainer.callbacks if isinstance(c, NOT_IN_A_RESULT)]:
            raise ValueError(
                f"the callback {others[0]} is not for reproduce: the configuration in a result would not say how it "
                "was trained, and the run could not be resumed. Use fit."
            )

    def _check_seed(self, result: Path, seed: int) -> None:
        if self.run_config.get("seed_everything", seed) != seed:
            raise ValueError(
                f"{result} is for seed {seed}, but seed_everything is {self.run_config['seed_everything']}"
            )

    def ablate(self, model: RecurrentModule, datamodule: L.LightningDataModule, ckpt_path: str, result: Path) -> None:
        """Evaluate a finished language model by every choice of `test_time_choices`; ablation_seedK.json has them.

        Args:
            model: whose options say how many networks are sampled, and how.
            datamodule: the data.
            ckpt_path: the weights that were tested.
            result: the file of the finished run, .../ROW/seedK.json, beside which is written.

        Raises:
            ValueError: it is no language model, the checkpoint is not of the tested epoch of that run, the options or
                the seed are not the run's, or there are several processes.
            OSError: a file cannot be read or written.
        """
        if not isinstance(model, LanguageModel) or not isinstance(datamodule, TokenStreams):
            raise ValueError(f"ablate is for language models, not for a {type(model).__name__}")
        if self.world_size > 1:
            raise ValueError(f"ablate runs on one device, got {self.world_size} processes: use --trainer.devices 1")
        if not result.is_file():
            raise FileNotFoundError(f"{result} is not there: an ablation is of a finished run; run it first")
        run = load_result(result)
        self._check_seed(result, run.seed)
        options = {name: value for name, value in settings(self.run_config).items() if name not in (*MC, "precision")}
        if changed := [
            f"{name}: {run.settings[name]} in {result.name}, {value} here"
            for name, value in options.items()
            if name in run.settings and run.settings[name] != value
        ]:
            raise ValueError(
                f"{result} is of a run with other options ({'; '.join(changed)}): use the configuration of that run"
            )
        output = ablation_file(run)
        check_writable(output, RESULT)
        datamodule.prepare_data()
        datamodule.setup()
        model.reader = datamodule.reader
        checkpoint = read_checkpoint(Path(ckpt_path))
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        curve, attempts = checkpoint["curve"], checkpoint["provenance"]
        started = [origin["date"] for origin in attempts[:1]]
        if (len(curve), started) != (run.tested_epoch, [run.provenance["date"]]):
            raise ValueError(
                f"{ckpt_path} is after epoch {len(curve)} of a run begun {', '.join(started) or 'elsewhere'}, "
                f"but {result} was tested after epoch {run.tested_epoch} of one begun {run.provenance['date']}: "
                "name the checkpoint that was tested"
            )
        device = self.strategy.root_device
        origin = provenance(device, 1)
        samples = f"{model.mc_samples} sampled networks" if model.mc_samples else "no sampled networks (mc_samples)"
        self.print(f"{ckpt_path}, validation and test text by the approximation and {samples}")
        start = time.perf_counter()
        choices = test_time_choices(model.to(device), datamodule)
        for choice in choices:
            mean = " ".join(str(choice[key]) for key in ("mean", "masks", "samples") if choice[key])
            self.print(
                f"{mean}  test_ppl {choice['test_ppl']:.2f}, {choice['test_ppl_tempered']:.2f} at the temperature "
                f"{choice['temperature']:g}"
            )
        report = {
            "tested_epoch": run.tested_epoch,
            "choices": choices,
            "config": without_paths(self.run_config),
            "provenance": origin
            | _corpus(datamodule)
            | {
                "wall_time_s": time.perf_counter() - start,
                "run": attempts,
                "weights_sha256": weights_sha256(model),
            },
        }
        write_atomically(output, json.dumps(report, indent=2) + "\n")
        self.print(f"wrote {output}")

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Lightning's predict, which also writes predictions.pt below default_root_dir.

        The file holds a dictionary: `predictions` of each batch of the test data, those of the `validation` data if
        they are predicted too, `seed`, `mc_samples`, the `epoch` after which the weights were saved, `config`, and
        `provenance`: where the predictions were made, where the run was trained, and SHA-256 of weights and corpus.

        Raises:
            OSError: that file cannot be written.
            ValueError: ratings would be predicted by several processes, each of which has a part of them.
        """
        file = Path(self.default_root_dir) / "predictions.pt"
        check_writable(file, FOLDER)
        datamodule = kwargs.get("datamodule")
        if isinstance(datamodule, RatedSequences) and self.world_size > 1:
            raise ValueError(f"predict runs on one device, got {self.world_size} processes: use --trainer.devices 1")
        predictions = super().predict(*args, **kwargs)
        if predictions is not None and self.is_global_zero:
            model: Any = self.lightning_module
            checkpoint = read_checkpoint(Path(kwargs["ckpt_path"]), mmap=True) if kwargs.get("ckpt_path") else {}
            test, *validation = predictions if predictions and isinstance(predictions[0], list) else [predictions]
            content = {
                "predictions": test,
                **({"validation": validation[0]} if validation else {}),
                "seed": self.run_config.get("seed_everything"),
                "mc_samples": model.mc_samples,
                "epoch": len(checkpoint.get("curve", ())),
                "config": without_paths(self.run_config),
                "provenance": provenance(self.strategy.root_device, self.world_size)
                | _corpus(datamodule)
                | {"run": checkpoint.get("provenance", []), "weights_sha256": weights_sha256(model)},
            }
            buffer = io.BytesIO()
            torch.save(content, buffer)
            write_atomically(file, buffer.getvalue())
            self.print(f"wrote {file}, a dictionary whose 'predictions' are those of each batch")
        return predictions

    def print(self, *values: object) -> None:
        """Print on the first process only."""
        if self.is_global_zero:
            print(*values, flush=True)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """JSON has no nan and no infinity: a diverged value is null."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _corpus(datamodule: Any) -> dict[str, Any]:
    """Name of the corpus and SHA-256 of its files, where the data module knows them."""
    corpus = getattr(datamodule, "corpus", None)
    return {"corpus": {"name": corpus[0], "sha256": corpus[1]}} if corpus else {}


def provenance(device: torch.device, devices: int) -> dict[str, Any]:
    """What a result must say about where it came from: commit, time, hardware, versions.

    Args:
        device: what the run computes on.
        devices: how many of them.
    """
    status = _git("status", "--porcelain", "--", *CODE)
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": {"cuda": torch.cuda.get_device_name, "mps": lambda: "Apple GPU"}.get(device.type, lambda: None)(),
            "devices": devices,
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def check_writable(path: Path, option: str) -> None:
    """Find out before hours of work whether a file can be written.

    Args:
        path: of the file.
        option: by which its folder is chosen, for the message.

    Raises:
        OSError: it cannot.
    """
    there = next(folder for folder in path.absolute().parents if os.path.exists(folder))  # Path.exists may raise
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise OSError(
            f"{path} cannot be written, since no file can be made in {there} ({error.strerror}): "
            f"choose another folder ({option})"
        ) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either there as a whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".part{os.getpid()}")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error}): make room there, then start the same again") from error
    finally:
        part.unlink(missing_ok=True)
