"""Weight decay and the prior behind it (protocol section 3)."""

import itertools
import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from variational_rnn.theory import length_scale, penalty, precision

PTB_WINDOWS = 26_540
REVIEWS = 10_620
either_scaling = pytest.mark.parametrize("inverted", [True, False])
drop = st.floats(0, 0.99)
positive = st.floats(1e-6, 1e6)
sequences = st.integers(1, 10**9)


def test_the_l2_of_the_sentiment_experiment_implies_a_precision_of_071():
    keras_l2 = 1e-3
    tau = precision(0.25, length_scale=1, penalty=keras_l2 / 2, sequences=REVIEWS, inverted=False)
    assert tau == pytest.approx(0.071, abs=0.0005)
    assert tau**-0.5 == pytest.approx(3.8, abs=0.05)


@pytest.mark.parametrize(("p", "prior_sd", "decay_of_unit_prior"), [(0.3, 23, 5.4e-5), (0.5, 27, 7.5e-5)])
def test_the_decay_of_the_language_models_implies_a_wide_prior_and_a_unit_prior_500_times_the_decay(
    p, prior_sd, decay_of_unit_prior
):
    learning_rate, decay = 1, 1e-7
    scale = length_scale(p, penalty=decay / (2 * learning_rate), tau=1, sequences=PTB_WINDOWS)
    assert round(1 / scale) == prior_sd
    unit_prior = 2 * learning_rate * penalty(p, length_scale=1, tau=1, sequences=PTB_WINDOWS)
    assert unit_prior == pytest.approx(decay_of_unit_prior, abs=0.05e-5)
    assert unit_prior / decay == pytest.approx(1 / scale**2)


def test_a_decay_that_is_not_multiplied_by_the_learning_rate_means_a_narrower_prior_as_the_rate_falls():
    last_rate = 1 / 1.15**44  # 1 at the first 11 epochs of 55
    scales = [length_scale(0.3, penalty=1e-7 / (2 * lr), tau=1, sequences=PTB_WINDOWS) for lr in (1, last_rate)]
    assert scales[1] ** 2 / scales[0] ** 2 == pytest.approx(470, rel=0.01)


@given(p=drop, scale=positive, tau=positive, count=sequences, inverted=st.booleans())
def test_penalty_precision_and_length_scale_are_inverse_to_each_other(p, scale, tau, count, inverted):
    of_both = penalty(p, length_scale=scale, tau=tau, sequences=count, inverted=inverted)
    rest = {"sequences": count, "inverted": inverted}
    assert precision(p, length_scale=scale, penalty=of_both, **rest) == pytest.approx(tau)
    assert length_scale(p, penalty=of_both, tau=tau, **rest) == pytest.approx(scale)


@given(p=drop, scale=positive, tau=positive, count=sequences, entry=st.floats(-1e3, 1e3))
def test_both_scalings_penalise_the_same_network_equally(p, scale, tau, count, entry):
    lambda_of = partial(penalty, p, length_scale=scale, tau=tau, sequences=count)
    stored_inverted = (1 - p) * entry
    assert lambda_of(inverted=True) * stored_inverted**2 == pytest.approx(lambda_of(inverted=False) * entry**2)


@given(p=drop)
def test_an_inverted_network_is_the_default(p):
    assert penalty(p, length_scale=1, tau=1, sequences=1) == penalty(
        p, length_scale=1, tau=1, sequences=1, inverted=True
    )


@either_scaling
@given(scale=positive, tau=positive, count=sequences)
def test_what_is_not_dropped_has_the_plain_gaussian_priors_penalty(inverted, scale, tau, count):
    of_bias = penalty(0.0, length_scale=scale, tau=tau, sequences=count, inverted=inverted)
    assert of_bias == pytest.approx(scale**2 / (2 * count * tau))


@either_scaling
def test_with_p_0_the_optimum_is_the_posterior_mean_of_bayesian_linear_regression(inverted):
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    scale, tau = 1.7, 2.5
    of_prior = penalty(0.0, length_scale=scale, tau=tau, sequences=20, inverted=inverted)
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], tolerance_grad=1e-12, max_iter=100, line_search_fn="strong_wolfe")

    def objective():
        optimizer.zero_grad()
        loss = (y - x @ weight).square().mean() / 2 + of_prior * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    posterior_precision = tau * x.t() @ x + scale**2 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(weight.detach(), torch.linalg.solve(posterior_precision, tau * x.t() @ y))


def divergence(m, p, sd, scale):
    """KL(p N(0, sd^2) + (1-p) N(m, sd^2) || N(0, 1/scale^2)), integrated numerically."""
    around_the_modes = torch.linspace(-12 * sd, 12 * sd, 20_001, dtype=torch.float64)
    w = torch.cat([around_the_modes, m + around_the_modes])
    normal = partial(torch.distributions.Normal, validate_args=False)
    log_q = torch.logaddexp(
        math.log(p) + normal(0.0, sd).log_prob(w) if p else torch.full_like(w, -math.inf),
        math.log(1 - p) + normal(m, sd).log_prob(w),
    )
    return torch.trapezoid(log_q.exp() * (log_q - normal(0.0, 1 / scale).log_prob(w)), w).item()


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_penalty_is_the_divergence_of_a_dropped_row_from_the_prior(p, scale):
    near, far, sd, tau, count = 1.0, 2.0, 0.01, 0.7, 50
    difference = divergence(far, p, sd, scale) - divergence(near, p, sd, scale)
    lambda_of = partial(penalty, p, length_scale=scale, tau=tau, sequences=count)
    assert count * tau * lambda_of(inverted=False) * (far**2 - near**2) == pytest.approx(difference, rel=1e-6)
    stored = [(1 - p) * m for m in (near, far)]
    assert count * tau * lambda_of() * (stored[1] ** 2 - stored[0] ** 2) == pytest.approx(difference, rel=1e-6)


@either_scaling
def test_the_objective_is_the_variational_bound_of_a_linear_model_up_to_a_constant(inverted):
    """Two rows, each kept or dropped: the expectation over masks is a sum of four terms."""
    p, scale, tau, count = 0.3, 1.3, 2.0, 12
    x, y = torch.randn(count, 2, dtype=torch.float64), torch.randn(count, dtype=torch.float64)
    of_prior = penalty(p, length_scale=scale, tau=tau, sequences=count, inverted=inverted)

    def expected_error(w):
        masks = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
        chances = (p ** (1 - masks) * (1 - p) ** masks).prod(dim=1)
        factor = 1 / (1 - p) if inverted else 1
        return (chances * (y.unsqueeze(1) - x @ (factor * masks * w).t()).square().mean(dim=0)).sum() / 2

    def objective(w):
        return expected_error(w) + of_prior * w.square().sum()

    def bound(w):
        means = w / (1 - p) if inverted else w
        return count * tau * expected_error(w) + sum(divergence(m.item(), p, 0.01, scale) for m in means)

    one, other = torch.tensor([[0.8, -1.2], [-1.5, 0.6]], dtype=torch.float64)
    difference = bound(other) - bound(one)
    torch.testing.assert_close(count * tau * (objective(other) - objective(one)), difference, rtol=1e-6, atol=0)


X = torch.linspace(-1, 1.3, 24, dtype=torch.float64).view(8, 3).sin()
TARGETS, CLASSES = X @ X.t()[:, :4] + 1, torch.arange(8) % 4
LEARNING_RATE, LAMBDA = 0.1, 0.03


def half_squared_error(output):
    return (output - TARGETS).square().mean() / 2


def mean_squared_error(output):
    return nn.functional.mse_loss(output, TARGETS)


def mean_nll(output):
    return nn.functional.cross_entropy(output, CLASSES)


def step(loss, *, weight_decay=0.0, penalty=0.0, lr=LEARNING_RATE):
    """The parameters after one step of SGD from the same start."""
    torch.manual_seed(3)
    model = nn.Linear(3, 4, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay)
    squares = sum(parameter.square().sum() for parameter in model.parameters())
    (loss(model(X)) + penalty * squares).backward()
    optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def distance(one, other):
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("loss", "weight_decay", "factor_of_penalty"),
    [(half_squared_error, 2 * LAMBDA, 1), (mean_nll, 2 * LAMBDA, 1), (mean_squared_error, 4 * LAMBDA, 2)],
)
def test_weight_decay_of_sgd_is_the_penalty_times_the_tables_factor(loss, weight_decay, factor_of_penalty):
    penalised = step(loss, penalty=factor_of_penalty * LAMBDA)
    torch.testing.assert_close(step(loss, weight_decay=weight_decay), penalised)
    assert distance(step(loss, weight_decay=1.5 * weight_decay), penalised) > 1e-3


def test_mean_squared_error_and_twice_the_penalty_is_twice_the_objective():
    of_half = step(half_squared_error, penalty=LAMBDA, lr=2 * LEARNING_RATE)
    torch.testing.assert_close(step(mean_squared_error, penalty=2 * LAMBDA), of_half)


@pytest.mark.parametrize("loss", [half_squared_error, mean_nll])
def test_decay_of_updated_weights_is_the_penalty_to_first_order_in_the_learning_rate(loss):
    def error(lr, factor):
        updated = step(loss, lr=lr)
        decay = factor * LAMBDA * lr
        return distance([weight - decay * weight for weight in updated], step(loss, penalty=LAMBDA, lr=lr))

    errors = [error(lr, factor=2) for lr in (0.1, 0.05, 0.025)]
    for larger, smaller in itertools.pairwise(errors):
        assert larger / smaller == pytest.approx(4, rel=1e-3)
    assert error(0.1, factor=1) / error(0.05, factor=1) == pytest.approx(2, rel=0.1)


FUNCTIONS = {
    penalty: {"length_scale": 1.0, "tau": 1.0, "sequences": 10},
    precision: {"length_scale": 1.0, "penalty": 1.0, "sequences": 10},
    length_scale: {"penalty": 1.0, "tau": 1.0, "sequences": 10},
}
any_function = pytest.mark.parametrize(
    ("function", "good"), FUNCTIONS.items(), ids=lambda it: getattr(it, "__name__", "")
)


@any_function
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_arguments_that_are_not_positive_are_refused_by_name(function, good, value):
    for name in good:
        with pytest.raises(ValueError, match=f"{name} must be positive and finite, got {value}"):
            function(0.5, **{**good, name: value})


@any_function
@pytest.mark.parametrize("p", [1.0, -0.1, 1.5, math.nan, True, "0.5"])
def test_what_is_no_probability_to_drop_is_refused(function, good, p):
    with pytest.raises(ValueError, match=re.escape(f"p is the probability to drop and must lie in [0, 1), got {p!r}")):
        function(p, **good)


@any_function
def test_all_but_p_are_given_by_name(function, good):
    with pytest.raises(TypeError, match="positional"):
        function(0.5, *good.values())
