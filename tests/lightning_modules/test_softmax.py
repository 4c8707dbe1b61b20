"""The softmax layer's loss and gradient are torch's."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.softmax import softmax_nll
from variational_rnn.backends import cpu

needs_bf16 = pytest.mark.skipif(
    cpu.extension() is None or not cpu.extension().vrnn_has_bf16(), reason="this processor has no products of bf16"
)


def results(function, *tensors):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    loss, nll = function(*leaves)
    return loss, nll, *torch.autograd.grad(3 * loss, leaves)


@settings(max_examples=100)
@given(
    rows=st.integers(1, 200),
    hidden_size=st.integers(1, 40),
    words=st.integers(1, 90),
    scale=st.sampled_from([1.0, 0.05]),
    magnitude=st.sampled_from([1.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_it_is_cross_entropy_of_a_linear_layer_with_its_gradients(rows, hidden_size, words, scale, magnitude, dtype):
    torch.manual_seed(0)
    hidden, weight = (
        torch.randn(rows, hidden_size, dtype=dtype),
        magnitude * torch.randn(words, hidden_size, dtype=dtype),
    )
    bias, targets = torch.randn(words, dtype=dtype), torch.randint(words, (rows,))

    def torchs(hidden, weight, bias):
        nll = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")
        return nll.sum() * scale, nll.detach()

    ours = results(lambda *leaves: softmax_nll(*leaves, targets, scale), hidden, weight, bias)
    for one, other in zip(ours, results(torchs, hidden, weight, bias), strict=True):
        assert one.isfinite().all()
        # Saturated probabilities hang on the rounding of logits of some 10,000s.
        tolerance = 1e-5 if magnitude == 1.0 else 0.05
        assert (one - other).abs().max() <= tolerance * max(1.0, other.abs().max())


def test_without_gradient_the_losses_are_the_same():
    hidden, weight, bias, targets = torch.randn(70, 8), torch.randn(33, 8), torch.randn(33), torch.randint(33, (70,))
    with_gradient = softmax_nll(hidden, weight.requires_grad_(), bias, targets)
    with torch.no_grad():
        torch.testing.assert_close(softmax_nll(hidden, weight, bias, targets), with_gradient)


def test_a_diverged_network_has_a_loss_of_nan():
    hidden = torch.full((70, 8), torch.nan, requires_grad=True)
    loss, nll = softmax_nll(hidden, torch.randn(33, 8), torch.randn(33), torch.randint(33, (70,)))
    assert loss.isnan()
    assert nll.isnan().all()


@pytest.mark.parametrize("word", [-1, 33])
def test_a_word_outside_the_vocabulary_is_refused(word):
    targets = torch.tensor([0, word]).repeat(50)
    with pytest.raises(IndexError, match=f"{word}"):
        softmax_nll(torch.randn(100, 8, requires_grad=True), torch.randn(33, 8), torch.randn(33), targets)


def softmax_nll_in_bf16(*arguments):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return softmax_nll(*arguments)


def rounded(factor):
    return factor.bfloat16().double()


@needs_bf16
@settings(max_examples=100)
@given(
    rows=st.integers(64, 200),
    hidden_size=st.integers(1, 40),
    words=st.integers(1, 90),
    scale=st.sampled_from([1.0, 0.05]),
)
def test_under_autocast_the_factors_of_its_three_products_are_rounded_and_nothing_else(rows, hidden_size, words, scale):
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(rows, hidden_size), torch.randn(words, hidden_size), torch.randn(words)
    targets = torch.randint(words, (rows,))
    loss, nll, *gradients = results(lambda *leaves: softmax_nll_in_bf16(*leaves, targets, scale), hidden, weight, bias)
    logits = rounded(hidden) @ rounded(weight).t() + bias
    expected_nll = F.cross_entropy(logits, targets, reduction="none")
    dlogits = scale * (logits.softmax(dim=-1) - F.one_hot(targets, words))
    products = rounded(dlogits) @ rounded(weight), rounded(dlogits).t() @ rounded(hidden), dlogits.sum(dim=0)
    expected = scale * expected_nll.sum(), expected_nll, *(3 * product for product in products)
    # A gradient of a logit that differs in its last bits may round the other way.
    for one, other, tolerance in zip((loss, nll, *gradients), expected, (1e-5, 1e-5, 5e-4, 5e-4, 1e-5), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= tolerance * other.norm()


@needs_bf16
def test_under_autocast_hidden_may_be_bfloat16_and_all_but_its_gradient_is_float32():
    hidden, weight, bias, targets = torch.randn(70, 8), torch.randn(33, 8), torch.randn(33), torch.randint(33, (70,))
    hidden = hidden.bfloat16()
    loss, nll, dhidden, *gradients = results(lambda *x: softmax_nll_in_bf16(*x, targets), hidden, weight, bias)
    expected = results(lambda *x: softmax_nll_in_bf16(*x, targets), hidden.float(), weight, bias)
    assert {part.dtype for part in (loss, nll, *gradients)} == {torch.float32}
    torch.testing.assert_close(
        (loss, nll, dhidden, *gradients), (*expected[:2], expected[2].bfloat16(), *expected[3:]), rtol=0, atol=0
    )


@pytest.mark.parametrize("function", [softmax_nll, pytest.param(softmax_nll_in_bf16, marks=needs_bf16)])
def test_hidden_weight_and_bias_may_be_strided(function):
    shapes, targets = [(70, 8), (33, 8), (33,)], torch.randint(33, (70,))
    tensors = [torch.randn(*shape, 2)[..., 0] for shape in shapes]
    strided, contiguous = (
        results(lambda *x: function(*x, targets), *leaves)
        for leaves in (tensors, [tensor.contiguous() for tensor in tensors])
    )
    torch.testing.assert_close(strided, contiguous)
