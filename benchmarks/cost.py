"""What training runs will take on this machine, before they start.

`python -m benchmarks.cost "reproduce --config ptb/small/zaremba ..." ...` with the arguments of main.py
for each run: what `make cost` does, and, where there is no GPU, `make reproduce-ptb` before it starts.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from datamodules.streams import TokenStreams
from experiments import print_any_text
from lightning_modules import LanguageModel
from lightning_modules.loading import read_checkpoint
from lightning_modules.optim import DecoupledSGD
from main import main
from training.checkpoints import LAST
from training.recorder import duration
from training.trainer import Trainer

WARM_UP, STEPS = 3, 10


class MeasuringTrainer(Trainer):
    """A trainer whose `reproduce` measures a few steps and says what the run would take; it writes nothing."""

    seconds: list[float] = []  # noqa: RUF012 -- of all runs

    def reproduce(  # type: ignore[override]
        self, model: LanguageModel, datamodule: TokenStreams, result: Path, epochs: int | None = None
    ) -> None:
        """Print the time of one run: its epochs with validation, and its test with all MC samples."""
        planned = min(epochs or self.max_epochs or 0, self.max_epochs or 0)
        last = Path(self.default_root_dir) / "checkpoints" / LAST
        done = len(read_checkpoint(last, mmap=True)["curve"]) if last.exists() else 0
        datamodule.prepare_data()
        datamodule.setup("fit")
        model.to(self.strategy.root_device)

        windows = datamodule.train_dataloader()
        optimizer = DecoupledSGD(model.parameters(), lr=model.learning_rate, decay=model.weight_decay)

        def train(batch: Any) -> None:
            batch = self.strategy.batch_to_device(batch)
            with self.precision_plugin.forward_context():
                loss, _, _ = model.loss(*batch)
            loss.backward()
            model.configure_gradient_clipping(optimizer, self.gradient_clip_val)
            optimizer.step()
            optimizer.zero_grad()

        epoch = len(windows) * _seconds(train, windows, WARM_UP, STEPS)
        model.eval()
        with torch.inference_mode():
            for index, loader in enumerate(datamodule.val_dataloader()):
                validate = partial(self._evaluate, model.validation_step, index)
                epoch += len(loader) * _seconds(validate, loader, 1, 2)
            model.on_test_epoch_start()
            test = 0.0
            for index, loader in enumerate(datamodule.test_dataloader()):
                warm_up = 1 if model.mc_samples <= 100 else 0  # a window of 1000 samples can take half a minute
                test += len(loader) * _seconds(partial(self._evaluate, model.test_step, index), loader, warm_up, 1)
        left = max(0, planned - done)
        total = left * epoch + test
        MeasuringTrainer.seconds.append(total)
        name = "/".join(result.with_suffix("").parts[-3:])
        advice = ""
        if test > left * epoch and model.mc_samples > 20:
            advice = f' with {model.mc_samples} samples; ARGS="--model.mc_samples 20" takes fewer'
        print(
            f"{name:<36} about {duration(total):>11}: {left} epoch{'s' * (left != 1)} of {duration(epoch)}, "
            f"test {duration(test)}{advice}",
            flush=True,
        )

    def _evaluate(self, step: Callable[[Any, int, int], None], loader: int, batch: Any) -> None:
        with self.precision_plugin.forward_context():
            step(self.strategy.batch_to_device(batch), 1, loader)


def _seconds(step: Callable[[Any], None], batches: Iterable[Any], warm_up: int, steps: int) -> float:
    """Mean time of a step, the first ones left out."""
    some = list(islice(cycle(batches), warm_up + steps))
    for batch in some[:warm_up]:
        step(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for batch in some[warm_up:]:
        step(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


if __name__ == "__main__":
    print_any_text()
    threads = torch.get_num_threads()
    print(f"What is about to run will take, by a few steps of each, on {threads} thread{'s' * (threads != 1)}:")
    commands = sys.argv[1:]
    for command in commands:
        main([*shlex.split(command), "--trainer.logger", "false"], MeasuringTrainer)  # which sets sys.argv
    if len(commands) > 1:
        print(f"{'together':<36} about {duration(sum(MeasuringTrainer.seconds)):>11}")
