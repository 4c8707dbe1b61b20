"""Regression of a rating on a text: the sentiment experiment."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanSquaredError

from lightning_modules.experiment import Experiment
from variational_rnn import VariationalDropout, VariationalEmbedding, VariationalGRU, VariationalLSTM, mc_dropout


class SentimentRegressor(Experiment):
    """Embedding, one recurrent layer, and a linear output on its last state (protocol section 2.2).

    A batch is (words [T, B], ratings [B]). The network is fitted to standardised ratings by mean squared error plus
    `l2` times the sum of all squared parameters; every error is reported as RMSE in rating units.

    The original experiment has no validation set: its curves are the error per epoch on the test set and on the first
    training chunks, which the data module therefore serves as two validation loaders.

    This is the paper's experiment with modern parts. The original code differs: hard-sigmoid gates, recurrent weights
    1.1 times orthogonal, a GRU whose candidate is a logistic sigmoid and whose reset gate acts before the product, one
    bias per gate, and dropout scaled at test time (protocol sections 2.2 and 4, choices 17 and 18).

    Logged: `train_loss` (standardised, dropout on, with the penalty), and by the dropout approximation per epoch
    `test_rmse` and `train_rmse`; at the end `test_rmse_mc`, the RMSE of the mean of `mc_samples` sampled networks, and
    `constant_rmse`, that of the training mean as prediction.

    Args:
        vocab_size: number of embedding rows V.
        cell: "lstm" or "gru".
        embedding_size: of the word vectors.
        hidden_size: of the recurrent layer, H.
        word_dropout: probability to drop a word type from the embedding (p_E).
        input_dropout: probability to drop a unit of the recurrent layer's input (p_W).
        recurrent_dropout: probability to drop a unit of h_{t-1} (p_U).
        output_dropout: probability to drop a unit of the last state (p_dense).
        gate_masks: "untied" as in the experiment's code, or "tied".
        time_masks: "constant" for variational masks, "fresh" for naive ones.
        learning_rate: of Adam.
        l2: weight of the penalty on all parameters, including the embedding.
        mc_samples: number K of sampled networks in the test; 0 for none.
        backend: of the recurrent layer.

    Raises:
        ValueError: a probability is not in [0, 1), or an unknown choice.
    """

    monitor = "test_rmse"
    target_mean: Tensor
    target_std: Tensor

    def __init__(
        self,
        vocab_size: int,
        cell: Literal["lstm", "gru"] = "lstm",
        embedding_size: int = 128,
        hidden_size: int = 128,
        word_dropout: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        output_dropout: float = 0.0,
        gate_masks: Literal["tied", "untied"] = "untied",
        time_masks: Literal["constant", "fresh"] = "constant",
        learning_rate: float = 1e-3,
        l2: float = 0.0,
        mc_samples: int = 0,
        backend: Literal["auto", "reference"] = "auto",
    ) -> None:
        super().__init__()
        if cell not in ("lstm", "gru"):
            raise ValueError(f"cell must be 'lstm' or 'gru', got {cell!r}")
        if mc_samples < 0:
            raise ValueError(f"mc_samples must be at least 0, got {mc_samples}")
        # What is chosen at test time must not come back from a checkpoint over the command line's value.
        self.save_hyperparameters(ignore=["mc_samples", "backend"])
        self.learning_rate = learning_rate
        self.l2 = l2
        self.mc_samples = mc_samples

        self.embedding = VariationalEmbedding(vocab_size, embedding_size, word_dropout=word_dropout)
        layer = VariationalLSTM if cell == "lstm" else VariationalGRU
        self.rnn: VariationalLSTM | VariationalGRU = layer(
            embedding_size,
            hidden_size,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            gate_masks=gate_masks,
            time_masks=time_masks,
            backend=backend,
        )
        self.output_dropout = VariationalDropout(output_dropout)
        self.output = nn.Linear(hidden_size, 1)
        self._initialise()

        self.register_buffer("target_mean", torch.tensor(0.0))
        self.register_buffer("target_std", torch.tensor(1.0))
        self.test_rmse, self.train_rmse, self.test_rmse_mc, self.constant_rmse = (
            MeanSquaredError(squared=False) for _ in range(4)
        )

    def _initialise(self) -> None:
        """Keras' defaults: Glorot input weights, orthogonal recurrent ones, zero biases, forget bias 1."""
        nn.init.uniform_(self.embedding.weight, -0.05, 0.05)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        [[weight_ih, weight_hh, bias_ih, bias_hh]] = self.rnn.all_weights
        for gate_input in weight_ih.split(self.rnn.hidden_size):
            nn.init.xavier_uniform_(gate_input)
        for gate_recurrent in weight_hh.split(self.rnn.hidden_size):
            nn.init.orthogonal_(gate_recurrent)
        nn.init.zeros_(bias_ih)
        nn.init.zeros_(bias_hh)
        if isinstance(self.rnn, VariationalLSTM):
            nn.init.ones_(bias_ih.split(self.rnn.hidden_size)[1])

    def forward(self, words: Tensor) -> Tensor:
        """Predict the rating of each text, in rating units.

        Args:
            words: [T, B] ids.

        Returns:
            [B]. Inside `mc_dropout`, and in training, of one sampled network for each text.
        """
        return self._standardised(words) * self.target_std + self.target_mean

    def _standardised(self, words: Tensor) -> Tensor:
        output, _ = self.rnn(self.embedding(words))
        return self.output(self.output_dropout(output[-1])).squeeze(-1)

    def sample(self, words: Tensor, samples: int) -> Tensor:
        """Predictions [K, B] in rating units of K sampled networks (MC dropout)."""
        with mc_dropout(self):
            return torch.stack([self(words) for _ in range(samples)])

    # --- training -----------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Take the training ratings' mean and standard deviation from the data."""
        super().on_fit_start()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.target_mean.fill_(data.rating_mean)
        self.target_std.fill_(data.rating_std)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Mean squared error on standardised ratings, plus the penalty."""
        words, ratings = batch
        loss = F.mse_loss(self._standardised(words), (ratings - self.target_mean) / self.target_std)
        if self.l2:
            loss = loss + self.l2 * sum(p.square().sum() for p in self.parameters())
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(ratings), sync_dist=True)
        self.count_words(words)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    # --- evaluation ---------------------------------------------------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int, dataloader_idx: int = 0) -> None:
        """Add the errors of a batch: loader 0 serves the test set, loader 1 the first part of the training set."""
        words, ratings = batch
        (self.test_rmse if dataloader_idx == 0 else self.train_rmse).update(self(words), ratings)

    def on_validation_epoch_end(self) -> None:
        """Log both errors of the curve."""
        self._log_errors("test_rmse", "train_rmse")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Evaluate by the dropout approximation, by MC if mc_samples > 0, and the constant predictor."""
        words, ratings = batch
        self.test_rmse.update(self(words), ratings)
        self.constant_rmse.update(self.target_mean.expand_as(ratings), ratings)
        if self.mc_samples:
            self.test_rmse_mc.update(self.sample(words, self.mc_samples).mean(dim=0), ratings)

    def on_test_epoch_end(self) -> None:
        """Log the test errors."""
        self._log_errors("test_rmse", "constant_rmse", *(["test_rmse_mc"] if self.mc_samples else []))
        if self.mc_samples:
            self.log("mc_samples", float(self.mc_samples))

    def _log_errors(self, *names: str) -> None:
        for name in names:
            metric = getattr(self, name)
            self.log(name, metric.compute(), prog_bar=True)
            metric.reset()

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> dict[str, Tensor]:
        """Predicted ratings of a batch [B]: `approximation`, and the `mean` and `std` [B] of mc_samples networks."""
        words, _ = batch
        prediction: dict[str, Any] = {"approximation": self(words)}
        if self.mc_samples:
            samples = self.sample(words, self.mc_samples)
            prediction |= {"mean": samples.mean(dim=0), "std": samples.std(dim=0, correction=0)}
        return prediction
