"""A run that takes a second, on the fixture `tiny_treebank`."""

from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SMALL = ["--config", str(CONFIGS / "ptb/small/variational_tied.yaml")]


def tiny_run(tmp_path: Path, *more: str, logger: tuple[str, ...] = ("--trainer.logger", "false")) -> list[str]:
    return [
        *SMALL,
        *("--data.init_args.data_dir", str(tmp_path / "data")),
        *("--data.init_args.vocab_size", "12"),
        *("--data.init_args.batch_size", "2"),
        *("--data.init_args.window", "5"),
        *("--model.init_args.hidden_size", "6"),
        *("--model.init_args.mc_samples", "3"),
        *("--trainer.default_root_dir", str(tmp_path / "run")),
        *logger,
        *("--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false"),
        *("--trainer.enable_model_summary", "false"),
        *more,
    ]
