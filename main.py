"""Command line: `python main.py {fit,validate,test,predict,reproduce} --config configs/...`.

A configuration below `configs` inherits every `common.yaml` of its folder and of the folders above.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import wandb
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_modules.progress import Progress
from lightning_modules.trainer import Trainer

CONFIGS = Path(__file__).resolve().parent / "configs"


class SaveRunConfig(SaveConfigCallback):
    """Write the resolved configuration into the run's folder, and log it to every logger."""

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Called once, on the first process."""
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": trainer.run_config})
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(trainer.run_config, sort_keys=False))


class CommandLine(LightningCLI):
    """LightningCLI with the subcommand `reproduce`, and with W&B, a CSV file and checkpoints unless told otherwise."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, and `reproduce`."""
        return LightningCLI.subcommands() | {"reproduce": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The vocabulary is the data's."""
        parser.link_arguments("data.init_args.vocab_size", "model.init_args.vocab_size")
        parser.set_defaults({"trainer.default_root_dir": "runs/unnamed"})

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the progress bar, checkpoints and loggers, all below trainer.default_root_dir."""
        config = self.config[self.subcommand]
        root = Path(config.trainer.default_root_dir)
        callbacks = [*(self.config_init[self.subcommand].trainer.callbacks or []), Progress()]
        if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
            callbacks.append(
                ModelCheckpoint(
                    dirpath=root / "checkpoints",
                    filename="best",
                    monitor=self.model.monitor,
                    save_last=True,
                    save_on_train_epoch_end=True,
                    enable_version_counter=False,
                )
            )
        kwargs["callbacks"] = callbacks
        if config.trainer.logger in (None, True):
            kwargs["logger"] = default_loggers(root, config.get("result"))
        trainer = super().instantiate_trainer(**kwargs)
        trainer.run_config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[self.subcommand]
        return trainer


def default_loggers(root: Path, result: Path | None) -> list[WandbLogger | CSVLogger]:
    """W&B, offline if nobody is logged in, and a CSV file. Runs of one table are grouped by their result's folder."""
    root.mkdir(parents=True, exist_ok=True)
    mode = None
    if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False):
        mode = "offline"
        print("W&B: no account is logged in, so this run is recorded offline; `wandb login` changes that.")
    name, group = (f"{result.parts[-2]}-{result.stem}", "/".join(result.parts[-4:-2])) if result else (None, None)
    return [
        WandbLogger(project="variational-rnn", name=name, group=group, save_dir=root, mode=mode),
        CSVLogger(root, name="csv"),
    ]


def with_inherited_configs(arguments: list[str]) -> list[str]:
    """Put `--config FOLDER/common.yaml` for every folder above before each `--config` below `configs`."""
    expanded = []
    words = iter(arguments)
    for word in words:
        if not word.startswith("--config"):
            expanded.append(word)
            continue
        path = Path(word.removeprefix("--config=") if "=" in word else next(words, "")).resolve()
        folders = [folder for folder in reversed(path.parents) if folder == CONFIGS or CONFIGS in folder.parents]
        inherited = [folder / "common.yaml" for folder in folders if (folder / "common.yaml").exists()]
        for config in dict.fromkeys([*inherited, path]):
            expanded += ["--config", str(config)]
    return expanded


def main(arguments: list[str]) -> None:
    """Run one command."""
    sys.argv[1:] = with_inherited_configs(arguments)
    CommandLine(
        trainer_class=Trainer,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_callback=SaveRunConfig,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
