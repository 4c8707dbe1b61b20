"""The commands of main.py, and its help, which needs no torch."""

COMMANDS = {
    "fit": "Train a model.",
    "reproduce": "Train, test, and write the result file (--result); started again, an interrupted run goes on.",
    "validate": "Evaluate a checkpoint (--ckpt_path) on the validation data.",
    "test": "Evaluate a checkpoint (--ckpt_path) on the test data.",
    "predict": "Predict the test data by a checkpoint (--ckpt_path), into predictions.pt in the run's folder.",
    "ablate": "Evaluate a finished language model (--ckpt_path, --result) by every choice at test time.",
}
"""Those that need a configuration, and what they do."""

WITHOUT_CONFIG = {
    "predict MODEL [FILE]": "Say what a trained model makes of a text.",
    "export CHECKPOINT FOLDER": "Save a trained model to be shared.",
    "config ROW": "Print the configuration of a row.",
}
"""Those that need none, and what they do."""

HELP = """usage: main.py COMMAND --config ROW_OR_FILE [options]

Train and test the models of the paper: `make demo`, or for one of its runs `main.py reproduce
--config demo/sentiment/variational --result results/demo/sentiment/variational/seed0.json`.
A configuration is a row of configs/, EXPERIMENT/GROUP/ROW, or a YAML file.

Commands with a configuration (`main.py COMMAND --config ROW_OR_FILE --help` lists their options):
{}

Commands without one (`main.py predict --help`, `main.py export --help`):
{}

The guide is docs/guide.md.
""".format(*("\n".join(f"  {name:<26}{does}" for name, does in part.items()) for part in (COMMANDS, WITHOUT_CONFIG)))

CHOICE = f"choose {', '.join(COMMANDS)} with --config, or {' or '.join(WITHOUT_CONFIG)}"
