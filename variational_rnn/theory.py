"""Weight decay and the prior that it implies.

Training with dropout and an L2 penalty is variational inference (section 3 of the paper; Gal & Ghahramani 2015). With
the prior N(0, 1/l^2) on every weight, where l is the length-scale, with noise of precision tau = 1 / variance, with N
training sequences and p the probability to DROP, the KL divergence to the prior becomes, up to a constant and for rows
well away from 0, the penalty lambda in

    (1/N) sum_n (y_n - f(x_n))^2 / 2  +  lambda sum ||W||^2,

a mean over sequences of the sum over the predictions of each. For a classifier the first part is the mean over
sequences of the negative log-likelihood (NLL), summed over time, and tau = 1.

For a matrix whose rows are dropped

    lambda = (1-p) l^2 / (2 N tau)      if dropout is not inverted: training multiplies by 0 or 1, the test by 1-p
    lambda = l^2 / (2 (1-p) N tau)      if it is inverted: training multiplies by 0 or 1/(1-p), the test by 1

The network is the same, but an inverted one stores W = (1-p) M of the other one's M: lambda ||.||^2 is equal. All of
this library is inverted. For biases, and all that is not dropped, p = 0.

The weight decay of an optimiser or a loss is this lambda times a factor. The loss is a mean over sequences of a sum
over time; where it is a mean over all of the T steps too, as torch's CrossEntropyLoss gives it, divide the value by T.

    ============================================================  ==========================
    where the decay is given                                      value
    ============================================================  ==========================
    added to squared errors / 2, or to NLL                        lambda ||W||^2
    added to squared errors, as Keras' l2                         2 lambda ||W||^2
    weight_decay of torch.optim.SGD, loss NLL                     2 lambda
    weight_decay of torch.optim.SGD, loss squared errors          4 lambda
    W <- W - d W after each step of SGD, loss NLL                 d = 2 lambda learning_rate
    ============================================================  ==========================

Source: protocol section 3, which derives both forms from the mixture q(W).
"""

from __future__ import annotations

from math import inf
from numbers import Real

from variational_rnn.masks import check_probability


def penalty(p: float, *, length_scale: float, tau: float, sequences: int, inverted: bool = True) -> float:
    """The penalty lambda on a matrix's squared entries for a given prior.

    Args:
        p: probability to drop a row of the matrix; 0 for biases.
        length_scale: l; the prior standard deviation of a weight is 1/l.
        tau: precision of the noise, 1 / its variance; 1 for a classifier.
        sequences: number N of training sequences, each of which draws its own weights.
        inverted: whether kept units are divided by 1-p in training (as everywhere in this library).

    Raises:
        ValueError: p is not in [0, 1), or another argument is not positive and finite.

    Example:
        >>> f"{2 * penalty(0.3, length_scale=1, tau=1, sequences=26_540):.2e}"  # decay per step of a unit prior on PTB
        '5.38e-05'
    """
    _check(p, length_scale=length_scale, tau=tau, sequences=sequences)
    return _share(p, inverted) * length_scale**2 / (2 * sequences * tau)


def precision(p: float, *, length_scale: float, penalty: float, sequences: int, inverted: bool = True) -> float:
    """The precision tau of the noise that a penalty implies for a prior; arguments as in `penalty`.

    Raises:
        ValueError: p is not in [0, 1), or another argument is not positive and finite.
    """
    _check(p, length_scale=length_scale, penalty=penalty, sequences=sequences)
    return _share(p, inverted) * length_scale**2 / (2 * sequences * penalty)


def length_scale(p: float, *, penalty: float, tau: float, sequences: int, inverted: bool = True) -> float:
    """The length-scale l of the prior that a penalty implies; arguments as in `penalty`.

    Raises:
        ValueError: p is not in [0, 1), or another argument is not positive and finite.

    Example:
        >>> f"{1 / length_scale(0.3, penalty=1e-7 / 2, tau=1, sequences=26_540):.0f}"  # prior sd of the paper's decay
        '23'
    """
    _check(p, penalty=penalty, tau=tau, sequences=sequences)
    return (2 * sequences * tau * penalty / _share(p, inverted)) ** 0.5


def _share(p: float, inverted: bool) -> float:
    return 1 / (1 - p) if inverted else 1 - p


def _check(p: float, **positive: float) -> None:
    check_probability("p", p)
    for name, value in positive.items():
        if not isinstance(value, Real) or not 0 < value < inf:
            raise ValueError(f"{name} must be positive and finite, got {value!r}")
