"""Speed on a CPU: the layers, a training step and MC evaluation beside what else does the same work.

`make bench` runs it (a few minutes). Every ratio comes from one run in which the competitors take turns; the median of
the repetitions counts. Higher is better for this repository.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.language_model import LanguageModel
from lightning_modules.trainer import provenance, write_atomically
from variational_rnn import VariationalGRU, VariationalLSTM
from variational_rnn.backends import cpu

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
SHAPES = [(35, 20, 200, 200), (35, 20, 650, 650), (35, 20, 1500, 1500), (200, 128, 128, 128)]
DROPOUT: dict[str, Any] = {"input_dropout": 0.35, "recurrent_dropout": 0.2}
VOCABULARY, STREAMS = 10_000, 20
STEPS = {"small": (200, 20), "medium": (650, 35)}  # hidden size, window


def medians(competitors: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Median time in seconds of each, all taking turns, for about `seconds` in all."""
    for run in competitors.values():
        run()
    start = time.perf_counter()
    for run in competitors.values():
        run()
    turns = max(3, math.ceil(seconds / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for _ in range(turns):
        for name, run in competitors.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(measured) for name, measured in times.items()}


class CellLoop(nn.Module):
    """What people write today: a loop over torch.nn.LSTMCell, with masks on x and h."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(input_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Run over [T, B, I]."""
        h = c = x.new_zeros(x.size(1), self.cell.hidden_size)
        mask_x = F.dropout(torch.ones_like(x[0]), DROPOUT["input_dropout"])
        mask_h = F.dropout(torch.ones_like(h), DROPOUT["recurrent_dropout"])
        outputs = []
        for x_t in x.unbind(0):
            h, c = self.cell(x_t * mask_x, (h * mask_h, c))
            outputs.append(h)
        return torch.stack(outputs)


def keras_lstm(hidden_size: int) -> Any:
    """Keras' LSTM on torch, or None where Keras is not installed."""
    os.environ["KERAS_BACKEND"] = "torch"
    try:
        import keras
    except ImportError:
        return None
    p, q = DROPOUT.values()
    layer = keras.layers.LSTM(hidden_size, dropout=p, recurrent_dropout=q, return_sequences=True)
    return lambda x: layer(x.transpose(0, 1), training=True)


def layers(seconds: float) -> list[dict[str, Any]]:
    """Forward and backward pass of one layer, by shape."""
    rows = []
    for steps, batch, inputs, hidden in SHAPES:
        x = torch.randn(steps, batch, inputs, requires_grad=True)

        def pass_of(module: Callable[[Tensor], Any], x: Tensor = x) -> Callable[[], None]:
            def run() -> None:
                output = module(x)
                (output[0] if isinstance(output, tuple) else output).sum().backward()

            return run

        competitors = {
            "nn.LSTM": pass_of(nn.LSTM(inputs, hidden)),
            "LSTM tied": pass_of(VariationalLSTM(inputs, hidden, **DROPOUT)),
            "LSTM untied": pass_of(VariationalLSTM(inputs, hidden, **DROPOUT, gate_masks="untied")),
            "LSTM batch": pass_of(VariationalLSTM(inputs, hidden, **DROPOUT, mask_sharing="batch")),
            "nn.GRU": pass_of(nn.GRU(inputs, hidden)),
            "GRU tied": pass_of(VariationalGRU(inputs, hidden, **DROPOUT)),
            "LSTMCell loop": pass_of(CellLoop(inputs, hidden)),
            "reference": pass_of(VariationalLSTM(inputs, hidden, **DROPOUT, backend="reference")),
        }
        if keras := keras_lstm(hidden):
            competitors["Keras"] = pass_of(keras)
        rows.append({"shape": [steps, batch, inputs, hidden], "seconds": medians(competitors, seconds)})
        print(f"layers {rows[-1]['shape']} measured", file=sys.stderr)
    return rows


class PlainModel(nn.Module):
    """The same language model in plain PyTorch, without dropout."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, hidden)
        self.rnn = nn.LSTM(hidden, hidden, 2)
        self.softmax = nn.Linear(hidden, VOCABULARY)

    def forward(self, words: Tensor) -> Tensor:
        """Logits of [T, B] words."""
        return self.softmax(self.rnn(self.embedding(words))[0])


def training_step(size: str, who: str) -> Callable[[], None]:
    """One step of a Penn Treebank run: forward, backward, clip, update."""
    hidden, window = STEPS[size]
    inputs, targets = torch.randint(VOCABULARY, (2, window, STREAMS))
    if who == "plain":
        model: nn.Module = PlainModel(hidden)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def loss() -> Tensor:
            logits = model(inputs)
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / STREAMS
    else:
        names = ("word_dropout", "input_dropout", "recurrent_dropout", "output_dropout")
        dropout: dict[str, Any] = dict(zip(names, (0.2, 0.35, 0.2, 0.35), strict=True))
        ours = LanguageModel(VOCABULARY, hidden, weight_decay=1e-7, learning_rate=0.1, **dropout)
        model, [[optimizer], _] = ours, ours.configure_optimizers()

        def loss() -> Tensor:
            return ours.loss(inputs, targets)[0]

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        if isinstance(optimizer, DecoupledSGD):
            optimizer.clip(nn.utils.get_total_norm([p.grad for p in model.parameters()]), 5.0)
        else:
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return run


def peak_memory(size: str, who: str) -> float | None:
    """What three training steps add to the memory of a process of their own, at the peak, in MB; None but on Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    code = f"from benchmarks.cpu import print_peak_memory; print_peak_memory({size!r}, {who!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=FOLDER.parent)
    return float(run.stdout.split()[-1])


def print_peak_memory(size: str, who: str) -> None:
    """Measure in this process, for `peak_memory`."""

    def kilobytes(field: str) -> int:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition(f"{field}:")[2].split()[0])

    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from here
    before = kilobytes("VmRSS")
    step = training_step(size, who)
    for _ in range(3):
        step()
    print((kilobytes("VmHWM") - before) / 1024)


def steps(seconds: float) -> list[dict[str, Any]]:
    """A training step of the language model, variational and tied, beside the plain one without dropout."""
    rows = []
    for size, (_, window) in STEPS.items():
        measured = medians({who: training_step(size, who) for who in ("plain", "ours")}, seconds)
        rows.append(
            {
                "size": size,
                "words": window * STREAMS,
                "seconds": measured,
                "peak_mb": {who: peak_memory(size, who) for who in measured},
            }
        )
        print(f"training step {size} measured", file=sys.stderr)
    return rows


def monte_carlo(seconds: float, samples: int = 100) -> dict[str, Any]:
    """Evaluate a window of one stream under many sampled networks at once, and one network that many times."""
    hidden, window = STEPS["small"]
    model = LanguageModel(VOCABULARY, hidden, **DROPOUT, mc_samples=samples).eval()
    inputs, targets = torch.randint(VOCABULARY, (2, window, 1))

    @torch.no_grad()
    def sampled() -> None:
        model._mc_log_probs(inputs, targets)

    @torch.no_grad()
    def one_after_the_other() -> None:
        for _ in range(samples):
            model._surprisal((inputs, targets))

    model.on_test_epoch_start()
    measured = medians({"one after the other": one_after_the_other, "sampled": sampled}, seconds)
    return {"samples": samples, "words": window, "seconds": measured}


def _geometric(values: list[float]) -> float:
    return statistics.geometric_mean(values)


def tables(result: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    origin = result["provenance"]
    hardware, versions = origin["hardware"], origin["versions"]
    text = [
        f"{hardware['cpu']}, {hardware['threads']} of {hardware['cores']} cores, float32; torch {versions['torch']}, "
        f"Python {versions['python']}; commit {origin['commit'][:7]}, {origin['date'][:10]}.",
        "**A layer, forward and backward**: time of the other / ours, tied masks per sequence unless it says else.",
    ]
    pairs = {
        "nn.LSTM": ("nn.LSTM", "LSTM tied"),
        "nn.LSTM, ours untied": ("nn.LSTM", "LSTM untied"),
        "nn.LSTM, ours shared by the batch": ("nn.LSTM", "LSTM batch"),
        "nn.GRU, ours GRU": ("nn.GRU", "GRU tied"),
        "loop over nn.LSTMCell with masks": ("LSTMCell loop", "LSTM tied"),
        "our reference": ("reference", "LSTM tied"),
        "Keras, dropout and recurrent_dropout": ("Keras", "LSTM tied"),
    }
    rows = []
    for label, (other, ours) in pairs.items():
        ratios = [row["seconds"][other] / row["seconds"][ours] for row in result["layers"] if other in row["seconds"]]
        named = {
            ", ".join(map(str, row["shape"])): f"{r:.2f}" for row, r in zip(result["layers"], ratios, strict=False)
        }
        mean = f"{_geometric(ratios):.2f}" if ratios else "not installed"
        rows.append({"other": label, **(named or {}), "geometric mean": mean})
    text.append(pd.DataFrame(rows).fillna("–").to_markdown(index=False, disable_numparse=True))
    text.append("Shapes are steps, sequences, input size, hidden size.")
    text.append(
        "**A training step of the language model** (tied, all dropout on) beside plain PyTorch without dropout."
    )
    rows = [
        {
            "size": row["size"],
            "words/s, plain": f"{row['words'] / row['seconds']['plain']:,.0f}",
            "words/s, ours": f"{row['words'] / row['seconds']['ours']:,.0f}",
            "ours / plain": f"{row['seconds']['plain'] / row['seconds']['ours']:.2f}",
            "peak memory, plain / ours": f"{row['peak_mb']['plain'] / row['peak_mb']['ours']:.2f}"
            if row["peak_mb"]["ours"]
            else "not measured",
        }
        for row in result["steps"]
    ]
    text.append(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))
    mc = result["monte_carlo"]
    ratio = mc["seconds"]["one after the other"] / mc["seconds"]["sampled"]
    rate = mc["words"] * mc["samples"] / mc["seconds"]["sampled"]
    text.append(
        f"**MC evaluation**, small: {mc['samples']} sampled networks at once {rate:,.0f} words x samples/s, "
        f"{ratio:.1f} times as many as {mc['samples']} passes of the approximation one after the other."
    )
    return "\n\n".join(text)


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write benchmarks/results/cpu.json and the tables of benchmarks/README.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=15.0, help="for each comparison (15)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=FOLDER / "results" / "cpu.json")
    parser.add_argument("--readme", type=Path, default=FOLDER / "README.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if cpu.extension() is None:
        print("the fast CPU backend is not there: the reference is measured", file=sys.stderr)
    result = {
        "provenance": provenance(torch.device("cpu"), 1),
        "fast_backend": cpu.extension() is not None,
        "layers": layers(options.seconds),
        "steps": steps(options.seconds),
        "monte_carlo": monte_carlo(options.seconds),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.output, json.dumps(result, indent=2) + "\n")
    text = options.readme.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    write_atomically(options.readme, f"{before}{BEGIN}\n\n{tables(result)}\n\n{END}{after}")
    print(tables(result))


if __name__ == "__main__":
    main()
