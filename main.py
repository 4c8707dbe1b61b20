"""Command line: `python main.py {fit,validate,test,predict,reproduce,ablate} --config ptb/medium/zaremba`.

`--config` takes a row of `configs`, EXPERIMENT/GROUP/ROW, or a file; `main.py config ROW` prints a row's options.
Without --config, `main.py predict MODEL [FILE]` reads a text with a trained model (`inference.predict`).
`main.py export CHECKPOINT FOLDER` saves a trained model, and shares it (`inference.export`).
"""

import re
import sys
from typing import Any

from experiments import print_any_text
from experiments.catalogue import merged_config
from training.commands import HELP


def main(arguments: list[str], trainer_class: type[Any] | None = None) -> None:
    """Run one command; bad input ends it with one message and exit status 2."""
    if arguments in (["--help"], ["-h"]):
        print(HELP, end="")
        return
    from training import cli  # here, since it takes seconds to load

    with cli.one_message_for_bad_input():
        match arguments:
            case ["config", *names]:
                if len(names) != 1:
                    raise ValueError("main.py config takes one row, such as: main.py config ptb/small/zaremba")
                print(merged_config(names[0]), end="")
            case ["export", *options]:
                from inference import export

                export.main(options)
            case ["predict", *options] if not any(re.match("(--config|-c)($|=)", word) for word in options):
                from inference import predict

                predict.main(options)
            case _:
                cli.main(arguments, trainer_class or cli.Trainer)


if __name__ == "__main__":
    print_any_text()
    main(sys.argv[1:])
