"""Words/s of data-parallel training on one and two processes, and the bytes that the processes exchange.

`make bench-scaling` measures on this machine's cores. Settings take turns, each in its own processes; medians count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch

from benchmarks.speed import FOLDER, STEPS, STREAMS, VOCABULARY, _markdown, origin, write_into
from datamodules.streams import TokenStreams
from experiments import print_any_text
from experiments.files import write_atomically
from lightning_modules.language_model import LanguageModel
from training.provenance import provenance
from training.trainer import Trainer

OUTPUT = FOLDER / "results" / "scaling.json"
SIZES = ("small", "medium")
WARM_UP = 3  # steps


class Setting(NamedTuple):
    """Processes, threads of each, and the batch of all together."""

    processes: int
    threads: int
    batch_size: int


SETTINGS = {
    "1 process, 1 thread": Setting(1, 1, STREAMS),
    "1 process, 2 threads": Setting(1, 2, STREAMS),
    "2 processes, the same batch": Setting(2, 1, STREAMS),
    "2 processes, the same batch each": Setting(2, 1, 2 * STREAMS),
}

PROCESSES = (2, 8, 16)


class RandomStreams(TokenStreams):
    """Random words for a number of training windows."""

    def __init__(self, batch_size: int, window: int, windows: int) -> None:
        super().__init__(batch_size, window)
        self.sizes = {"train": batch_size * (windows * window + 1), "validation": batch_size * (window + 1)}

    def build(self) -> None:
        """Draw the words."""
        self.ids = {split: torch.randint(VOCABULARY, (size,)) for split, size in self.sizes.items()}


class Clock(L.Callback):
    """Measure the steps after the warm-up."""

    seconds = 0.0
    steps = 0

    def on_train_batch_end(self, trainer: Any, model: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        """Start the clock at the end of the warm-up, and read it after every step."""
        if batch_index == WARM_UP - 1:
            self._start = time.perf_counter()
        self.steps = batch_index + 1 - WARM_UP
        self.seconds = time.perf_counter() - self._start if self.steps > 0 else 0.0


def work(size: str, setting: Setting, steps: int, output: Path) -> None:
    """Train in this process and in those that Lightning starts; write the words/s of all of them."""
    torch.set_num_threads(setting.threads)
    hidden, window = STEPS[size]
    names = ("word_dropout", "input_dropout", "recurrent_dropout", "output_dropout")
    dropout: dict[str, Any] = dict(zip(names, (0.2, 0.35, 0.2, 0.35), strict=True))
    model = LanguageModel(VOCABULARY, hidden, weight_decay=1e-7, learning_rate=0.1, **dropout)
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        devices=setting.processes,
        strategy="ddp" if setting.processes > 1 else "auto",
        max_epochs=1,
        gradient_clip_val=5.0,
        limit_val_batches=0,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(model, datamodule=RandomStreams(setting.batch_size, window, WARM_UP + steps))
    if trainer.is_global_zero:
        output.write_text(json.dumps(clock.steps * window * setting.batch_size / clock.seconds), encoding="utf-8")


def measured(size: str, name: str, steps: int) -> float:
    """Words/s of a setting, measured in new processes."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "words_per_s"
        arguments = ["--size", size, "--setting", name, "--steps", str(steps), "--output", str(output)]
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks.scaling", *arguments],
            cwd=FOLDER.parent,
            env=os.environ | {"OMP_NUM_THREADS": str(SETTINGS[name].threads)},
            capture_output=True,
            text=True,
        )
        if run.returncode:
            sys.exit(f"{name}, {size}:\n{run.stderr}")
        return float(output.read_text(encoding="utf-8"))


def gradient_bytes(size: str) -> int:
    """Size of the float32 gradient of all parameters."""
    with torch.device("meta"):
        model = LanguageModel(VOCABULARY, STEPS[size][0])
    return sum(4 * parameter.numel() for parameter in model.parameters())


def sent_bytes(size: str, processes: int) -> float:
    """Bytes that each process sends, and receives, in a step of ring all-reduce."""
    return 2 * (processes - 1) / processes * gradient_bytes(size)


def tables(result: dict[str, Any]) -> str:
    """The measurements and the volume of communication as Markdown."""
    rows = []
    for size, rates in result["words_per_s"].items():
        alone = rates["1 process, 1 thread"]
        for name, rate in rates.items():
            what = {"size": size, "layout": name, "batch": SETTINGS[name].batch_size}
            rows.append(what | {"words/s": f"{rate:,.0f}", "ratio": f"{rate / alone:.2f}"})
    volumes = [
        {"size": size, "gradient": f"{gradient_bytes(size) / 1e6:,.0f} MB"}
        | {f"{n} processes": f"{sent_bytes(size, n) / 1e6:,.0f} MB" for n in PROCESSES}
        for size in STEPS
    ]
    return "\n\n".join(
        [
            origin(result["provenance"]),
            "**Measured**: words/s of all processes together, training as `make reproduce-ptb` does (tied, float32, no "
            "evaluation), by gloo on one machine; the ratio is to one process with one thread.",
            _markdown(rows),
            "**Computed**: what each process sends in a step. The gradient is that of all parameters in float32, the "
            "embedding's dense; a ring sends 2 (N - 1) / N of it.",
            _markdown(volumes),
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write benchmarks/results/scaling.json and the tables of benchmarks/README.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=3, help="of each setting (3)")
    parser.add_argument("--steps", type=int, default=30, help="measured in each turn (30)")
    parser.add_argument("--size", choices=STEPS, help=argparse.SUPPRESS)  # these are of the processes it starts
    parser.add_argument("--setting", choices=SETTINGS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=OUTPUT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.setting:
        work(options.size, SETTINGS[options.setting], options.steps, options.output)
        return
    rates: dict[str, dict[str, list[float]]] = {size: {name: [] for name in SETTINGS} for size in SIZES}
    for turn in range(options.turns):
        for size in SIZES:
            for name in SETTINGS:
                rates[size][name].append(measured(size, name, options.steps))
            print(f"turn {turn + 1} of {options.turns}, {size} measured", file=sys.stderr)
    medians = {size: {name: statistics.median(of) for name, of in named.items()} for size, named in rates.items()}
    result = {"provenance": provenance(torch.device("cpu"), 2), "turns": rates, "words_per_s": medians}
    print(tables(result))
    write_atomically(options.output, json.dumps(result, indent=2) + "\n")
    if options.output == OUTPUT:
        write_into(FOLDER / "README.md", "scaling", tables(result))


if __name__ == "__main__":
    print_any_text()
    main()
