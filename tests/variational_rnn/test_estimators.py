"""Averages over sampled networks."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, MixtureSameFamily, Normal

from variational_rnn import (
    log_mean_exp,
    mutual_information,
    predictive_entropy,
    predictive_mean_and_variance,
    regression_log_likelihood,
)

log_probabilities = st.lists(st.floats(-600, 0), min_size=1, max_size=10)
ROUNDING = 1e-9


@given(log_probabilities)
def test_log_mean_exp_is_the_log_of_the_mean_of_probabilities(logs):
    brute_force = math.log(math.fsum(math.exp(log) for log in logs) / len(logs))
    assert log_mean_exp(torch.tensor(logs, dtype=torch.float64)).item() == pytest.approx(brute_force)


@given(log_probabilities, st.floats(-1e6, 1e6))
def test_log_mean_exp_lies_between_the_mean_and_the_largest_log_at_any_magnitude(logs, shift):
    logs = torch.tensor(logs, dtype=torch.float64) + shift
    result, slack = log_mean_exp(logs), 1e-9 * (1 + abs(shift))
    assert logs.mean() - slack <= result <= logs.max() + slack


def test_log_mean_exp_is_finite_for_extreme_values_and_minus_infinity_only_where_every_probability_is_0():
    inf = math.inf
    logs = torch.tensor([[-1e30, 1e30, -inf, -inf], [-1e30, -1e30, -1.0, -inf]])
    torch.testing.assert_close(log_mean_exp(logs), torch.tensor([-1e30, 1e30, -1 - math.log(2), -inf]))


def test_log_mean_exp_averages_over_the_dimension_it_is_told():
    probabilities = torch.rand(3, 4, 5, dtype=torch.float64)
    for dim in (0, 1, 2, -1):
        torch.testing.assert_close(log_mean_exp(probabilities.log(), dim).exp(), probabilities.mean(dim))
    torch.testing.assert_close(log_mean_exp(probabilities.log()).exp(), probabilities.mean(0))


@st.composite
def networks(draw):
    """Class probabilities under K networks, [K][C], from certain to uniform, some of them 0."""
    classes = draw(st.integers(1, 5))
    weights = st.lists(st.sampled_from([0.0, 1e-12, 0.01, 0.5, 1.0, 30.0]), min_size=classes, max_size=classes)
    rows = draw(st.lists(weights.filter(any), min_size=1, max_size=5))
    return [[weight / math.fsum(row) for weight in row] for row in rows]


def entropy(probabilities):
    return -math.fsum(p * math.log(p) for p in probabilities if p > 0)


def logs_of(probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


@given(networks())
def test_entropy_is_that_of_averaged_probabilities_and_information_what_single_entropies_leave_of_it(probabilities):
    logs = logs_of(probabilities)
    averaged = [math.fsum(column) / len(probabilities) for column in zip(*probabilities, strict=True)]
    within = math.fsum(map(entropy, probabilities)) / len(probabilities)
    assert predictive_entropy(logs).item() == pytest.approx(entropy(averaged), abs=ROUNDING)
    assert mutual_information(logs).item() == pytest.approx(entropy(averaged) - within, abs=ROUNDING)


@given(networks())
def test_mutual_information_is_the_mean_divergence_of_a_network_from_the_average(probabilities):
    averaged = [math.fsum(column) / len(probabilities) for column in zip(*probabilities, strict=True)]
    divergences = [
        math.fsum(p * math.log(p / mean) for p, mean in zip(row, averaged, strict=True) if p > 0)
        for row in probabilities
    ]
    divergence = math.fsum(divergences) / len(divergences)
    assert mutual_information(logs_of(probabilities)).item() == pytest.approx(divergence, abs=ROUNDING)


@given(networks())
def test_entropy_and_information_stay_within_their_bounds(probabilities):
    count, classes = len(probabilities), len(probabilities[0])
    total, information = predictive_entropy(logs_of(probabilities)), mutual_information(logs_of(probabilities))
    assert -ROUNDING <= total <= math.log(classes) + ROUNDING
    assert 0 <= information <= min(math.log(min(count, classes)), total) + ROUNDING


def test_identical_networks_have_no_mutual_information_however_uncertain_they_are():
    logs = torch.randn(3, 7).log_softmax(-1).expand(5, 3, 7)
    information = mutual_information(logs)
    assert (information >= 0).all()
    torch.testing.assert_close(information, torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(predictive_entropy(logs), Categorical(logits=logs[0]).entropy())


@pytest.mark.parametrize(("count", "classes"), [(2, 2), (2, 9), (4, 4), (6, 3)])
def test_networks_certain_of_different_classes_have_the_largest_mutual_information(count, classes):
    certain = torch.eye(classes, dtype=torch.float64)[torch.arange(count) % classes].log()
    expected = torch.tensor(math.log(min(count, classes)), dtype=torch.float64)
    torch.testing.assert_close(mutual_information(certain), expected)
    torch.testing.assert_close(predictive_entropy(certain), expected)


def test_uniform_networks_have_all_entropy_and_no_information():
    uniform = torch.zeros(4, 8).log_softmax(-1)
    torch.testing.assert_close(predictive_entropy(uniform), torch.tensor(math.log(8)))
    torch.testing.assert_close(mutual_information(uniform), torch.tensor(0.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("logit", [30.0, 1e4, math.inf])
def test_certain_networks_that_disagree_have_finite_entropies_at_extreme_logits(logit):
    logs = torch.tensor([[0.0, -logit, -logit], [-logit, 0.0, -logit]])
    torch.testing.assert_close(predictive_entropy(logs), torch.tensor(math.log(2)))
    torch.testing.assert_close(mutual_information(logs), torch.tensor(math.log(2)))
    torch.testing.assert_close(predictive_entropy(logs[:1]), torch.tensor(0.0))


@pytest.mark.parametrize("estimator", [predictive_entropy, mutual_information])
def test_gradients_of_entropies_are_finite_at_extreme_logits(estimator):
    logits = torch.tensor([[1e4, 0.0, -1e4], [0.0, 1e4, 3.0]], requires_grad=True)
    estimator(logits.log_softmax(-1)).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(), (5,), (5, 2), (0, 3)])
def test_first_dimension_is_networks_last_is_classes_and_the_others_stay(shape):
    logs = torch.randn(4, *shape, 7, dtype=torch.float64).log_softmax(-1)
    for estimator in (predictive_entropy, mutual_information):
        expected = [estimator(of_place) for of_place in logs.reshape(4, -1, 7).unbind(1)]
        assert estimator(logs).shape == shape
        torch.testing.assert_close(list(estimator(logs).flatten()), expected)


def test_the_gradient_of_mutual_information_is_checked_numerically():
    logits = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda logits: mutual_information(logits.log_softmax(-1)), logits)


numbers = st.floats(-100, 100)
precisions = st.floats(0.01, 100)


@given(st.lists(numbers, min_size=1, max_size=8), precisions)
def test_mean_and_variance_are_the_protocols_sums(predictions, tau):
    count = len(predictions)
    expected_mean = math.fsum(predictions) / count
    expected_variance = 1 / tau + math.fsum(y**2 for y in predictions) / count - expected_mean**2
    mean, variance = predictive_mean_and_variance(torch.tensor(predictions, dtype=torch.float64), tau)
    assert mean.item() == pytest.approx(expected_mean, abs=ROUNDING)
    assert variance.item() == pytest.approx(expected_variance, abs=1e-8)


def test_mean_and_variance_are_those_of_values_drawn_from_the_mixture():
    predictions, tau, draws = torch.tensor([[-1.0, 0.5], [2.0, 0.5], [2.5, 0.5]], dtype=torch.float64), 4.0, 400_000
    network = torch.randint(3, (draws,))
    values = predictions[network] + torch.randn(draws, 2, dtype=torch.float64) / tau**0.5
    mean, variance = predictive_mean_and_variance(predictions, tau)
    fourth = (values - values.mean(0)).pow(4).mean(0)
    assert ((values.mean(0) - mean).abs() < 5 * (variance / draws).sqrt()).all()
    assert ((values.var(0) - variance).abs() < 5 * ((fourth - variance**2) / draws).sqrt()).all()


def test_networks_that_agree_leave_the_noise_alone():
    predictions = torch.randn(3, 2).expand(6, 3, 2)
    for samples in (predictions, predictions[:1]):
        mean, variance = predictive_mean_and_variance(samples, tau=4)
        torch.testing.assert_close(mean, predictions[0])
        torch.testing.assert_close(variance, torch.full((3, 2), 0.25))


def mixture(predictions, tau):
    components = Normal(predictions.movedim(0, -1), tau**-0.5)
    return MixtureSameFamily(Categorical(torch.ones(*predictions.shape[1:], len(predictions))), components)


@given(count=st.integers(1, 6), shape=st.sampled_from([(), (3,), (3, 2)]), tau=precisions, spread=st.floats(0.0, 10.0))
def test_log_likelihood_is_that_of_a_mixture_of_gaussians(count, shape, tau, spread):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(shape, dtype=torch.float64, generator=generator)
    predictions = spread * torch.randn(count, *shape, dtype=torch.float64, generator=generator)
    result = regression_log_likelihood(predictions, targets, tau)
    torch.testing.assert_close(result, mixture(predictions, tau).log_prob(targets))
    _, variance = predictive_mean_and_variance(predictions, tau)
    torch.testing.assert_close(variance, mixture(predictions, tau).variance)


@given(prediction=numbers, target=numbers, tau=precisions)
def test_log_likelihood_of_one_network_is_a_gaussians(prediction, target, tau):
    prediction, target = torch.tensor([prediction], dtype=torch.float64), torch.tensor(target, dtype=torch.float64)
    expected = Normal(prediction[0], tau**-0.5).log_prob(target)
    torch.testing.assert_close(regression_log_likelihood(prediction, target, tau), expected)


def test_log_likelihood_integrates_to_1():
    targets = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    predictions = torch.tensor([-3.0, 0.0, 5.0], dtype=torch.float64).unsqueeze(1).expand(3, len(targets))
    density = regression_log_likelihood(predictions, targets, tau=2.0).exp()
    assert torch.trapezoid(density, targets).item() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("error", [0.0, 1e3, 1e6])
def test_log_likelihood_and_its_gradients_are_finite_for_any_error(dtype, error):
    predictions = torch.tensor([[error, 0.0], [-2 * error, -error]], dtype=dtype, requires_grad=True)
    targets = torch.zeros(2, dtype=dtype, requires_grad=True)
    log_likelihood = regression_log_likelihood(predictions, targets, tau=0.071)
    log_likelihood.sum().backward()
    for values in (log_likelihood, predictions.grad, targets.grad):
        assert values.isfinite().all()


def test_the_gradient_of_log_likelihood_is_checked_numerically():
    predictions = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *args: regression_log_likelihood(*args, 0.7), (predictions, targets))


@given(scale=st.floats(0.01, 100), tau=precisions)
def test_tau_is_in_units_of_the_targets_and_the_density_per_unit(scale, tau):
    generator = torch.Generator().manual_seed(0)
    predictions, targets = torch.randn(5, 4, dtype=torch.float64, generator=generator).split([4, 1])
    in_other_units = regression_log_likelihood(scale * predictions, scale * targets[0], tau / scale**2)
    expected = regression_log_likelihood(predictions, targets[0], tau) - math.log(scale)
    torch.testing.assert_close(in_other_units, expected)
    _, variance = predictive_mean_and_variance(scale * predictions, tau / scale**2)
    torch.testing.assert_close(variance, predictive_mean_and_variance(predictions, tau)[1] * scale**2)


def test_the_mixtures_density_is_never_below_the_mean_of_the_networks_logs():
    predictions, targets = torch.randn(5, 100, dtype=torch.float64), torch.randn(100, dtype=torch.float64)
    each = torch.stack([regression_log_likelihood(one.unsqueeze(0), targets, 3.0) for one in predictions])
    together = regression_log_likelihood(predictions, targets, 3.0)
    assert (together >= each.mean(0)).all()
    assert (together <= each.amax(0)).all()


@pytest.mark.parametrize("tau", [0, 0.0, -1.0, math.nan, math.inf])
def test_a_precision_that_is_not_positive_is_refused_naming_tau_and_what_it_is(tau):
    message = re.escape(f"tau is the precision 1/variance of the noise and must be positive and finite, got {tau}")
    with pytest.raises(ValueError, match=message):
        regression_log_likelihood(torch.zeros(2, 3), torch.zeros(3), tau)
    with pytest.raises(ValueError, match=message):
        predictive_mean_and_variance(torch.zeros(2, 3), tau)


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (2, 3), (), (4,)])
def test_targets_of_another_shape_are_refused_and_not_broadcast(shape):
    with pytest.raises(ValueError, match=re.escape(f"targets have shape {list(shape)}, expected [3]")):
        regression_log_likelihood(torch.zeros(2, 3), torch.zeros(shape), 1.0)


@pytest.mark.parametrize("estimate", [predictive_entropy, mutual_information])
def test_a_class_that_is_impossible_in_every_network_has_no_gradient(estimate):
    log_probs = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]]).log().requires_grad_()
    estimate(log_probs).backward()
    assert log_probs.grad.isfinite().all()
    assert not log_probs.grad[:, 2].any()


def test_tau_can_be_fitted_by_the_gradient_of_the_log_likelihood():
    predictions, targets = torch.zeros(1, 500, dtype=torch.float64), 2 * torch.randn(500, dtype=torch.float64)
    tau = torch.tensor(1 / targets.square().mean().item(), dtype=torch.float64, requires_grad=True)  # its maximum
    [gradient] = torch.autograd.grad(regression_log_likelihood(predictions, targets, tau).mean(), tau)
    assert gradient.abs() < 1e-12
