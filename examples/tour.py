"""A tour, from three lines to overfitting and its cure: `.venv/bin/python examples/tour.py`, about two minutes.

The parts between `# %%` are cells for those who open this file as a notebook (VS Code, PyCharm, Jupyter with jupytext).
It draws `tour.png` into the current folder, and fetches the demo's snippets into `data` unless they are there.
"""

# %% Three lines: a layer in place of torch.nn.LSTM
import logging
import sys
import warnings
from pathlib import Path

import lightning as L
import matplotlib.pyplot as plt
import torch
from torch import nn

from variational_rnn import VariationalLSTM, mc_dropout

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # it says of each trainer what the machine has
warnings.filterwarnings("ignore", module="lightning")
torch.set_num_threads(1)  # all of this is small
torch.manual_seed(0)

lstm = VariationalLSTM(10, 20, input_dropout=0.35, recurrent_dropout=0.2)  # p is the probability to DROP
output, (h, c) = lstm(torch.randn(7, 3, 10))  # 7 steps of 3 sequences
print("output", tuple(output.shape))

# %% One mask per sequence, the same in all time steps
# Masks are values: drawn by `sample_masks`, or by the layer itself in training. Two calls with the same masks are two
# uses of the same network; in eval mode there are none.
masks = lstm.sample_masks(batch_size=3)
print("input mask ", tuple(masks.layers[0].input.shape), "and of h", tuple(masks.layers[0].recurrent.shape), "no time")
x = torch.randn(7, 3, 10)
print("same masks, same output: ", torch.equal(lstm(x, masks=masks)[0], lstm(x, masks=masks)[0]))
print("other masks, other output:", not torch.equal(lstm(x)[0], lstm(x)[0]))


# %% What the masks are good for: a network that says when it does not know
# It learns to continue sine waves with periods from 8 to 16 steps, and is asked about all from 4 to 32. Each of 100
# sampled networks answers. Where the model has seen nothing of the kind they differ more: for short periods less than
# they are wrong, but enough to be warned.
class Forecaster(nn.Module):
    """Predicts the next value of a series [T, B, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = VariationalLSTM(1, 64, recurrent_dropout=0.25)
        self.output = nn.Linear(64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The value that follows, [B]."""
        return self.output(self.lstm(x)[0][-1])[:, 0]


def waves(periods: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sine waves of 32 steps with random phases, [32, B, 1], and the value that follows each, [B]."""
    phases = 2 * torch.pi * torch.rand(len(periods))
    series = torch.sin(2 * torch.pi * torch.arange(33)[:, None] / periods + phases)
    return series[:32, :, None], series[32]


forecaster = Forecaster()
optimizer = torch.optim.Adam(forecaster.parameters(), lr=3e-3)
for _ in range(1500):
    series, following = waves(8 + 8 * torch.rand(64))
    loss = (forecaster(series) - following).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

periods = torch.arange(4, 32.5, 0.5)
series, following = waves(periods.repeat_interleave(20))
forecaster.eval()
with torch.no_grad(), mc_dropout(forecaster):
    samples = torch.stack([forecaster(series) for _ in range(100)])
error = (samples.mean(dim=0) - following).abs().view(-1, 20).mean(dim=1)
spread = samples.std(dim=0).view(-1, 20).mean(dim=1)
known = (periods >= 8) & (periods <= 16)
for name, where in (("seen in training", known), ("never seen", ~known)):
    print(f"periods {name}: mean error {error[where].mean():.2f}, mean spread {spread[where].mean():.2f}")

# %% The experiment of the paper, small: ratings of film reviews, with and without dropout
# The same data module and LightningModule as `make demo`; configs/sentiment has the paper's own settings.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the experiments are; only the layers are installed
from datamodules import SnippetRatings  # noqa: E402
from lightning_modules import SentimentRegressor  # noqa: E402
from training.recorder import recorder_of  # noqa: E402

curves = {}
for p in (0.0, 0.5):
    L.seed_everything(0, verbose=False)
    data = SnippetRatings("data")
    model = SentimentRegressor(
        vocab_size=data.vocab_size,
        embedding_size=64,
        hidden_size=64,
        learning_rate=2e-3,
        word_dropout=p,
        input_dropout=p,
        recurrent_dropout=p,
        output_dropout=p,
    )
    trainer = L.Trainer(
        max_epochs=10,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    recorder = recorder_of(trainer)  # keeps the metrics of each epoch
    trainer.fit(model, datamodule=data)
    curves[p] = recorder.curve

# %% Its opinion of other texts, and how sure it is: each of 50 sampled networks rates them
ratings = model.rate(
    ["a warm and very funny film .", "dull , stupid and far too long .", "the film is two hours long ."]
)
for mean, std in zip(ratings.mean, ratings.std, strict=True):
    print(f"rating {mean:+.1f} +/- {std:.1f}, of -4 to 4")

# %% The picture
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.axvspan(8, 16, color="0.92", label="periods seen in training")
left.plot(periods, error, label="error of the mean")
left.plot(periods, spread, label="spread of 100 sampled networks")
left.set(xlabel="period of the wave", title="Uncertainty grows where nothing was seen", yscale="log")
left.legend(loc="upper right")
for (p, curve), colour in zip(curves.items(), ("tab:blue", "tab:red"), strict=True):
    epochs = [entry["epoch"] for entry in curve]
    right.plot(epochs, [entry["train_rmse"] for entry in curve], "--", color=colour)
    right.plot(epochs, [entry["test_rmse"] for entry in curve], color=colour, label=f"p = {p:g}")
right.set(xlabel="epoch", title="RMSE of ratings: training dashed, held out solid")
right.legend(frameon=False)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
figure.savefig("tour.png", dpi=150)
print("see tour.png")
