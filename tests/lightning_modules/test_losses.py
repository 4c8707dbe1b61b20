"""The softmax layer's loss and gradient are torch's."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile

from lightning_modules.losses import softmax_nll
from variational_rnn.kernels import build

needs_bf16 = pytest.mark.skipif(
    build.extension() is None or not build.extension().vrnn_has_bf16(), reason="this processor has no products of bf16"
)

SIZES = {
    "rows": st.integers(1, 200) | st.integers(250, 300),  # of one block, or several
    "hidden_size": st.integers(1, 70),
    "words": st.integers(1, 90) | st.integers(1022, 1027),  # which products go through at once, or in pieces
    "threads": st.sampled_from([1, 2]),
}


@contextlib.contextmanager
def threads_set(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


def allocations(function):
    """Bytes of each block of memory that torch takes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    events = (event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]")
    return [event.nbytes() for event in events if event.nbytes() > 0]


def results(function, *tensors):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    loss, nll = function(*leaves)
    return loss, nll, *torch.autograd.grad(3 * loss, leaves)


@settings(max_examples=100)
@given(
    **SIZES,
    scale=st.sampled_from([1.0, 0.05]),
    magnitude=st.sampled_from([1.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_it_is_cross_entropy_of_a_linear_layer_with_its_gradients(
    rows, hidden_size, words, threads, scale, magnitude, dtype
):
    torch.manual_seed(0)
    hidden, weight = (
        torch.randn(rows, hidden_size, dtype=dtype),
        magnitude * torch.randn(words, hidden_size, dtype=dtype),
    )
    bias, targets = torch.randn(words, dtype=dtype), torch.randint(words, (rows,))

    def torchs(hidden, weight, bias):
        nll = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")
        return nll.sum() * scale, nll.detach()

    with threads_set(threads):
        ours = results(lambda *leaves: softmax_nll(*leaves, targets, scale), hidden, weight, bias)
    for one, other in zip(ours, results(torchs, hidden, weight, bias), strict=True):
        assert one.isfinite().all()
        # Saturated probabilities hang on the rounding of logits of some 10,000s.
        tolerance = 1e-5 if magnitude == 1.0 else 0.05
        assert (one - other).abs().max() <= tolerance * max(1.0, other.abs().max())


@pytest.mark.parametrize("rows", [10, 70])  # of torch's functions, and of the fast ones
@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("learn_expected", [False, True])
def test_a_gradient_penalty_trains_as_with_torchs_functions(rows, gamma, learn_expected, monkeypatch):
    tensors = [torch.randn(size, 8, requires_grad=True) for size in (rows, 33, 33)]
    bias, targets = torch.randn(33, requires_grad=True), torch.randint(33, (rows,))

    def gradients():
        hidden, weight, embedding = tensors
        loss, _ = softmax_nll(hidden, weight, bias, targets, 0.1, embedding, gamma, learn_expected)
        first = torch.autograd.grad(3 * loss, [hidden, weight, bias], create_graph=True)
        penalized = loss + 10 * sum(gradient.square().sum() for gradient in first)
        return *first, *torch.autograd.grad(penalized, [*tensors, bias], allow_unused=True)

    ours = gradients()
    monkeypatch.setattr(build, "why_unsupported", lambda *_: "left to torch")
    torch.testing.assert_close(ours, gradients(), rtol=1e-4, atol=1e-4)


def test_a_jacobian_of_the_loss_may_be_vectorized():
    hidden, weight, targets = torch.randn(70, 8), torch.randn(33, 8), torch.randint(33, (70,))
    at_once, one_by_one = (
        torch.autograd.functional.jacobian(
            lambda hidden: softmax_nll(hidden, weight, None, targets)[0][None], hidden, vectorize=vectorize
        )
        for vectorize in (True, False)
    )
    torch.testing.assert_close(at_once, one_by_one)


def test_under_a_dispatch_mode_torchs_functions_compute():
    hidden, weight, targets = torch.randn(70, 8), torch.randn(33, 8), torch.randint(33, (70,))
    traced = make_fx(lambda hidden: softmax_nll(hidden, weight, None, targets)[0])(torch.randn(70, 8))
    torch.testing.assert_close(traced(hidden), softmax_nll(hidden, weight, None, targets)[0])


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


# --- the loss of Inan et al. (2016) -----------------------------------------------------------------------------------


def augmented(hidden, weight, bias, targets, embedding, gamma):
    """It, by the letter: alpha = gamma * tau."""
    tau = 20.0
    logits = hidden @ weight.t() + bias
    expected = ((embedding[targets] @ embedding.t()) / tau).softmax(dim=1)
    divergence = (expected * (expected.log() - (logits / tau).log_softmax(dim=1))).sum(dim=1)
    nll = -logits.log_softmax(dim=1)[torch.arange(len(targets)), targets]
    return (nll + gamma * tau * divergence).sum(), nll.detach()


@settings(max_examples=100)
@given(
    **SIZES,
    gamma=st.sampled_from([0.5, 0.8]),
    magnitude=st.sampled_from([0.1, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_augmented_loss_and_its_gradients_are_those_of_the_published_formula(
    rows, hidden_size, words, threads, gamma, magnitude, dtype
):
    torch.manual_seed(0)
    hidden, weight, embedding = (
        torch.randn(rows, hidden_size, dtype=dtype),
        *(magnitude * torch.randn(words, hidden_size, dtype=dtype) for _ in range(2)),
    )
    bias, targets = torch.randn(words, dtype=dtype), torch.randint(words, (rows,))
    scale = 0.05

    def brute_force(hidden, weight, bias):
        loss, nll = augmented(hidden, weight, bias, targets, embedding.double(), gamma)
        return scale * loss, nll

    with threads_set(threads):
        ours = results(lambda *leaves: softmax_nll(*leaves, targets, scale, embedding, gamma), hidden, weight, bias)
    expected = results(brute_force, *(tensor.double() for tensor in (hidden, weight, bias)))
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == dtype
        assert (one - other).abs().max() <= tolerance * max(1.0, other.abs().max())


@settings(max_examples=100)
@given(
    **SIZES,
    tied=st.booleans(),
    magnitude=st.sampled_from([0.1, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_gradient_through_what_is_expected_is_that_of_the_published_formula_as_a_whole(
    rows, hidden_size, words, threads, tied, magnitude, dtype
):
    torch.manual_seed(0)
    hidden, weight, embedding = (torch.randn(n, hidden_size, dtype=dtype) for n in (rows, words, words))
    weight, embedding, bias = magnitude * weight, magnitude * embedding, torch.randn(words, dtype=dtype)
    targets, scale, gamma = torch.randint(words, (rows,)), 0.05, 0.65

    def ours(hidden, weight, bias, *embedding):
        return softmax_nll(hidden, weight, bias, targets, scale, (*embedding, weight)[0], gamma, learn_expected=True)

    def brute_force(hidden, weight, bias, *embedding):
        loss, nll = augmented(hidden, weight, bias, targets, (*embedding, weight)[0], gamma)
        return scale * loss, nll

    leaves = (hidden, weight, bias) if tied else (hidden, weight, bias, embedding)
    with threads_set(threads):
        results_of_ours = results(ours, *leaves)
    tolerance = 1e-10 if dtype == torch.float64 else 3e-5
    expected = results(brute_force, *(tensor.double() for tensor in leaves))
    for one, other in zip(results_of_ours, expected, strict=True):
        assert one.dtype == dtype
        assert (one - other).abs().max() <= tolerance * max(1.0, other.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_augmented_loss_adds_gamma_times_predicted_minus_expected_to_the_gradient_of_the_logits(dtype):
    logits, identity, targets = (
        9 * torch.randn(70, 33, dtype=dtype),
        torch.eye(33, dtype=dtype),
        torch.randint(33, (70,)),
    )
    embedding, gamma = torch.randn(33, 8, dtype=dtype), 0.65

    def gradient(**more):
        leaf = logits.clone().requires_grad_()
        softmax_nll(leaf, identity, None, targets, **more)[0].backward()
        return leaf.grad

    added = gradient(embedding=embedding, gamma=gamma) - gradient()
    expected = (embedding[targets] @ embedding.t() / 20).softmax(dim=1)
    torch.testing.assert_close(added, gamma * ((logits / 20).softmax(dim=1) - expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_gradient_goes_through_what_the_augmented_loss_expects(dtype):
    hidden, weight, embedding = (torch.randn(n, 8, dtype=dtype, requires_grad=True) for n in (70, 33, 33))
    loss, nll = softmax_nll(hidden, weight, None, torch.randint(33, (70,)), embedding=embedding, gamma=0.65)
    loss.backward()
    assert embedding.grad is None
    assert not nll.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_gamma_the_loss_is_the_plain_one(dtype):
    tensors = [torch.randn(*shape, dtype=dtype) for shape in ((70, 8), (33, 8), (33,))]
    targets, embedding = torch.randint(33, (70,)), torch.randn(33, 8, dtype=dtype)
    plain = results(lambda *x: softmax_nll(*x, targets), *tensors)
    without = results(lambda *x: softmax_nll(*x, targets, embedding=embedding, gamma=0.0), *tensors)
    torch.testing.assert_close(without, plain, rtol=0, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_bias_loss_and_gradients_are_those_of_a_bias_of_zeros(dtype, gamma):
    hidden, weight = torch.randn(70, 8, dtype=dtype), torch.randn(33, 8, dtype=dtype)
    more = {"targets": torch.randint(33, (70,)), "embedding": torch.randn(33, 8, dtype=dtype), "gamma": gamma}
    without = results(lambda h, w: softmax_nll(h, w, None, **more), hidden, weight)
    zeros = results(lambda h, w: softmax_nll(h, w, torch.zeros(33, dtype=dtype), **more), hidden, weight)
    torch.testing.assert_close(without, zeros)


def test_without_gradient_the_augmented_loss_is_the_same():
    hidden, weight, embedding = torch.randn(70, 8), torch.randn(33, 8), torch.randn(33, 8)
    arguments = (hidden, weight.requires_grad_(), None, torch.randint(33, (70,)), 0.05, embedding, 0.65)
    with_gradient = softmax_nll(*arguments)
    with torch.no_grad():
        torch.testing.assert_close(softmax_nll(*arguments), with_gradient)


# --- in bfloat16 ------------------------------------------------------------------------------------------------------


def softmax_nll_in_bf16(*arguments):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return softmax_nll(*arguments)


def rounded(factor):
    return factor.bfloat16().double()


@needs_bf16
@settings(max_examples=100)
@given(
    **SIZES | {"rows": st.integers(64, 300)},
    scale=st.sampled_from([1.0, 0.05]),
)
def test_under_autocast_the_factors_of_its_three_products_are_rounded_and_nothing_else(
    rows, hidden_size, words, threads, scale
):
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(rows, hidden_size), torch.randn(words, hidden_size), torch.randn(words)
    targets = torch.randint(words, (rows,))
    with threads_set(threads):
        loss, nll, *gradients = results(lambda *x: softmax_nll_in_bf16(*x, targets, scale), hidden, weight, bias)
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
def test_under_autocast_the_factors_of_what_the_augmented_loss_expects_are_rounded_too():
    hidden, weight, bias, targets = torch.randn(70, 8), torch.randn(33, 8), torch.randn(33), torch.randint(33, (70,))
    embedding = torch.randn(33, 8)
    ours = results(lambda *x: softmax_nll_in_bf16(*x, targets, 1.0, embedding, 0.65), hidden, weight, bias)
    tensors = [rounded(hidden), rounded(weight), bias.double()]
    expected = results(lambda *x: augmented(*x, targets, rounded(embedding), 0.65), *tensors)
    for one, other, tolerance in zip(ours, expected, (1e-5, 1e-5, 5e-3, 5e-3, 1e-5), strict=True):
        assert (one - other).norm() <= tolerance * other.norm()


@needs_bf16
@settings(max_examples=50)
@given(rows=st.integers(64, 300), hidden_size=st.integers(8, 70), words=st.integers(16, 1027), threads=SIZES["threads"])
def test_under_autocast_the_gradient_through_what_is_expected_is_that_in_float32_but_for_rounding(
    rows, hidden_size, words, threads
):
    torch.manual_seed(0)
    hidden, weight, embedding = (torch.randn(n, hidden_size) for n in (rows, words, words))
    targets = torch.randint(words, (rows,))

    def augmented_nll(function):
        return lambda hidden, weight, *embedding: function(hidden, weight, None, targets, 0.05, *embedding, 0.65, True)

    with threads_set(threads):
        ours = results(augmented_nll(softmax_nll_in_bf16), hidden, weight, embedding)
    expected = results(augmented_nll(softmax_nll), *(tensor.double() for tensor in (hidden, weight, embedding)))
    assert ours[-1].dtype == torch.float32
    assert (ours[-1] - expected[-1]).norm() <= 2e-2 * expected[-1].norm()


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


@pytest.mark.skipif(build.extension() is None, reason="the CPU kernels cannot be built here")
@pytest.mark.parametrize(
    ("gamma", "learn_expected", "blocks_of_types"), [(0.0, False, 0), (0.5, False, 1), (0.5, True, 2)]
)
def test_loss_and_gradient_take_one_block_of_logits_and_with_gamma_some_of_the_types(
    gamma, learn_expected, blocks_of_types
):
    rows, words, hidden_size, types = 128, 2000, 8, 16
    hidden, weight = (torch.randn(n, hidden_size, requires_grad=True) for n in (rows, words))
    bias = torch.randn(words, requires_grad=True)
    targets = torch.arange(rows) % types

    def step():
        softmax_nll(hidden, weight, bias, targets, 1.0, weight, gamma, learn_expected)[0].backward()

    step()
    hidden.grad = weight.grad = bias.grad = None
    large = [size for size in allocations(step) if size >= 4 * types * words]
    assert large == [4 * rows * words, *[4 * types * words] * blocks_of_types]

    def torchs():
        F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum").backward()

    assert sum(size >= 4 * rows * words for size in allocations(torchs)) > 1
