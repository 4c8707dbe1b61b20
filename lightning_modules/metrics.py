"""Metrics of rated texts: errors by review, and the predictive distribution of sampled networks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import mean_squared_error
from torchmetrics.utilities import dim_zero_cat

from variational_rnn import regression_log_likelihood

# Precisions of the noise on standardised ratings, among which the likeliest for held-out ratings is chosen: noise from
# 3 to 0.003 standard deviations of the training ratings, whatever their range.
TAUS = torch.logspace(-1, 5, 361, dtype=torch.float64)


class Predictions(Metric):
    """Everything predicted in an epoch, by all processes: predictions [N, K], ratings [N], reviews [N]."""

    full_state_update = False
    predictions: list[Tensor]
    ratings: list[Tensor]
    reviews: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("predictions", "ratings", "reviews"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, ratings: Tensor, reviews: Tensor) -> None:
        """Add a batch.

        Args:
            predictions: of each of K networks, [K, B], or of one, [B].
            ratings: [B].
            reviews: [B].
        """
        self.predictions += [predictions.reshape(-1, len(ratings)).T]
        self.ratings += [ratings]
        self.reviews += [reviews]

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """What was added, of all processes."""
        return dim_zero_cat(self.predictions), dim_zero_cat(self.ratings), dim_zero_cat(self.reviews)


def rmse_by_review(predictions: Tensor, ratings: Tensor, reviews: Tensor) -> Tensor:
    """RMSE of reviews, each predicted by the mean over its chunks.

    Args:
        predictions: of the chunks, [N].
        ratings: of the chunks, [N].
        reviews: which review each chunk is of, [N].
    """
    _, index, counts = reviews.unique(return_inverse=True, return_counts=True)
    sums = predictions.new_zeros(2, len(counts)).index_add_(1, index, torch.stack([predictions, ratings]))
    means = sums / counts
    return mean_squared_error(means[0], means[1], squared=False)


def fitted_tau(predictions: Tensor, ratings: Tensor, spread: float) -> float:
    """The precision of the noise that makes held-out ratings likeliest, given K networks' predictions.

    Args:
        predictions: [K, N].
        ratings: [N].
        spread: standard deviation of the training ratings.

    Returns:
        One of `TAUS` / spread^2, in 1 / rating units^2.
    """
    predictions, ratings = predictions.double(), ratings.double()
    taus = TAUS / spread**2
    likelihoods = [regression_log_likelihood(predictions, ratings, float(tau)).mean() for tau in taus]
    return float(taus[int(torch.stack(likelihoods).argmax())])


def coverage(predictions: Tensor, ratings: Tensor, tau: float, level: float) -> Tensor:
    """Share of ratings within the central interval of `level` of the predictive distribution, K Gaussians mixed.

    Args:
        predictions: [K, N].
        ratings: [N].
        tau: precision of the noise.
        level: probability of the interval; well calibrated is a model whose coverage is its level.
    """
    below = torch.special.ndtr((ratings - predictions) * tau**0.5).mean(dim=0)
    return ((below - 0.5).abs() <= level / 2).double().mean()


def quantile(predictions: Tensor, probability: float, tau: float | None) -> Tensor:
    """Quantile of the predictive distribution: of K predictions, or of K Gaussians around them if there is noise.

    Args:
        predictions: of K networks, [K, N].
        probability: between 0 and 1.
        tau: precision of the noise; None for none.

    Returns:
        [N].
    """
    predictions = predictions.double()
    if tau is None:
        return predictions.quantile(probability, dim=0)
    # That of the mixture is between the Gaussians' own; a bisection halves what is left, to less than rounding.
    own = predictions + torch.special.ndtri(torch.tensor(probability, dtype=torch.float64)) / tau**0.5
    low, high = own.amin(dim=0), own.amax(dim=0)
    for _ in range(60):
        middle = (low + high) / 2
        is_below = torch.special.ndtr((middle - predictions) * tau**0.5).mean(dim=0) < probability
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    return (low + high) / 2
