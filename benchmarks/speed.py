"""Speed of the layers, a training step and MC evaluation, beside other implementations of the same work.

`make bench` measures on the CPU in about ten minutes, `make bench-gpu` on the GPU. Ratios come from the median times of
one run in which the competitors take turns. Higher is better for this repository.
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
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from experiments import print_any_text
from experiments.files import replace_between, write_atomically
from lightning_modules.language_model import LanguageModel
from lightning_modules.optim import DecoupledSGD
from training.provenance import provenance
from variational_rnn import VariationalGRU, VariationalLSTM
from variational_rnn.kernels import build

FOLDER = Path(__file__).parent
INSTRUCTIONS = {
    "amx": "A processor with AMX, whose products in bf16 are of tile registers",
    "avx512_bf16": "A processor with AVX512-BF16, whose products in bf16 are of vectors",
    "avx512": "A processor with AVX512",
    "avx2": "A processor with AVX2",
    "other": "Another processor, where the reference computes",
}
"""Instructions that the CPU kernels were built for: names of result files, and headings."""
SHAPES = [(35, 20, 200, 200), (35, 20, 650, 650), (35, 20, 1500, 1500), (200, 128, 128, 128)]
DROPOUT: dict[str, Any] = {"input_dropout": 0.35, "recurrent_dropout": 0.2}
VOCABULARY, STREAMS = 10_000, 20
STEPS = {"small": (200, 20), "medium": (650, 35), "large": (1500, 35)}  # hidden size, window
TIED = {"word_dropout": 0.2, "input_dropout": 0.35, "recurrent_dropout": 0.2, "output_dropout": 0.35}
SHARED = {"share_masks": True, "input_dropout": 0.3, "recurrent_dropout": 0.3, "output_dropout": 0.3}
REUSED = {"tie_weights": True, "softmax_bias": False}
LEARNED = {"augmented_loss": 0.65, "learn_expected": True}
MODELS: dict[str, dict[str, Any]] = {
    "ours": TIED,
    "untied": TIED | {"gate_masks": "untied"},
    "tied, WT": TIED | {"tie_weights": True},
    "tied, PR": TIED | {"projection_penalty": 1 / 130},
    "VD-LSTM": SHARED,
    "VD-LSTM + RE": SHARED | REUSED,
    "VD-LSTM + AL, y fixed": SHARED | {"augmented_loss": 0.65},
    "VD-LSTM + AL": SHARED | LEARNED,
    "VD-LSTM + REAL": SHARED | REUSED | LEARNED,
}
"""Language models whose training step is measured: the variational (tied) one, and later work that builds on it."""


def medians(competitors: dict[str, Callable[[], Any]], seconds: float, device: torch.device) -> dict[str, float]:
    """Median time of each competitor in seconds. They take turns, for about `seconds` in total."""

    def time_of(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(3):  # kernels are compiled and graphs recorded at first
        for run in competitors.values():
            time_of(run)
    turns = max(3, math.ceil(seconds / sum(time_of(run) for run in competitors.values())))
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for _ in range(turns):
        for name, run in competitors.items():
            times[name].append(time_of(run))
    return {name: statistics.median(measured) for name, measured in times.items()}


def instructions() -> str:
    """The instructions that the CPU kernels were built for on this machine, a key of `INSTRUCTIONS`."""
    library = build.extension()
    if library is None:
        return "other"
    if library.vrnn_has_bf16():
        return "amx" if library.vrnn_has_tiles() else "avx512_bf16"
    return torch.backends.cpu.get_cpu_capability().lower()


def precisions(device: torch.device) -> list[str]:
    """Precisions that torch's layers support on the device. They refuse bfloat16 on a CPU without such products."""
    has_bf16 = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return ["float32", "bfloat16"] if has_bf16 else ["float32"]


def precision_context(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Autocast for bfloat16, no context for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


class CellLoop(nn.Module):
    """The usual workaround: a loop over torch.nn.LSTMCell, with masks on x and h."""

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


def layers(seconds: float, device: torch.device, precision: str) -> list[dict[str, Any]]:
    """Measure the forward and backward pass of one layer, by shape."""
    rows = []
    for steps, batch, inputs, hidden in SHAPES:
        x = torch.randn(steps, batch, inputs, device=device, requires_grad=True)

        all_lengths = torch.linspace(steps, 1, batch).long()

        def pass_of(module: Any, x: Tensor = x, lengths: Tensor | None = None) -> Callable[[], None]:
            if isinstance(module, nn.Module):
                module.to(device)

            def run() -> None:
                with precision_context(device, precision):
                    output = module(x if lengths is None else pack_padded_sequence(x, lengths))
                output = output[0] if isinstance(output, tuple) else output
                (output if lengths is None else output.data).sum().backward()

            return run

        competitors = {
            "nn.LSTM": pass_of(nn.LSTM(inputs, hidden)),
            "LSTM tied": pass_of(VariationalLSTM(inputs, hidden, **DROPOUT)),
            "LSTM untied": pass_of(VariationalLSTM(inputs, hidden, **DROPOUT, gate_masks="untied")),
            "LSTM batch": pass_of(VariationalLSTM(inputs, hidden, **DROPOUT, mask_sharing="batch")),
            "nn.LSTM packed": pass_of(nn.LSTM(inputs, hidden), lengths=all_lengths),
            "LSTM tied packed": pass_of(VariationalLSTM(inputs, hidden, **DROPOUT), lengths=all_lengths),
            "nn.GRU": pass_of(nn.GRU(inputs, hidden)),
            "GRU tied": pass_of(VariationalGRU(inputs, hidden, **DROPOUT)),
            "LSTMCell loop": pass_of(CellLoop(inputs, hidden)),
            "reference": pass_of(VariationalLSTM(inputs, hidden, **DROPOUT, backend="reference")),
        }
        if precision == "float32" and (keras := keras_lstm(hidden)):
            competitors["Keras"] = pass_of(keras)
        measured = medians(competitors, seconds, device)
        rows.append({"shape": [steps, batch, inputs, hidden], "precision": precision, "seconds": measured})
        print(f"layers {precision} {len(rows)} of {len(SHAPES)} measured", file=sys.stderr)
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


def training_step(size: str, who: str, precision: str, device: torch.device) -> Callable[[], None]:
    """A function that runs one step of a Penn Treebank run: forward, backward, clip, update."""
    hidden, window = STEPS[size]
    ranks = torch.arange(1, VOCABULARY + 1, device=device)  # words by Zipf's law: what AL costs depends on their types
    inputs, targets = torch.multinomial(1 / ranks, 2 * window * STREAMS, replacement=True).view(2, window, STREAMS)
    context = precision_context(device, precision)
    if who == "plain":
        model: nn.Module = PlainModel(hidden).to(device)
        plain_optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def run() -> None:
            plain_optimizer.zero_grad()
            with context:
                logits = model(inputs)
                loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / STREAMS
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            plain_optimizer.step()

    else:
        ours = LanguageModel(VOCABULARY, hidden, weight_decay=1e-7, learning_rate=0.1, **MODELS[who]).to(device)
        optimizer = DecoupledSGD(ours.parameters(), lr=0.1, decay=1e-7)

        def run() -> None:
            optimizer.zero_grad()
            with context:
                loss = ours.loss(inputs, targets)[0]
            loss.backward()
            optimizer.clip(nn.utils.get_total_norm([p.grad for p in ours.parameters() if p.grad is not None]), 5.0)
            optimizer.step()

    return run


def peak_memory(size: str, who: str, precision: str, device: torch.device) -> float | None:
    """Peak memory of three training steps in MB, measured in a new process; None on a CPU outside Linux."""
    if device.type == "cpu" and not Path("/proc/self/clear_refs").exists():
        return None
    arguments = f"{size!r}, {who!r}, {precision!r}, {device.type!r}"
    code = f"from benchmarks.speed import print_peak_memory; print_peak_memory({arguments})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=FOLDER.parent)
    return float(run.stdout.split()[-1])


def print_peak_memory(size: str, who: str, precision: str, device: str) -> None:
    """Measure in this process, for `peak_memory`."""

    def kilobytes(field: str) -> int:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition(f"{field}:")[2].split()[0])

    before = 0
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from here
        before = kilobytes("VmRSS")
    step = training_step(size, who, precision, torch.device(device))
    for _ in range(3):
        step()
    print((kilobytes("VmHWM") - before) / 1024 if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20)


def steps(seconds: float, device: torch.device) -> list[dict[str, Any]]:
    """Measure a training step of the variational (tied) language model and of the plain one without dropout."""
    rows = []
    for size, (_, window) in STEPS.items():
        named = {
            f"{who} {precision}": (who, precision) for precision in precisions(device) for who in ("plain", "ours")
        }
        measured = medians({name: training_step(size, *what, device) for name, what in named.items()}, seconds, device)
        peaks = {name: peak_memory(size, *what, device) for name, what in named.items()}
        rows.append({"size": size, "words": window * STREAMS, "seconds": measured, "peak_mb": peaks})
        print(f"training step {size} measured", file=sys.stderr)
    return rows


def models(seconds: float, device: torch.device) -> dict[str, dict[str, float]]:
    """Seconds of a training step of each small model in `MODELS`, by precision."""
    times = {}
    for precision in precisions(device):
        steps_of_models = {name: training_step("small", name, precision, device) for name in MODELS}
        times[precision] = medians(steps_of_models, seconds, device)
    print("training step of all models measured", file=sys.stderr)
    return times


def monte_carlo(seconds: float, device: torch.device, samples: int = 100) -> dict[str, Any]:
    """Measure a window of one stream under many sampled networks at once, and one network as many times."""
    hidden, window = STEPS["small"]
    model = LanguageModel(VOCABULARY, hidden, **DROPOUT, mc_samples=samples).to(device).eval()
    inputs, targets = torch.randint(VOCABULARY, (2, window, 1), device=device)

    @torch.no_grad()
    def sampled() -> None:
        model._mc_log_probs(inputs, targets, "test_ppl_mc", (0,))

    @torch.no_grad()
    def one_after_the_other() -> None:
        for _ in range(samples):
            model._surprisal((inputs, targets))

    model.on_test_epoch_start()
    measured = medians({"one after the other": one_after_the_other, "sampled": sampled}, seconds, device)
    return {"samples": samples, "words": window, "seconds": measured}


PAIRS = {
    "nn.LSTM": ("nn.LSTM", "LSTM tied"),
    "nn.LSTM, ours untied": ("nn.LSTM", "LSTM untied"),
    "nn.LSTM, ours shared by the batch": ("nn.LSTM", "LSTM batch"),
    "nn.LSTM, both packed": ("nn.LSTM packed", "LSTM tied packed"),
    "nn.GRU, ours GRU": ("nn.GRU", "GRU tied"),
    "loop over nn.LSTMCell with masks": ("LSTMCell loop", "LSTM tied"),
    "our reference": ("reference", "LSTM tied"),
    "Keras, dropout and recurrent_dropout": ("Keras", "LSTM tied"),
}
"""Comparisons: label, and the names of the other and of our competitor."""


def _markdown(rows: list[dict[str, Any]]) -> str:
    return str(pd.DataFrame(rows).fillna("–").to_markdown(index=False, disable_numparse=True))


def origin(provenance: dict[str, Any]) -> str:
    """Hardware, versions and commit of a measurement in one line."""
    hardware, versions = provenance["hardware"], provenance["versions"]
    processor = hardware["gpu"] or f"{hardware['cpu']}, {hardware['threads']} of {hardware['cores']} cores"
    return (
        f"{processor}; torch {versions['torch']}, Python {versions['python']}; commit {provenance['commit'][:7]}"
        f"{' with changes' if provenance['dirty'] else ''}, {provenance['date'][:10]}."
    )


def tables(result: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    text = [
        origin(result["provenance"]),
        "**A layer, forward and backward**: time of the other / ours, tied masks per sequence unless it says else. In "
        "bfloat16 both are under autocast. Shapes are steps, sequences, input size, hidden size; packed sequences have "
        "lengths from all steps down to one.",
    ]
    rows = []
    measured = list(dict.fromkeys(row["precision"] for row in result["layers"]))

    def compare(label: str, precision: str, ratios: dict[str, float]) -> None:
        mean = f"{statistics.geometric_mean(ratios.values()):.2f}"
        shown = {shape: f"{ratio:.2f}" for shape, ratio in ratios.items()}
        rows.append({"other": label, "precision": precision, **shown, "geometric mean": mean})

    seconds = {
        precision: {
            ", ".join(map(str, row["shape"])): row["seconds"]
            for row in result["layers"]
            if row["precision"] == precision
        }
        for precision in measured
    }
    for precision, of_shapes in seconds.items():
        for label, (other, ours) in PAIRS.items():
            if ratios := {shape: of[other] / of[ours] for shape, of in of_shapes.items() if other in of}:
                compare(label, precision, ratios)
    for layer in ("LSTM tied", "LSTM untied", "GRU tied") if "bfloat16" in measured else ():
        ratios = {shape: of[layer] / seconds["bfloat16"][shape][layer] for shape, of in seconds["float32"].items()}
        compare(f"ours in float32, {layer}", "bfloat16", ratios)
    text.append(_markdown(rows))
    text.append(
        "**A training step of the language model** in words/s, tied, all dropout on, beside plain PyTorch without it."
    )
    rows = []
    for row in result["steps"]:
        for precision in measured:
            plain, ours, plain_32 = (f"plain {precision}", f"ours {precision}", "plain float32")
            peaks = row["peak_mb"]
            rate = {name: row["words"] / seconds for name, seconds in row["seconds"].items()}
            rows.append(
                {
                    "size": row["size"],
                    "precision": precision,
                    "plain": f"{rate[plain]:,.0f}",
                    "ours": f"{rate[ours]:,.0f}",
                    "ours / plain": f"{rate[ours] / rate[plain]:.2f}",
                    "ours / plain float32": f"{rate[ours] / rate[plain_32]:.2f}",
                    "peak memory, plain / ours": f"{peaks[plain] / peaks[ours]:.2f}" if peaks[ours] else "not measured",
                }
            )
    text.append(_markdown(rows))
    if "models" in result:  # files from before it was measured lack it
        text.append(
            "**What others built on it**: time of a training step / that of the variational (tied) model, small."
        )
        rows = [
            {"model": name}
            | {precision: f"{times[name] / times['ours']:.2f}" for precision, times in result["models"].items()}
            for name in MODELS
            if name != "ours"
        ]
        text.append(_markdown(rows))
    mc = result["monte_carlo"]
    ratio = mc["seconds"]["one after the other"] / mc["seconds"]["sampled"]
    rate_of_samples = mc["words"] * mc["samples"] / mc["seconds"]["sampled"]
    text.append(
        f"**MC evaluation**, small, float32: {mc['samples']} sampled networks at once {rate_of_samples:,.0f} words x "
        f"samples/s, {ratio:.1f} times as many as {mc['samples']} passes of the approximation one after the other."
    )
    return "\n\n".join(text)


def all_of_cpus() -> str:
    """The measurements on CPUs, one of each kind, as Markdown."""
    found = [(title, FOLDER / "results" / f"cpu_{name}.json") for name, title in INSTRUCTIONS.items()]
    return "\n\n".join(
        f"### {title}\n\n{tables(json.loads(file.read_text(encoding='utf-8')))}"
        for title, file in found
        if file.exists()
    )


def perplexities() -> str:
    """Runs in bfloat16 beside the same rows and seeds in float32, as Markdown."""
    rows = []
    for file in sorted((FOLDER / "results" / "bf16").glob("ptb/*/*/seed*.json")):
        name = file.relative_to(FOLDER / "results" / "bf16")
        for precision, path in (("float32", FOLDER.parent / "results" / name), ("bfloat16", file)):
            if not path.exists():
                continue
            result = json.loads(path.read_text(encoding="utf-8"))
            metrics = result["metrics"]
            rows.append(
                {
                    "row": f"{result['group']} {result['row']}, seed {result['seed']}",
                    "precision": precision,
                    "epochs": f"{result['epochs']} of {result['planned_epochs']}",
                    "train": f"{metrics['train_ppl']:.2f}",
                    "valid": f"{metrics['valid_ppl']:.2f}",
                    "test": f"{metrics['test_ppl']:.2f}",
                    "test, MC": f"{metrics['test_ppl_mc']:.2f}" if metrics.get("test_ppl_mc") else "–",
                    "commit": result["provenance"]["commit"][:7],
                }
            )
    return _markdown(rows)


def write_into(readme: Path, place: str, text: str) -> None:
    """Replace the text between the markers of a place in the README."""
    replace_between(readme, f"<!-- {place}:begin -->", f"<!-- {place}:end -->", text)


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the result file of this kind of processor and the tables of the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each comparison (15)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU (all)")
    parser.add_argument("--output", type=Path, help="another file than that of benchmarks/results; no README")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; make bench measures on the CPU")
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if device.type == "cpu" and build.extension() is None:
        print("the CPU kernels could not be built: measuring the reference", file=sys.stderr)
    result = {
        "provenance": provenance(device, 1),
        "layers": [row for precision in precisions(device) for row in layers(options.seconds, device, precision)],
        "steps": steps(options.seconds, device),
        "models": models(options.seconds, device),
        "monte_carlo": monte_carlo(options.seconds, device),
    }
    print(tables(result))
    name = "cuda" if device.type == "cuda" else f"cpu_{instructions()}"
    output = options.output or FOLDER / "results" / f"{name}.json"
    write_atomically(output, json.dumps(result, indent=2) + "\n")
    if not options.output:
        write_into(FOLDER / "README.md", device.type, tables(result) if device.type == "cuda" else all_of_cpus())
        write_into(FOLDER / "README.md", "precision", perplexities())


if __name__ == "__main__":
    print_any_text()
    main()
