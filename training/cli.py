"""The command line of training, on top of LightningCLI: rows as configurations, callbacks, loggers, exit codes."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from experiments.catalogue import CONFIGS, merged_config
from experiments.files import LOCKS, check_writable, is_running, lock_run_folder, write_atomically
from training.checkpoints import LAST, PREVIOUS, checkpoints
from training.commands import COMMANDS
from training.parser import Parser, check_config, in_short
from training.provenance import provenance
from training.recorder import Progress, options_that_count
from training.tracking import (
    FOLDER,
    LoggersOfARun,
    RunWandbLogger,
    default_loggers,
    log_lost_epochs,
)
from training.trainer import Trainer

# Device lists and advertisements (a run says what it runs on), and a warning about Lightning's own use of torch.
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*LeafSpec.*")
warnings.filterwarnings("ignore", message=".*sync_dist=True")  # what is logged was reduced by torchmetrics
warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # a resumed run
warnings.filterwarnings("ignore", message="The `srun` command is available")  # and meant not to be used
warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")  # TrainingLoader asks for its place

# The experiments are in fp32. cuDNN's recurrent kernels would take TF32 instead.
torch.backends.cudnn.allow_tf32 = False

BAD_INPUT = (ValueError, OSError, MisconfigurationException, ModuleNotFoundError, UnpicklingError)


class SaveRunConfig(SaveConfigCallback):
    """Write the resolved configuration into the run's folder, and log it to every logger, once training can start."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """See that the data can be served, which Lightning does late; the checkpoint is not checked yet."""
        if stage == "fit":
            trainer.datamodule.train_dataloader()
            trainer.datamodule.val_dataloader()

    @rank_zero_only
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Data and checkpoint are in order."""
        folder = Path(trainer.default_root_dir)
        lock_run_folder(folder)
        here = provenance(trainer.strategy.root_device, trainer.world_size)
        for logger in trainer.loggers:
            if isinstance(logger, RunWandbLogger):
                logger.log_run(trainer.run_config, pl_module, (trainer.recorder.provenance or [here])[-1])
            else:
                logger.log_hyperparams({"config": trainer.run_config})
        write_atomically(folder / "config.yaml", yaml.safe_dump(trainer.run_config, sort_keys=False))

    @rank_zero_only
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Log the epochs again whose records were lost with a killed process."""
        log_lost_epochs(Path(trainer.default_root_dir), trainer, trainer.recorder.curve)


class CommandLine(LightningCLI):
    """LightningCLI with the subcommand `reproduce`, and with W&B, a CSV file and checkpoints unless told otherwise."""

    trainer: Any

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, without their option to execute what is in a checkpoint, and those of our trainer."""
        of_lightning = {name: skipped | {"weights_only"} for name, skipped in LightningCLI.subcommands().items()}
        return of_lightning | {name: {"model", "datamodule"} for name in ("reproduce", "ablate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The vocabulary is the data's."""
        parser.link_arguments("data.init_args.vocab_size", "model.init_args.vocab_size")
        # A W&B agent gives each run of a sweep an id.
        parser.set_defaults({"trainer.default_root_dir": f"runs/{os.environ.get('WANDB_RUN_ID', 'unnamed')}"})

    def before_instantiate_classes(self) -> None:
        """Expand `~` in ckpt_path; refuse to make a model without data, which set its vocabulary."""
        config = self.config[self.subcommand]
        if config.get("ckpt_path"):
            config.ckpt_path = os.path.expanduser(config.ckpt_path)
        if not config.data:
            raise ValueError("there is no data: name some by --data, or by `data:` in a --config (docs/guide.md)")

    def before_fit(self) -> None:
        """Let a checkpoint be compared with the options given here."""
        self._check_ckpt_path()
        self.trainer.recorder.options = options_that_count(self.trainer.run_config)

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it is: Lightning would put the checkpoint's hyper-parameters over it, unasked."""

    def before_test(self) -> None:
        """Refuse to evaluate weights that were never trained."""
        if not self.config[self.subcommand].ckpt_path:
            raise ValueError(f"{self.subcommand} needs --ckpt_path: without a checkpoint the weights are untrained")
        self._check_ckpt_path()

    before_validate = before_predict = before_ablate = before_test

    def _check_ckpt_path(self) -> None:
        path = self.config[self.subcommand].ckpt_path
        if path and path not in ("best", "last") and not Path(path).is_file():
            raise FileNotFoundError(f"--ckpt_path {path} is no file: name one, such as RUN/checkpoints/last.ckpt")

    def _run_subcommand(self, subcommand: str) -> None:
        """Do what it says; leave no folder that was made for a run which was refused before its first step."""
        root = Path(self.trainer.default_root_dir)
        try:
            super()._run_subcommand(subcommand)
        except BAD_INPUT:
            # It may have been made by another process since, which holds it; and a test has metrics without a step.
            is_own = root in self.missing and (root in LOCKS or not is_running(root))
            is_empty = not (self.trainer.global_step or self.trainer.callback_metrics)
            if self.trainer.is_global_zero and is_own and is_empty:
                shutil.rmtree(root, ignore_errors=True)
                for folder in self.missing[1:]:  # above
                    if folder.is_dir() and not any(folder.iterdir()):
                        folder.rmdir()
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the progress bar, checkpoints and loggers, all below trainer.default_root_dir."""
        self.model.check_data(self.datamodule)
        config = self.config[self.subcommand]
        root = Path(os.path.normpath(os.path.expanduser(config.trainer.default_root_dir)))  # the trainer's
        is_logged = config.trainer.logger in (None, True) and not config.trainer.barebones
        if self.subcommand in ("fit", "reproduce"):
            for name in ("max_epochs", "max_steps", "limit_train_batches"):
                if config.trainer[name] == 0:
                    raise ValueError(
                        f"trainer.{name} must be more than 0, got {config.trainer[name]}: it trains nothing"
                    )
            check_writable(root / "checkpoints" / LAST, FOLDER)
        elif is_logged:
            check_writable(root / "csv" / "metrics.csv", FOLDER)
        self.missing = [folder for folder in (root, *root.parents) if not folder.exists()]
        given = self.config_init[self.subcommand].trainer.callbacks or []
        callbacks = [*given] if isinstance(given, list) else [given]
        has_progress_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if config.trainer.enable_progress_bar is not False and not config.trainer.barebones and not has_progress_bar:
            callbacks.append(Progress())
        if config.trainer.enable_checkpointing is not False and not config.trainer.barebones:
            callbacks += checkpoints(root / "checkpoints", self.model.monitor)
        kwargs["callbacks"] = callbacks
        if is_logged:
            is_begun = any((root / "checkpoints" / name).is_file() for name in (LAST, PREVIOUS))
            if self.subcommand == "fit":
                is_new = is_begun and not config.get("ckpt_path")
            else:
                is_new = self.subcommand == "reproduce" and not is_begun and config.result.is_file()
            cell = config.model.init_args.get("cell", "lstm")
            loggers = default_loggers(root, config.get("result"), str(self.subcommand), is_new, cell)
            callbacks.insert(0, LoggersOfARun(loggers))
            kwargs["logger"] = False
        trainer: Any = super().instantiate_trainer(**kwargs)
        trainer.run_config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))[self.subcommand]
        return trainer


def with_rows(arguments: list[str]) -> list[str]:
    """Put the configuration of a row in place of its name in `--config EXPERIMENT/GROUP/ROW`, and check files.

    And `--a=value --b=value` in place of `--a+b=value`, with which a sweep sets several options by one parameter.

    Raises:
        OSError: there is neither such a file nor such a row; names rows like it.
        ValueError: the file is no configuration of a run, or the model is given a vocabulary of its own.
    """
    if any(word.startswith(("--model.vocab_size", "--model.init_args.vocab_size")) for word in arguments):
        raise ValueError("the model's vocab_size follows the data's: set --data.init_args.vocab_size")
    expanded = []
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if equals and re.fullmatch(r"--[\w.]+(\+[\w.]+)+", option):
            expanded += [f"--{name}={value}" for name in option[2:].split("+")]
            continue
        value = value if equals else next(words, "") if option in ("--config", "-c") else ""
        if option not in ("--config", "-c") or not value:
            expanded.append(word)
            continue
        expanded += ["--config", _configuration(value)]
    return expanded


def _configuration(name: str) -> str:
    """The path of a configuration file, or the configuration of a row."""
    if "\n" in name:  # it is one already: the further processes of a run get the arguments of the first
        return name
    path = Path(os.path.expanduser(name)).resolve()
    if path.is_dir():
        raise IsADirectoryError(
            f"--config {path} is a folder: name one of its files, or a row such as ptb/small/zaremba"
        )
    if path.is_file():
        if CONFIGS in path.parents:
            group = path.relative_to(CONFIGS).with_suffix("")
            raise ValueError(f"--config {path} is a table: name one of its rows, --config {group}/ROW")
        check_config(path)
        return str(path)
    try:
        return merged_config(name)
    except ValueError as error:
        raise FileNotFoundError(f"--config {name} is no file, and {error}") from error


@contextmanager
def one_message_for_bad_input() -> Iterator[None]:
    """End the process on bad input with one message and status 2, and on SIGTERM with 128 plus its number."""
    try:
        yield
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)  # Lightning would end with status 0, as if the run had finished
    except RuntimeError as error:
        if "TRACEBACK" in os.environ or not re.search("(?is)(gloo|nccl).*(clos|reset|refus|time|abort)", str(error)):
            raise
        print(
            f"error: another process of this run has ended, or cannot be reached ({str(error).splitlines()[0]}): "
            "start the same command again, it goes on from the last checkpoint",
            file=sys.stderr,
        )
        sys.exit(1)
    except BAD_INPUT as error:
        if "TRACEBACK" in os.environ:
            raise
        print(f"error: {in_short(str(error))}\n(TRACEBACK=1 shows where it was raised)", file=sys.stderr)
        sys.exit(2)


def main(arguments: list[str], trainer_class: type[Trainer] = Trainer) -> None:
    """Run a command that takes a configuration."""
    sys.argv[1:] = with_rows(arguments)
    run(trainer_class)


def run(trainer_class: type[Trainer]) -> None:
    """Read the command line and do what it says."""
    CommandLine(
        trainer_class=trainer_class,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_callback=SaveRunConfig,
        parser_class=Parser,
        parser_kwargs={
            name: {"usage": f"main.py {name} --config ROW_OR_FILE [options]", "description": does}
            for name, does in COMMANDS.items()
        },
    )
