"""Estimates from MC dropout's samples: averages over K sampled networks, as pure functions.

Drawing K networks from the approximate posterior and averaging their predictions is the Monte Carlo estimate of the
predictive distribution p(y|x) = integral p(y|x, w) q(w) dw (equation 1 of the paper, protocol section 3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_mean_exp(log_probs: Tensor, dim: int = 0) -> Tensor:
    """Log of the mean of probabilities given by their logs: ln((1/K) sum_k p_k), stable for any magnitude.

    MC dropout averages probabilities: perplexity = exp(-mean_t ln((1/K) sum_k p_k(y_t))). The mean of logs would give
    another perplexity, never a smaller one.

    Args:
        log_probs: log probabilities of K samples along `dim`.
        dim: the dimension of samples.

    Returns:
        In nats, the shape of log_probs without `dim`.
    """
    return torch.logsumexp(log_probs, dim) - math.log(log_probs.size(dim))


def predictive_entropy(log_probs: Tensor) -> Tensor:
    """Entropy of the averaged class probabilities: the total uncertainty of the prediction.

    H[(1/K) sum_k p_k], of the predictive distribution that equation 1 of the paper defines.

    Args:
        log_probs: log probabilities of the classes under K networks, [K, ..., C].

    Returns:
        [...], in nats, from 0 to ln C.
    """
    # For a class with probability 0 in every network, logsumexp's gradient would be 0 times infinity.
    return _entropy(log_mean_exp(log_probs.clamp_min(torch.finfo(log_probs.dtype).min)))


def mutual_information(log_probs: Tensor) -> Tensor:
    """Mutual information of class and weights: how much the networks disagree (BALD).

    H[(1/K) sum_k p_k] - (1/K) sum_k H[p_k] (Houlsby et al. 2011): the part of `predictive_entropy` that more data
    could remove. The rest is noise that every network sees.

    Args:
        log_probs: log probabilities of the classes under K networks, [K, ..., C].

    Returns:
        [...], in nats, from 0 to ln min(K, C).
    """
    # Rounding can give less than 0; by Jensen's inequality it is not.
    return (predictive_entropy(log_probs) - _entropy(log_probs).mean(dim=0)).clamp_min(0)


def _entropy(log_probs: Tensor) -> Tensor:
    # -p ln p, which is 0 for p = 0; the finite minimum keeps its gradient from being 0 times infinity.
    return -(log_probs.exp() * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)).sum(dim=-1)


def predictive_mean_and_variance(predictions: Tensor, tau: float | Tensor) -> tuple[Tensor, Tensor]:
    """First two moments of the predictive distribution of a regression.

    mean = (1/K) sum_k y_k; variance = 1/tau + (1/K) sum_k y_k^2 - mean^2: the noise of the data and the disagreement of
    the networks (equation 1 of the paper with a Gaussian likelihood; protocol section 3).

    Args:
        predictions: of K networks, [K, ...].
        tau: precision of the noise, 1 / its variance, in units of 1 / predictions^2; see `theory.precision`.

    Returns:
        Mean and variance, each [...].

    Raises:
        ValueError: tau is not positive and finite.
    """
    _check_tau(tau)
    return predictions.mean(dim=0), predictions.var(dim=0, correction=0) + 1 / tau


def regression_log_likelihood(predictions: Tensor, targets: Tensor, tau: float | Tensor) -> Tensor:
    """Log density of targets under the mixture of K networks' Gaussians.

    ln((1/K) sum_k N(y; y_k, 1/tau)) = logsumexp_k(-tau/2 (y - y_k)^2) - ln K - ln(2 pi)/2 + ln(tau)/2 (equation 1 of
    the paper with a Gaussian likelihood; protocol section 3).

    Args:
        predictions: of K networks, [K, ...].
        targets: [...].
        tau: precision of the noise, 1 / its variance, in units of 1 / targets^2; see `theory.precision`.

    Returns:
        [...], in nats, for a density per unit of targets.

    Raises:
        ValueError: tau is not positive and finite, or targets have another shape than one network's predictions.
    """
    _check_tau(tau)
    if predictions.shape[1:] != targets.shape:
        raise ValueError(f"targets have shape {list(targets.shape)}, expected {list(predictions.shape[1:])}")
    log_tau = torch.as_tensor(tau, dtype=predictions.dtype, device=predictions.device).log()
    log_densities = (log_tau - math.log(2 * math.pi) - tau * (targets - predictions).square()) / 2
    return log_mean_exp(log_densities)


def _check_tau(tau: float | Tensor) -> None:
    if not 0 < tau < math.inf:
        raise ValueError(f"tau is the precision 1/variance of the noise and must be positive and finite, got {tau}")
