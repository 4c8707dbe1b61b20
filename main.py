"""Command line: `python main.py {fit,validate,test,predict,reproduce,ablate} --config configs/...`.

Without --config, `main.py predict MODEL [FILE]` reads a text with a trained model: see `inference.predict`.
`main.py export CHECKPOINT FOLDER` saves one, and shares it: see `inference.export`.
A configuration below `configs` inherits every `common.yaml` of its folder and of the folders above.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import sys
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from experiments import print_any_text
from inference import export, predict
from training.checkpoints import LAST, PREVIOUS, checkpoints
from training.parser import COMMANDS, Parser, check_config, in_short
from training.recorder import Progress, options_that_count
from training.tracking import (
    FOLDER,
    LOCKS,
    LoggersOfARun,
    RunWandbLogger,
    default_loggers,
    hold,
    is_running,
    log_lost_epochs,
)
from training.trainer import Trainer, check_writable, provenance, write_atomically

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
CONFIGS = Path(__file__).resolve().parent / "configs"


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
        hold(folder)
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


def with_inherited_configs(arguments: list[str]) -> list[str]:
    """Put `--config FOLDER/common.yaml` for every folder above before each `--config` below `configs`.

    And `--a=value --b=value` in place of `--a+b=value`, with which a sweep sets several options by one parameter.

    Raises:
        OSError: there is no such configuration; names those that are there.
        ValueError: it is not one, or the model is given a vocabulary of its own.
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
        path = Path(os.path.expanduser(value)).resolve()
        if path.is_dir():
            raise IsADirectoryError(f"--config {path} is a folder: name one of its files")
        if not path.is_file():
            there = ", ".join(sorted(f.name for f in path.parent.glob("*") if f.is_dir() or f.suffix == ".yaml"))
            raise FileNotFoundError(f"--config {path} does not exist; in {path.parent} there is: {there or 'nothing'}")
        folders = [folder for folder in reversed(path.parents) if folder == CONFIGS or CONFIGS in folder.parents]
        inherited = [folder / "common.yaml" for folder in folders if (folder / "common.yaml").exists()]
        for config in dict.fromkeys([*inherited, path]):
            check_config(config)
            expanded += ["--config", str(config)]
    return expanded


def main(arguments: list[str], trainer_class: type[Trainer] = Trainer) -> None:
    """Run one command; bad input ends it with one message and exit status 2."""
    try:
        if arguments[:1] == ["predict"] and not any(re.match("(--config|-c)($|=)", word) for word in arguments):
            predict.main(arguments[1:])
            return
        if arguments[:1] == ["export"]:
            export.main(arguments[1:])
            return
        sys.argv[1:] = with_inherited_configs(arguments)
        run(trainer_class)
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
            name: {"usage": f"main.py {name} --config configs/.../ROW.yaml [options]", "description": does}
            for name, does in COMMANDS.items()
        },
    )


if __name__ == "__main__":
    print_any_text()
    main(sys.argv[1:])
