"""How a run runs: command line, trainer, checkpoints, tracking, result file."""
