"""Training on several processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LOSSES = """class WriteLosses(L.Callback):
    # The gradient of every step, which all processes have in common: a number that no two steps share.

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, model, optimizer):
        norm = sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None)
        self.seen.append(float(norm))

    def on_fit_end(self, trainer, model):
        (folder / f"steps{trainer.global_rank}.json").write_text(json.dumps(self.seen))

    def on_exception(self, trainer, model, exception):
        self.on_fit_end(trainer, model)


class Stop(L.Callback):
    # Asks the last process to stop in the second epoch.

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_index):
        if trainer.is_last_batch or trainer.current_epoch != 1 or batch_index != 1:
            return
        if trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


checkpoint_module.CHECK_EVERY = 1
stop = [Stop()] if options.pop("is_stopped", False) else []
"""

SCRIPT = """
import json, os, signal, sys
from pathlib import Path

import lightning as L
import torch

from datamodules.streams import TokenStreams
from lightning_modules import LanguageModel
from training import checkpoints as checkpoint_module
from training.trainer import Trainer

devices, dropout, epochs, folder = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
options = json.loads(sys.argv[5])


class RandomStreams(TokenStreams):
    def build(self):
        generator = torch.Generator().manual_seed(1)
        sizes = {"train": 83, "validation": 61, "test": 23}
        self.ids = {split: torch.randint(11, (n,), generator=generator) for split, n in sizes.items()}


# WriteLosses


L.seed_everything(3, verbose=False)
model = LanguageModel(
    11, 6, init_scale=0.5, learning_rate_decay=1.5, constant_epochs=1, weight_decay=0.01, mc_samples=5, mc_masks="both",
    **dict.fromkeys(("word_dropout", "input_dropout", "recurrent_dropout", "output_dropout"), dropout), **options,
).double()
trainer = Trainer(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=3, logger=False,
    enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    gradient_clip_val=1.3, default_root_dir=folder,
    callbacks=[*checkpoint_module.checkpoints(folder, "valid_ppl"), WriteLosses(), *stop],
)
result = folder / "results" / "ptb" / "tiny" / "row" / "seed3.json"
trainer.reproduce(model, RandomStreams(batch_size=4, window=5, train_eval_windows=2), result, epochs)
"""


SENTIMENT = """
import json, os, signal, sys
from pathlib import Path

import lightning as L
import torch
from datasets import Dataset, DatasetDict

from datamodules.rated_sequences import RatedSequences
from lightning_modules import SentimentRegressor
from training import checkpoints as checkpoint_module
from training.trainer import Trainer

devices, dropout, epochs, folder = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
options = json.loads(sys.argv[5])


class RandomReviews(RatedSequences):
    def build(self):
        generator = torch.Generator().manual_seed(2)
        self.chunks = DatasetDict({
            split: Dataset.from_dict({
                "words": torch.randint(1, 30, (n, 6), generator=generator).tolist(),
                "rating": torch.rand(n, generator=generator).tolist(),
                "review": [i // 3 for i in range(n)],
            })
            for split, n in {"train": 23, "test": 13, "validation": 7}.items()
        })


# WriteLosses


L.seed_everything(3, verbose=False)
model = SentimentRegressor(
    30, embedding_size=7, hidden_size=5, learning_rate=0.01, mc_samples=3, mc_every=1,
    gate_activation="hard_sigmoid", dropout_scale="test", penalty="as_executed", l2=1e-3,
    **dict.fromkeys(("word_dropout", "input_dropout", "recurrent_dropout", "output_dropout"), dropout), **options,
).double()
trainer = Trainer(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=3, logger=False,
    enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    default_root_dir=folder,
    callbacks=[*checkpoint_module.checkpoints(folder, "valid_rmse"), WriteLosses(), *stop],
)
result = folder / "results" / "ptb" / "tiny" / "row" / "seed3.json"
trainer.reproduce(model, RandomReviews(batch_size=8, eval_batch_size=10, train_eval_chunks=5), result, epochs)
"""


def run(
    folder: Path, devices: int, code: str, epochs: int = 3, dropout: float = 0.4, **options: Any
) -> tuple[dict[str, Any], list[float]]:
    """The result file, and a number of every step."""
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(code.replace("# WriteLosses\n", LOSSES))
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "PL_", "LOCAL_RANK"))}
    done = subprocess.run(
        [sys.executable, str(script), str(devices), str(dropout), str(epochs), str(folder), json.dumps(options)],
        env=outside | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == (128 + signal.SIGTERM if options.get("is_stopped") else 0), done.stderr
    steps = [json.loads((folder / f"steps{rank}.json").read_text()) for rank in range(devices)]
    assert all(of_rank == steps[0] for of_rank in steps)
    result = folder / "results/ptb/tiny/row/seed3.json"
    return json.loads(result.read_text()) if result.exists() else {}, steps[0]


MEASURED = ("gradient_norm", "words_per_s", "seconds", "wall_time_s")


def same(one: dict[str, float], two: dict[str, float]) -> None:
    assert one.keys() == two.keys()
    for name in one.keys() - set(MEASURED):
        assert two[name] == pytest.approx(one[name], rel=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "devices", "options"),
    [
        (SCRIPT, 2, {}),
        (SCRIPT, 4, {"gate_masks": "untied", "word_masks": "token", "time_masks": "fresh"}),
        (
            *(SCRIPT, 2),
            {"share_masks": True, "tie_weights": True, "projection_penalty": 0.1, "augmented_loss": 0.65},
        ),
        (SENTIMENT, 2, {"word_mask_sharing": "batch", "gate_masks": "untied"}),
        (SENTIMENT, 3, {"word_mask_sharing": "sequence", "time_masks": "fresh"}),
    ],
)
def test_several_processes_make_the_steps_of_one_with_the_same_masks(
    code: str, devices: int, options: dict[str, Any], tmp_path: Path
) -> None:
    one, steps = run(tmp_path / "one", 1, code, **options)
    assert len(set(steps)) == len(steps)
    report, steps_together = run(tmp_path / "several", devices, code, **options)
    assert steps_together == pytest.approx(steps, rel=1e-10)
    assert len(report["curve"]) == 3
    for alone, together in zip(one["curve"], report["curve"], strict=True):
        same(alone, together)
    same(one["metrics"], report["metrics"])
    assert report["provenance"]["hardware"]["devices"] == devices


@pytest.mark.slow
@pytest.mark.parametrize("code", [SCRIPT, SENTIMENT])
def test_a_resumed_run_makes_the_steps_of_an_uninterrupted_one_on_another_number_of_processes(
    code: str, tmp_path: Path
) -> None:
    whole, steps = run(tmp_path / "whole", 1, code)
    _, first = run(tmp_path / "parts", 2, code, epochs=2)
    report, second = run(tmp_path / "parts", 1, code, epochs=3)
    assert [*first, *second] == pytest.approx(steps, rel=1e-10)
    same(whole["metrics"], report["metrics"])
    assert len(report["provenance"]["resumed"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("code", [SCRIPT, SENTIMENT])
def test_a_run_stopped_in_mid_epoch_by_a_signal_to_one_process_goes_on_to_rounding_on_another_number_of_them(
    code: str, tmp_path: Path
) -> None:
    options = {"epoch_start": "validation"} if code == SCRIPT else {"word_mask_sharing": "batch"}
    whole, steps = run(tmp_path / "whole", 1, code, **options)
    _, first = run(tmp_path / "parts", 2, code, is_stopped=True, **options)
    report, second = run(tmp_path / "parts", 1, code, **options)
    assert len(first) == len(steps) // 3 + 2
    assert [*first, *second] == pytest.approx(steps, rel=1e-10)
    for alone, together in zip(whole["curve"], report["curve"], strict=True):
        same(alone, together)
    same(whole["metrics"], report["metrics"])
