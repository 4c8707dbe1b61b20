"""Training on several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import json, sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.streams import TokenStreams
from lightning_modules import LanguageModel
from lightning_modules.trainer import Trainer

devices, dropout, epochs, folder = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])


class RandomStreams(TokenStreams):
    def build(self):
        generator = torch.Generator().manual_seed(1)
        sizes = {"train": 83, "validation": 61, "test": 23}
        self.ids = {split: torch.randint(11, (n,), generator=generator) for split, n in sizes.items()}


class WriteMasks(L.Callback):
    def __init__(self):
        self.drawn = []

    def on_fit_start(self, trainer, model):
        sample = model.rnn.sample_masks

        def sample_masks(*args, **kwargs):
            masks = sample(*args, **kwargs)
            if masks.layers[0].input is not None:
                self.drawn.append(masks.layers[0].input.flatten().tolist())
            return masks

        model.rnn.sample_masks = sample_masks

    def on_fit_end(self, trainer, model):
        (folder / f"masks{trainer.global_rank}.json").write_text(json.dumps(self.drawn))


L.seed_everything(3, verbose=False)
model = LanguageModel(
    11, 6, init_scale=0.5, input_dropout=dropout, learning_rate_decay=1.5, constant_epochs=1, weight_decay=0.01
).double()
every_epoch = {"dirpath": folder, "save_on_train_epoch_end": True, "enable_version_counter": False}
trainer = Trainer(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=3, logger=False,
    enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    gradient_clip_val=1.3, default_root_dir=folder,
    callbacks=[
        ModelCheckpoint(filename="best", monitor="valid_ppl", **every_epoch),
        ModelCheckpoint(filename="last", **every_epoch),
        WriteMasks(),
    ],
)
result = folder / "results" / "ptb" / "tiny" / "row" / "seed3.json"
trainer.reproduce(model, RandomStreams(batch_size=4, window=5, train_eval_windows=2), result, epochs)
"""


SENTIMENT = """
import json, sys
from pathlib import Path

import lightning as L
import torch
from datasets import Dataset, DatasetDict
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.rated_sequences import RatedSequences
from lightning_modules import SentimentRegressor
from lightning_modules.trainer import Trainer

devices, dropout, epochs, folder = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])


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


L.seed_everything(3, verbose=False)
# The order of training texts differs, so there is no training: the learning rate is 0.
model = SentimentRegressor(
    30, embedding_size=7, hidden_size=5, learning_rate=0.0, word_dropout=dropout, mc_samples=3, mc_every=1,
    gate_activation="hard_sigmoid", dropout_scale="test", penalty="as_executed", l2=1e-3,
)
every_epoch = {"dirpath": folder, "save_on_train_epoch_end": True, "enable_version_counter": False}
trainer = Trainer(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=3, logger=False,
    enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    default_root_dir=folder,
    callbacks=[
        ModelCheckpoint(filename="best", monitor="valid_rmse", **every_epoch),
        ModelCheckpoint(filename="last", **every_epoch),
    ],
)
result = folder / "results" / "ptb" / "tiny" / "row" / "seed3.json"
trainer.reproduce(model, RandomReviews(batch_size=8, eval_batch_size=3, train_eval_chunks=5), result, epochs)
"""


def run(folder: Path, devices: int, dropout: float, epochs: int = 3, code: str = SCRIPT) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(code)
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "PL_", "LOCAL_RANK"))}
    done = subprocess.run(
        [sys.executable, str(script), str(devices), str(dropout), str(epochs), str(folder)],
        env=outside | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results" / "ptb" / "tiny" / "row" / "seed3.json").read_text())


@pytest.mark.slow
def test_two_processes_train_and_report_as_one_with_the_same_global_batch(tmp_path: Path) -> None:
    one, two = run(tmp_path / "one", 1, 0.0), run(tmp_path / "two", 2, 0.0)
    assert len(one["curve"]) == len(two["curve"]) == 3
    for alone, together in zip(one["curve"], two["curve"], strict=True):
        for name in ("train_ppl", "valid_ppl", "valid_ppl_lua", "train_eval_ppl", "gradient_norm", "learning_rate"):
            assert together[name] == pytest.approx(alone[name], rel=1e-6), name
    assert two["metrics"]["test_ppl"] == pytest.approx(one["metrics"]["test_ppl"], rel=1e-6)
    assert two["provenance"]["hardware"]["devices"] == 2


@pytest.mark.slow
def test_processes_never_draw_the_same_masks_not_even_after_a_resumption(tmp_path: Path) -> None:
    masks = []
    for epochs in (2, 3):
        report = run(tmp_path / "two", 2, 0.5, epochs)
        masks += [json.loads((tmp_path / "two" / f"masks{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(drawn) for drawn in masks] == [6, 6, 3, 3]  # windows of an epoch: 3
    everything = [tuple(mask) for drawn in masks for mask in drawn]
    assert len(set(everything)) == len(everything)
    assert len(report["curve"]) == 3
    assert len(report["provenance"]["resumed"]) == 1


@pytest.mark.slow
def test_two_processes_evaluate_every_rated_text_once_and_by_its_review(tmp_path: Path) -> None:
    one, two = (run(tmp_path / str(n), n, 0.0, epochs=1, code=SENTIMENT) for n in (1, 2))
    in_curve = {"test_rmse", "test_rmse_review", "test_rmse_mc", "test_rmse_review_mc", "train_rmse", "valid_rmse"}
    in_test = {"train_rmse_all", "constant_rmse", "valid_rmse_mc"}
    for suffix in ("", "_mc"):
        in_test |= {
            f"{name}{suffix}" for name in ("tau", "test_log_likelihood", "test_coverage_50", "test_coverage_90")
        }
    assert in_curve <= one["curve"][0].keys()
    for name in in_curve:
        assert two["curve"][0][name] == pytest.approx(one["curve"][0][name], rel=1e-5), name
    for name in in_curve | in_test:
        assert two["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-5), name
    assert two["metrics"]["test_rmse_review"] != pytest.approx(two["metrics"]["test_rmse"], rel=0.01)
