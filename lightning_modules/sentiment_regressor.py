"""Regression of a rating on a text: the sentiment experiment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, MeanSquaredError
from torchmetrics.functional import mean_squared_error

from datamodules.checks import check_count, check_number
from datamodules.rated_sequences import RatedSequences, SharedBatches
from lightning_modules.keras import KerasGRU, KerasLSTM
from lightning_modules.metrics import Predictions, coverage, fitted_tau, rmse_by_review
from lightning_modules.networks import NetworkMasks
from lightning_modules.recurrent_module import TEST, TRAINING, VALIDATION, RecurrentModule, check_probabilities
from lightning_modules.texts import Ratings, rate
from variational_rnn import (
    VariationalDropout,
    VariationalEmbedding,
    VariationalGRU,
    VariationalLSTM,
    mc_dropout,
    regression_log_likelihood,
)
from variational_rnn.masks import check_choice

PAD = 0  # stands in front of shorter texts

Place = tuple[slice, int]  # which texts of a batch, and how many it has


def _place(loaders: Any, index: int, batch_index: int) -> Place | None:
    """Which texts of a batch this process has; None (all of them) if the loader is not from our data modules."""
    loader = loaders[index] if isinstance(loaders, Sequence) else loaders
    return loader.sampler.place(batch_index) if isinstance(loader.sampler, SharedBatches) else None


class SentimentRegressor(RecurrentModule):
    """Embedding, one recurrent layer, and a linear output on its last state (protocol section 2.2).

    A batch is (words [T, B], ratings [B], reviews [B]). Training needs a data module, such as `RatedText`, which says
    how ratings are standardised; evaluation takes any DataLoader of such batches. The network is fitted to standardised
    ratings by mean squared error plus a penalty; every error is reported as RMSE in rating units.

    The original experiment has no validation set: its curves are the error per epoch on the test set and on the first
    training chunks, which the data module therefore serves as the first two validation loaders.

    By default the parts are modern. Options set what the original code did differently, with the values of
    `configs/sentiment/experiment.yaml`: gate_activation, candidate_activation, reset_gate, recurrent_gain,
    dropout_scale, word_mask_sharing, penalty, mask_pads.

    Logged in each epoch: `train_mse` (standardised, dropout on), with the penalty `train_loss`; by the approximation
    `test_rmse`, `test_rmse_review` (mean prediction over the chunks of a review), `train_rmse` (first training chunks)
    and, if the data have a validation split, `valid_rmse`; with mc_every, also `test_rmse_mc` and
    `test_rmse_review_mc`, of `mc_epoch_samples` networks.
    By the test: these errors, those of MC by the mean of `mc_samples` networks, `train_rmse_all` (all training chunks),
    `constant_rmse` (the training mean as prediction); and if there is a validation split, the `tau` that makes its
    ratings likeliest, `test_log_likelihood` (nats per chunk, of ratings in rating units) with that tau, and
    `test_coverage_50` and `_90` (share of ratings within predictive intervals), of one Gaussian around the
    approximation, and with `_mc` of one around each sample.

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
        word_mask_sharing: "sequence" draws the dropped word types for each text; "batch" for a whole minibatch.
        dropout_scale: "training" divides by 1-p in training; "test" multiplies by 1-p in evaluation.
        gate_activation: "sigmoid" or "hard_sigmoid".
        candidate_activation: of a GRU, "tanh" or "sigmoid"; None is "tanh".
        reset_gate: of a GRU, whether it acts "after" or "before" the recurrent product; None is "after".
        recurrent_gain: recurrent weights start orthogonal times this.
        mask_pads: whether the recurrent layer skips the pads; if not, it reads them as a word.
        learning_rate: of Adam.
        reference_batch_size: batch size that learning_rate is for: with k times as many texts it is multiplied by k.
            None, the default, leaves it alone.
        l2: weight of the penalty, a sum of squared parameters that is added to the loss.
        penalty: "all": once on all parameters; "as_executed": once on embedding and linear output, and of the recurrent
            layer, whose gates overwrote each other's regularisers, four times on the output gate of an LSTM,
            three times on the candidate of a GRU.
        weight_decay: decoupled from the gradient, as in AdamW, on all parameters.
        mc_samples: number K of sampled networks in the test; 0 for none.
        mc_every: every so many epochs the test chunks are also predicted by `mc_epoch_samples` networks; 0: never.
        mc_epoch_samples: number of networks then.
        monitor: metric, lower is better, of the best epoch.
        backend: of the recurrent layer.

    Attributes:
        noise: `tau` and `tau_mc` that a test has found; in the checkpoint that `reproduce` has tested, too.

    Raises:
        ValueError: a probability is not in [0, 1), a number out of range, or an unknown or impossible choice.
    """

    training_means = training_metrics = ("train_mse", "train_loss")
    rates_texts = True
    sampled_dropout = ("word_dropout", "input_dropout", "recurrent_dropout", "output_dropout")
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
        word_mask_sharing: Literal["sequence", "batch"] = "sequence",
        dropout_scale: Literal["training", "test"] = "training",
        gate_activation: Literal["sigmoid", "hard_sigmoid"] = "sigmoid",
        candidate_activation: Literal["tanh", "sigmoid"] | None = None,
        reset_gate: Literal["after", "before"] | None = None,
        recurrent_gain: float = 1.0,
        mask_pads: bool = False,
        learning_rate: float = 1e-3,
        reference_batch_size: int | None = None,
        l2: float = 0.0,
        penalty: Literal["all", "as_executed"] = "all",
        weight_decay: float = 0.0,
        mc_samples: int = 0,
        mc_every: int = 0,
        mc_epoch_samples: int = 10,
        monitor: Literal["test_rmse", "valid_rmse"] = "test_rmse",
        backend: Literal["auto", "reference"] = "auto",
    ) -> None:
        super().__init__()
        check_choice("cell", cell, ("lstm", "gru"))
        check_choice("dropout_scale", dropout_scale, ("training", "test"))
        check_choice("gate_activation", gate_activation, ("sigmoid", "hard_sigmoid"))
        check_choice("candidate_activation", candidate_activation, ("tanh", "sigmoid", None))
        check_choice("reset_gate", reset_gate, ("after", "before", None))
        check_choice("penalty", penalty, ("all", "as_executed"))
        check_choice("monitor", monitor, ("test_rmse", "valid_rmse"))
        # NumPy's numbers become Python's, which a checkpoint can hold.
        vocab_size, embedding_size, hidden_size, mc_epoch_samples = check_count(
            1,
            vocab_size=vocab_size,
            embedding_size=embedding_size,
            hidden_size=hidden_size,
            mc_epoch_samples=mc_epoch_samples,
        )
        mc_samples, mc_every = check_count(0, mc_samples=mc_samples, mc_every=mc_every)
        if reference_batch_size is not None:
            [reference_batch_size] = check_count(1, reference_batch_size=reference_batch_size)
        word_dropout, input_dropout, recurrent_dropout, output_dropout = check_probabilities(
            word_dropout=word_dropout,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            output_dropout=output_dropout,
        )
        learning_rate, l2, weight_decay = check_number(0, learning_rate=learning_rate, l2=l2, weight_decay=weight_decay)
        [recurrent_gain] = check_number(recurrent_gain=recurrent_gain)
        # What is chosen at test time must not come back from a checkpoint over the command line's value.
        self.save_hyperparameters(ignore=["mc_samples", "mc_every", "mc_epoch_samples", "backend"])
        self.monitor = monitor
        self.learning_rate = learning_rate
        self.reference_batch_size = reference_batch_size
        self.l2 = l2
        self.penalty = penalty
        self.weight_decay = weight_decay
        self.mask_pads = mask_pads
        self.mc_samples = mc_samples
        self.mc_every = mc_every
        self.mc_epoch_samples = mc_epoch_samples

        self.embedding = VariationalEmbedding(
            vocab_size, embedding_size, word_dropout=word_dropout, mask_sharing=word_mask_sharing
        )
        layer: dict[str, Any] = {
            "input_size": embedding_size,
            "hidden_size": hidden_size,
            "input_dropout": input_dropout,
            "recurrent_dropout": recurrent_dropout,
            "gate_masks": gate_masks,
            "time_masks": time_masks,
            "backend": backend,
        }
        as_in_2015: dict[str, Any] = {"gate_activation": gate_activation, "dropout_scale": dropout_scale}
        is_modern = gate_activation == "sigmoid" and dropout_scale == "training"
        self.rnn: VariationalLSTM | VariationalGRU
        if cell == "lstm":
            if candidate_activation or reset_gate:
                raise ValueError("candidate_activation and reset_gate are of a GRU; leave them out for an LSTM")
            self.rnn = VariationalLSTM(**layer) if is_modern else KerasLSTM(**as_in_2015, **layer)
        else:
            as_in_2015 |= {
                "candidate_activation": candidate_activation or "tanh",
                "reset_gate": reset_gate or "after",
            }
            is_modern &= candidate_activation in (None, "tanh") and reset_gate in (None, "after")
            self.rnn = VariationalGRU(**layer) if is_modern else KerasGRU(**as_in_2015, **layer)
        if mask_pads and not is_modern:
            raise ValueError("mask_pads=True needs torch's recurrent layers: the layers of 2015 read the pads")
        self.output_dropout = VariationalDropout(output_dropout)
        self.output = nn.Linear(hidden_size, 1)
        scales = dropout_scale == "test"
        self.embedding_scale = 1.0 - word_dropout if scales else 1.0
        self.output_scale = 1.0 - output_dropout if scales else 1.0
        self._initialise(recurrent_gain)

        self.noise: dict[str, float] = {}
        # Float64, as the ratings: around a large mean, float32 would round their differences away.
        self.register_buffer("target_mean", torch.tensor(0.0, dtype=torch.float64))
        self.register_buffer("target_std", torch.tensor(1.0, dtype=torch.float64))
        self.train_mse, self.train_loss = (MeanMetric(nan_strategy="disable").set_dtype(torch.float64) for _ in "12")
        # By loader: test, training and validation chunks; and samples of the first and last.
        self.seen: Any
        self.sampled: Any
        self.seen, self.sampled = (nn.ModuleList(Predictions() for _ in range(3)) for _ in range(2))
        self.constant_rmse = MeanSquaredError(squared=False).set_dtype(torch.float64)

    def _initialise(self, recurrent_gain: float) -> None:
        """Keras' defaults: Glorot input weights, orthogonal recurrent ones, zero biases, forget bias 1."""
        nn.init.uniform_(self.embedding.weight, -0.05, 0.05)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        [[weight_ih, weight_hh, bias_ih, bias_hh]] = self.rnn.all_weights
        for gate_input in weight_ih.split(self.rnn.hidden_size):
            nn.init.xavier_uniform_(gate_input)
        for gate_recurrent in weight_hh.split(self.rnn.hidden_size):
            nn.init.orthogonal_(gate_recurrent, gain=recurrent_gain)
        nn.init.zeros_(bias_ih)
        nn.init.zeros_(bias_hh)
        if isinstance(self.rnn, VariationalLSTM):
            nn.init.ones_(bias_ih.split(self.rnn.hidden_size)[1])

    def sample_masks(self, batch_size: int, steps: int, generator: torch.Generator | None = None) -> NetworkMasks:
        """Draw one network for each of `batch_size` texts.

        Args:
            batch_size: B.
            steps: T, where masks are fresh.
            generator: source of randomness; torch's global one by default.
        """
        weight = self.output.weight
        return NetworkMasks(
            self.embedding.sample_masks(batch_size, generator=generator),
            self.rnn.sample_masks(batch_size, steps, generator=generator),
            self.output_dropout.sample_masks(
                batch_size, self.rnn.hidden_size, device=weight.device, dtype=weight.dtype, generator=generator
            ),
        )

    def _masks(self, words: Tensor, place: Place | None, *key: int) -> NetworkMasks:
        """Masks of this process's texts of a batch."""
        steps, own = words.shape
        texts, total = place or (slice(own), own)
        masks = self.sample_masks(total, steps, self.generator(*key))
        return masks if total == own else masks.select(list(range(total))[texts])

    def forward(self, words: Tensor, masks: NetworkMasks | None = None) -> Tensor:
        """Predict the rating of each text, in rating units.

        Args:
            words: [T, B] ids.
            masks: of `sample_masks`; sampled in training, none in eval, by default.

        Returns:
            [B], float64. Inside `mc_dropout`, and in training, of one sampled network for each text.
        """
        return self._standardised(words, masks).double() * self.target_std + self.target_mean

    def _standardised(self, words: Tensor, masks: NetworkMasks | None = None) -> Tensor:
        word_mask, rnn_masks, output_mask = masks or (None, None, None)
        if self.mask_pads:  # they go behind the text, whose last word is then read from
            lengths = (words != PAD).sum(dim=0).clamp_min(1)
            steps, texts = (torch.arange(size, device=words.device) for size in words.shape)
            words = words.gather(0, (steps[:, None] + len(words) - lengths) % len(words))
        output, _ = self.rnn(self.embedding(words, word_mask) * self.embedding_scale, masks=rnn_masks)
        last = output[lengths - 1, texts] if self.mask_pads else output[-1]
        return self.output(self.output_dropout(last, output_mask) * self.output_scale).squeeze(-1)

    def sample(self, words: Tensor, samples: int, *key: int, place: Place | None = None) -> Tensor:
        """Predictions [K, B] in rating units of K sampled networks (MC dropout), without autocast.

        Args:
            words: [T, B] ids.
            samples: K.
            key: of the batch's random numbers, as in `generator`.
            place: which texts of a batch they are, and how many it has; all of it by default.
        """
        with mc_dropout(self), torch.autocast(self.device.type, enabled=False):
            return torch.stack([self(words, self._masks(words, place, *key, k)) for k in range(samples)])

    # --- training -----------------------------------------------------------------------------------------------

    def validation_metrics(self) -> list[str]:
        """Errors on test and training chunks, on the validation set if there is one, and by MC if mc_every is set."""
        has_validation = "validation" in getattr(self.trainer.datamodule, "chunks", ())  # type: ignore[attr-defined]
        by_mc = ["test_rmse_mc", "test_rmse_review_mc"] if self.mc_every else []
        return ["test_rmse", "test_rmse_review", "train_rmse", *(["valid_rmse"] if has_validation else []), *by_mc]

    def on_fit_start(self) -> None:
        """Take the training ratings' mean and standard deviation from the data.

        Raises:
            ValueError: no data module provides them; or the best epoch is to be chosen on held-out reviews, and there
                are none.
        """
        super().on_fit_start()
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, RatedSequences):
            raise ValueError(
                "SentimentRegressor is trained on standardised ratings, whose mean and spread a DataLoader does not "
                "provide: use Trainer.fit(model, datamodule=...) with RatedText or another RatedSequences, "
                f"got {'no data module' if data is None else type(data).__name__}"
            )
        if self.monitor == "valid_rmse" and "validation" not in data.chunks:
            raise ValueError("monitor='valid_rmse' needs held-out reviews: set validation_share of the data")
        self.target_mean.fill_(data.rating_mean)
        self.target_std.fill_(data.rating_std)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the precisions of the noise that a test has found."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["noise"] = self.noise

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits, and take over the noise of its weights."""
        super().on_load_checkpoint(checkpoint)
        self.noise = {} if self.is_fitting else checkpoint.get("noise", {})

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_index: int) -> Tensor:
        """Mean squared error on standardised ratings, plus the penalty."""
        words, ratings, _ = batch
        batches = self.trainer.train_dataloader.sampler  # type: ignore[union-attr]
        _, total = place = batches.place(batch_index)
        masks = self._masks(words, place, TRAINING, self.current_epoch, batch_index // batches.parts)
        error = F.mse_loss(self._standardised(words, masks), self._targets(ratings))
        penalty = self.l2 * self._sum_of_squares() if self.l2 else torch.zeros_like(error)
        # What is taken is the mean over processes, and parts, which of the last batch may differ in size.
        takers = batches.world_size * batches.parts
        for metric, value in ((self.train_mse, error), (self.train_loss, error + penalty)):
            metric.update(value.detach().expand(len(ratings)))  # text by text: "disable" ignores weights
        return error * (len(ratings) * takers / total) + penalty

    def _targets(self, ratings: Tensor) -> Tensor:
        """Standardise ratings, in the precision of the parameters."""
        mean, std, dtype = self.target_mean, self.target_std, self.output.weight.dtype
        # In float64, a large mean is subtracted first: float32 would round differences away. The paper's need none.
        origin = torch.where(mean.abs() > 100 * std, mean, 0.0)
        return ((ratings - origin).to(dtype) - (mean - origin).to(dtype)) / std.to(dtype)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training errors, with dropout on."""
        self.log("train_mse", self.train_mse.compute())
        self.log("train_loss", self.train_loss.compute())
        super().on_train_epoch_end()

    def _sum_of_squares(self) -> Tensor:
        if self.penalty == "all":
            return torch.stack([p.square().sum() for p in self.parameters()]).sum()
        [[weight_ih, weight_hh, bias_ih, *_]] = self.rnn.all_weights
        size, times = self.rnn.hidden_size, len(weight_ih) // self.rnn.hidden_size
        once = torch.stack([p.square().sum() for p in (self.embedding.weight, *self.output.parameters())]).sum()
        return once + times * torch.stack([p[-size:].square().sum() for p in (weight_ih, weight_hh, bias_ih)]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, with decoupled decay if any."""
        return torch.optim.AdamW(self.parameters(), lr=self.scaled_learning_rate(), weight_decay=self.weight_decay)

    # --- evaluation ---------------------------------------------------------------------------------------------

    def _predict(self, words: Tensor) -> Tensor:
        """Ratings [B] by the dropout approximation, without autocast, whatever precision they are trained in."""
        with torch.autocast(self.device.type, enabled=False):
            return self(words)

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_index: int, dataloader_idx: int = 0) -> None:
        """Predict a batch: loader 0 serves the test set, 1 the first training chunks, 2 the validation set, if any."""
        words, ratings, reviews = batch
        self.seen[dataloader_idx].update(self._predict(words), ratings, reviews)
        if dataloader_idx == 0 and self.mc_every and (self.current_epoch + 1) % self.mc_every == 0:
            place = _place(self.trainer.val_dataloaders, 0, batch_index)
            key = (VALIDATION, self.current_epoch, batch_index)
            self.sampled[0].update(self.sample(words, self.mc_epoch_samples, *key, place=place), ratings, reviews)

    def on_validation_epoch_end(self) -> None:
        """Log the errors of the curve."""
        self._log_errors(("test_rmse", "train_rmse", "valid_rmse"))

    def test_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_index: int, dataloader_idx: int = 0) -> None:
        """Predict a batch, of which only loader 1, all training chunks, is not predicted by MC, too."""
        words, ratings, reviews = batch
        self.seen[dataloader_idx].update(self._predict(words), ratings, reviews)
        if dataloader_idx == 0:
            self.constant_rmse.update(self.target_mean.expand_as(ratings), ratings)
        if dataloader_idx != 1 and self.mc_samples:
            place = _place(self.trainer.test_dataloaders, dataloader_idx, batch_index)
            samples = self.sample(words, self.mc_samples, TEST, dataloader_idx, batch_index, place=place)
            self.sampled[dataloader_idx].update(samples, ratings, reviews)

    def on_test_epoch_end(self) -> None:
        """Log the test errors, and what the samples say about the predictive distribution."""
        self._log_predictive_distribution()
        self._log_errors(("test_rmse", "train_rmse_all", "valid_rmse"))
        self.log("constant_rmse", self.constant_rmse.compute())
        self.constant_rmse.reset()
        if self.mc_samples:
            self.log("mc_samples", float(self.mc_samples))

    def _log_errors(self, names: Sequence[str]) -> None:
        """Log and forget the predictions of each loader: RMSE, that by review of the test, and of samples' means."""
        for name, seen, sampled in zip(names, self.seen, self.sampled, strict=True):
            for suffix, predictions in (("", seen), ("_mc", sampled)):
                if not predictions.update_called:
                    continue
                networks, ratings, reviews = predictions.compute()
                mean = networks.mean(dim=1)
                self.log(f"{name}{suffix}", mean_squared_error(mean, ratings, squared=False), prog_bar=not suffix)
                if name == "test_rmse":
                    self.log(f"{name}_review{suffix}", rmse_by_review(mean, ratings, reviews))
                predictions.reset()

    def _log_predictive_distribution(self) -> None:
        """With tau fitted to the validation set: log likelihood and calibration on the test set."""
        for suffix, predictions in (("", self.seen), ("_mc", self.sampled)):
            test, _, validation = predictions
            if not validation.update_called:
                continue
            networks, ratings, _ = validation.compute()
            tau = fitted_tau(networks.T, ratings, float(self.target_std))
            networks, ratings, _ = (value.double() for value in test.compute())
            self.log(f"tau{suffix}", tau)
            self.noise[f"tau{suffix}"] = tau
            likelihood = regression_log_likelihood(networks.T, ratings, tau).mean()
            self.log(f"test_log_likelihood{suffix}", likelihood)
            for percent in (50, 90):
                self.log(f"test_coverage_{percent}{suffix}", coverage(networks.T, ratings, tau, percent / 100))

    def predict_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_index: int) -> dict[str, Tensor]:
        """Predicted ratings of a batch [B]: `approximation`, and the `mean` and `std` [B] of mc_samples networks."""
        words, _, _ = batch
        prediction: dict[str, Any] = {"approximation": self._predict(words)}
        if self.mc_samples:
            place = _place(self.trainer.predict_dataloaders, 0, batch_index)
            samples = self.sample(words, self.mc_samples, TEST, 0, batch_index, place=place)
            prediction |= {"mean": samples.mean(dim=0), "std": samples.std(dim=0, correction=0)}
        return prediction

    # --- other texts --------------------------------------------------------------------------------------------

    def rate(self, texts: Iterable[str], mc_samples: int | None = None, seed: int = 0) -> Ratings:
        """Predict the ratings of texts, each by the mean over its chunks.

        The model is put into eval mode. Each of the sampled networks rates all chunks of all texts, so a rating does
        not depend on the texts beside it.

        Args:
            texts: any iterable of N strings: a list, a column of a table, a generator. The ratings are in the order of
                iteration; labels of a pandas column play no part.
            mc_samples: number K of sampled networks; by default 50, and 0 for a model without dropout.
            seed: of the sampled networks.

        Raises:
            TypeError: texts is a single string, a table, or cannot be iterated over.
            ValueError: there are no texts; one is blank or not a text (None, NaN, a number, bytes), in which case the
                message names its position; mc_samples or seed is out of range; or it is not known how the model reads
                texts.
        """
        return rate(self, texts, mc_samples, seed)
