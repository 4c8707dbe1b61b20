"""What a language model's test perplexity owes to choices that are made at test time."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from torch import Tensor

from datamodules.streams import StreamWindows, TokenStreams
from experiments.files import check_writable, write_atomically
from experiments.results import MC, ablation_file, load_result, options_that_matter
from lightning_modules.experiment import TEST, VALIDATION, Experiment
from lightning_modules.language_model import LanguageModel
from lightning_modules.loading import read_checkpoint, weights_sha256
from training.provenance import corpus_of, provenance
from training.recorder import without_paths
from training.reproduce import RESULT, check_seed

if TYPE_CHECKING:
    from training.trainer import Trainer

TEMPERATURES = [round(0.7 + 0.05 * step, 2) for step in range(13)]
"""Among which the best on validation is chosen: 0.7, 0.75, ..., 1.3."""


def test_time_choices(model: LanguageModel, data: TokenStreams) -> list[dict[str, Any]]:
    """Perplexities by the dropout approximation, and by means over K sampled networks, with and without temperature.

    Validation and test text are each evaluated in one pass, all means over the same networks, for the test text those
    that a test with as many samples has; K = 1, 2, 5, ... are the first of them. The validation text is one stream
    here, as the test text is, so its perplexity is not quite that of training, where it is as many streams as a batch
    has. The temperature is the one of `TEMPERATURES` with the lowest validation perplexity, for each choice and each K;
    it divides the logits of every network.

    Args:
        model: trained; its `mc_samples`, `mc_masks` and `mc_word_dropout` say what is sampled.
        data: set up.

    Returns:
        For each choice: `mean` ("approximation", "arithmetic", or "geometric", which is divided by its sum over the
        vocabulary), `masks` ("stream", "window", None for the approximation), `samples` (K, 0 for the approximation),
        `valid_ppl` and `test_ppl` at temperature 1, `temperature`, and the perplexities at it, `valid_ppl_tempered` and
        `test_ppl_tempered`.

    Raises:
        ValueError: a perplexity is not finite.
    """

    def nll(split: str, stage: int, temperatures: list[float]) -> dict[tuple[str, str | None], Tensor]:
        windows = StreamWindows(data.ids[split][:, None], data.window, keep_remainder=True)
        found = model.test_time_nll(windows, stage, temperatures)
        if not all((values < math.log(sys.float_info.max)).all() for values in found.values()):  # nan is not, either
            raise ValueError(f"the model's {split} perplexity is not finite: its training has diverged, or it has none")
        return found

    valid = nll("validation", VALIDATION, TEMPERATURES)
    best = {way: values.argmin(dim=0).tolist() for way, values in valid.items()}
    used = sorted({1.0, *(TEMPERATURES[i] for indices in best.values() for i in indices)})
    test = nll("test", TEST, used)
    choices = []
    for (mean, masks), indices in best.items():
        valid_NC, test_NC = valid[mean, masks].tolist(), test[mean, masks].tolist()
        at_1, used_1 = TEMPERATURES.index(1.0), used.index(1.0)
        for i, tuned in enumerate(indices):
            temperature = TEMPERATURES[tuned]
            choices.append(
                {
                    "mean": mean,
                    "masks": masks,
                    "samples": model.mc_counts[i] if masks else 0,
                    "valid_ppl": math.exp(valid_NC[at_1][i]),
                    "test_ppl": math.exp(test_NC[used_1][i]),
                    "temperature": temperature,
                    "valid_ppl_tempered": math.exp(valid_NC[tuned][i]),
                    "test_ppl_tempered": math.exp(test_NC[used.index(temperature)][i]),
                }
            )
    return choices


def ablate(
    trainer: Trainer, model: Experiment, datamodule: L.LightningDataModule, ckpt_path: str, result: Path
) -> None:
    """Evaluate a finished language model by every choice of `test_time_choices`; ablation_seedK.json has them.

    Args:
        trainer: with the options of the run.
        model: whose options say how many networks are sampled, and how.
        datamodule: the data.
        ckpt_path: the weights that were tested.
        result: the file of the finished run, .../ROW/seedK.json, beside which is written.

    Raises:
        ValueError: it is no language model, the checkpoint is not of the tested epoch of that run, the options or
            the seed are not the run's, or there are several processes.
        OSError: a file cannot be read or written.
    """
    if not isinstance(model, LanguageModel) or not isinstance(datamodule, TokenStreams):
        raise ValueError(f"ablate is for language models, not for a {type(model).__name__}")
    if trainer.world_size > 1:
        raise ValueError(f"ablate runs on one device, got {trainer.world_size} processes: use --trainer.devices 1")
    if not result.is_file():
        raise FileNotFoundError(f"{result} is not there: an ablation is of a finished run; run it first")
    run = load_result(result)
    check_seed(trainer, result, run.seed)
    options = {
        name: value for name, value in options_that_matter(trainer.run_config).items() if name not in (*MC, "precision")
    }
    if changed := [
        f"{name}: {run.settings[name]} in {result.name}, {value} here"
        for name, value in options.items()
        if name in run.settings and name not in (*MC, "precision") and run.settings[name] != value
    ]:
        raise ValueError(
            f"{result} is of a run with other options ({'; '.join(changed)}): use the configuration of that run"
        )
    output = ablation_file(run)
    check_writable(output, RESULT)
    datamodule.prepare_data()
    datamodule.setup()
    model.reader = datamodule.reader
    checkpoint = read_checkpoint(Path(ckpt_path))
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    curve, attempts = checkpoint["curve"], checkpoint["provenance"]
    started = [origin["date"] for origin in attempts[:1]]
    if (len(curve), started) != (run.tested_epoch, [run.provenance["date"]]):
        raise ValueError(
            f"{ckpt_path} is after epoch {len(curve)} of a run begun {', '.join(started) or 'elsewhere'}, "
            f"but {result} was tested after epoch {run.tested_epoch} of one begun {run.provenance['date']}: "
            "name the checkpoint that was tested"
        )
    device = trainer.strategy.root_device
    origin = provenance(device, 1)
    samples = f"{model.mc_samples} sampled networks" if model.mc_samples else "no sampled networks (mc_samples)"
    trainer.print(f"{ckpt_path}, validation and test text by the approximation and {samples}")
    start = time.perf_counter()
    choices = test_time_choices(model.to(device), datamodule)
    for choice in choices:
        mean = " ".join(str(choice[key]) for key in ("mean", "masks", "samples") if choice[key])
        trainer.print(
            f"{mean}  test_ppl {choice['test_ppl']:.2f}, {choice['test_ppl_tempered']:.2f} at the temperature "
            f"{choice['temperature']:g}"
        )
    report = {
        "tested_epoch": run.tested_epoch,
        "choices": choices,
        "config": without_paths(trainer.run_config),
        "provenance": origin
        | corpus_of(datamodule)
        | {
            "wall_time_s": time.perf_counter() - start,
            "run": attempts,
            "weights_sha256": weights_sha256(model),
        },
    }
    write_atomically(output, json.dumps(report, indent=2) + "\n")
    trainer.print(f"wrote {output}")
