"""Our first steps beside those of the authors' public log, on the real Penn Treebank."""

import json
import os
import statistics
from pathlib import Path

import pandas as pd
import pytest
import torch

from datamodules import PennTreebank
from lightning_modules import LanguageModel

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "results/ptb/gal1250/variational_untied/seed0.json"
DATA = Path(os.environ.get("DATA_DIR", "data"))


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "ptb").is_dir(), reason=f"no folder ptb in {DATA}: set DATA_DIR")
def test_the_gradient_of_the_first_steps_has_the_size_that_the_authors_logged():
    """They print 120 at step 10 of 2 x 1250 units; a loss averaged over time would give a 35th of that."""
    data = PennTreebank(DATA, batch_size=20, window=35)
    data.setup()
    dropout = {"word_dropout": 0.3, "input_dropout": 0.5, "recurrent_dropout": 0.3, "output_dropout": 0.5}
    model = LanguageModel(10_000, 1250, **dropout, gate_masks="untied", word_masks="token", init_scale=0.04)
    [optimizer], _ = model.configure_optimizers()
    norms, state = [], None
    for step, (inputs, targets) in enumerate(data.train_dataloader()):
        if step == 12:
            break
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _, state = model.loss(inputs, targets, state)
        state = tuple(part.detach() for part in state)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        optimizer.clip(norm, 10.0)
        optimizer.step()
        norms.append(norm.item())
    # From step to step they vary tenfold, so it is the size that is compared.
    assert 120 / 4 < statistics.geometric_mean(norms[2:]) < 120 * 4


@pytest.mark.skipif(not RESULT.exists(), reason="1250 units were not run: make reproduce-ptb SIZE=gal1250")
def test_our_run_of_1250_units_follows_the_authors_log():
    """Within a few per cent from epoch 3 on (protocol 1.7)."""
    log = pd.read_csv(ROOT / "reproduction/gal_1250_untied.csv", index_col="epoch")["valid_ppl_as_printed"]
    for entry in json.loads(RESULT.read_text())["curve"]:
        if entry["epoch"] >= 3:
            assert entry["valid_ppl_lua"] == pytest.approx(log[entry["epoch"]], rel=0.05)
