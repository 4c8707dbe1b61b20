"""Dropout of a network's output."""

import copy
import re

import pytest
import torch

from variational_rnn import VariationalDropout

X = torch.ones(6, 3, 64)
any_time_masks = pytest.mark.parametrize("time_masks", ["constant", "fresh"])


def test_a_unit_is_dropped_at_all_time_steps_of_a_sequence():
    output = VariationalDropout(0.25)(X)
    assert len(output.unique(dim=0)) == 1
    assert len(output.unique(dim=1)[0]) == 3
    torch.testing.assert_close(output.unique(), torch.tensor([0, 1 / 0.75]))


def test_a_fresh_mask_differs_between_time_steps_and_sequences():
    output = VariationalDropout(0.25, time_masks="fresh")(X)
    assert len(output.flatten(0, 1).unique(dim=0)) == 6 * 3
    torch.testing.assert_close(output.unique(), torch.tensor([0, 1 / 0.75]))


@any_time_masks
def test_without_time_it_drops_units_of_every_row(time_masks):
    output = VariationalDropout(0.5, time_masks)(X[0])
    assert output.shape == (3, 64)
    assert len(output.unique(dim=0)) == 3


@any_time_masks
def test_another_call_draws_another_mask(time_masks):
    dropout = VariationalDropout(0.5, time_masks)
    assert not torch.equal(dropout(X), dropout(X))


@pytest.mark.parametrize("dropout", [VariationalDropout(0.5).eval(), VariationalDropout(0.0)], ids=["eval", "p is 0"])
def test_in_eval_and_with_p_0_it_returns_its_input(dropout):
    assert dropout(X) is X


@pytest.mark.parametrize("in_training", [True, False])
def test_a_given_mask_is_used_in_training_and_in_eval(in_training):
    dropout = VariationalDropout(0.5).train(in_training)
    mask = dropout.sample_masks(3, 64)
    assert torch.equal(dropout(X, mask), mask.expand(6, 3, 64))


@any_time_masks
def test_a_sampled_mask_given_without_time_keeps_the_shape_of_the_input(time_masks):
    dropout = VariationalDropout(0.5, time_masks)
    mask = dropout.sample_masks(3, 64, steps=1)
    assert torch.equal(dropout(X[0], mask), mask[0])


@any_time_masks
@pytest.mark.parametrize("mask_sharing", ["sequence", "batch"])
def test_batch_first_is_the_transpose(time_masks, mask_sharing):
    dropout = VariationalDropout(0.5, time_masks, mask_sharing=mask_sharing)
    transposed = VariationalDropout(0.5, time_masks, mask_sharing=mask_sharing, batch_first=True)
    x, mask = torch.randn(6, 3, 64), dropout.sample_masks(3, 64, 6)
    assert torch.equal(transposed(x.transpose(0, 1), mask), dropout(x, mask).transpose(0, 1))
    assert torch.equal(transposed(x[0], mask[:1]), dropout(x[0], mask[:1]))
    torch.manual_seed(1)
    sampled = dropout(x)
    torch.manual_seed(1)
    assert torch.equal(transposed(x.transpose(0, 1)), sampled.transpose(0, 1))


def test_a_mask_shared_by_the_batch_is_one_row_for_all_sequences():
    dropout = VariationalDropout(0.5, mask_sharing="batch")
    assert dropout.sample_masks(3, 64).shape == (1, 1, 64)
    output = dropout(X)
    assert len(output.flatten(0, 1).unique(dim=0)) == 1
    torch.testing.assert_close(output.unique(), torch.tensor([0.0, 2.0]))
    assert not torch.equal(dropout(X), output)
    assert len(dropout(X[0]).unique(dim=0)) == 1


def test_a_fresh_mask_shared_by_the_batch_is_a_row_for_every_time_step():
    dropout = VariationalDropout(0.5, "fresh", mask_sharing="batch")
    assert dropout.sample_masks(3, 64, 6).shape == (6, 1, 64)
    output = dropout(X)
    assert len(output.unique(dim=0)) == 6
    assert len(output.unique(dim=1)[0]) == 1


def test_a_mask_of_one_sequence_fits_any_batch():
    mask = VariationalDropout(0.5).sample_masks(1, 64)
    assert torch.equal(VariationalDropout(0.5)(X, mask), mask.expand(6, 3, 64))


@any_time_masks
def test_a_seed_is_a_generator_of_that_seed(time_masks):
    dropout = VariationalDropout(0.5, time_masks)
    before = torch.get_rng_state()
    of_seed, of_generator, other = (
        dropout.sample_masks(3, 64, 6, generator=source) for source in (7, torch.Generator().manual_seed(7), 8)
    )
    assert torch.equal(of_seed, of_generator)
    assert not torch.equal(of_seed, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_sampled_mask_has_the_dtype_of_the_input(dtype):
    assert VariationalDropout(0.5)(X.to(dtype)).dtype == dtype
    assert VariationalDropout(0.5).sample_masks(3, 64, dtype=dtype).dtype == dtype


def test_p_0_has_no_mask():
    assert VariationalDropout(0.0).sample_masks(3, 64) is None


def test_the_gradient_is_the_mask():
    x, dropout = X.clone().requires_grad_(), VariationalDropout(0.5)
    mask = dropout.sample_masks(3, 64)
    dropout(x, mask).sum().backward()
    assert torch.equal(x.grad, mask.expand(6, 3, 64))


def test_a_copy_is_in_the_same_mode_and_drops_as_the_original():
    dropout = VariationalDropout(0.5, "fresh", batch_first=True)
    twin = copy.deepcopy(dropout)
    torch.manual_seed(1)
    expected = dropout(X)
    torch.manual_seed(1)
    assert torch.equal(twin(X), expected)
    assert copy.deepcopy(dropout.eval())(X) is X


@pytest.mark.parametrize("shape", [(), (64,), (6, 3, 8, 8)])
@pytest.mark.parametrize("mask", [None, torch.ones(1, 3, 64)], ids=["sampled", "given"])
def test_input_without_sequences_or_of_many_dimensions_is_refused(shape, mask):
    with pytest.raises(ValueError, match=re.escape(f"expected [T, B, F] or [B, F], got {list(shape)}")):
        VariationalDropout(0.5)(torch.ones(shape), mask)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(1, 3, 64).double(), ValueError, "mask has dtype torch.float64, expected torch.float32"),
        (torch.ones(5, 3, 64), ValueError, "has shape [5, 3, 64], expected [time 1|6, batch 1|3, features 64]"),
        (torch.ones(6, 2, 64), ValueError, "has shape [6, 2, 64], expected [time 1|6, batch 1|3, features 64]"),
        (torch.ones(6, 3, 1), ValueError, "has shape [6, 3, 1], expected [time 1|6, batch 1|3, features 64]"),
        (torch.ones(3, 64), ValueError, "has shape [3, 64], expected [time 1|6, batch 1|3, features 64]"),
        (0.5, TypeError, "mask must be a tensor or None, got float"),
    ],
    ids=["dtype", "steps", "batch", "features", "dimensions", "type"],
)
def test_a_mask_that_does_not_fit_is_refused_naming_got_and_expected(mask, error, message):
    with pytest.raises(error, match=re.escape(message)):
        VariationalDropout(0.5)(X, mask)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"p": 1.0}, "p is the probability to drop and must lie in [0, 1), got 1.0"),
        ({"p": 0.5, "time_masks": "variational"}, "time_masks must be one of 'constant', 'fresh', got 'variational'"),
        ({"p": 0.5, "mask_sharing": "none"}, "mask_sharing must be one of 'sequence', 'batch', got 'none'"),
    ],
)
def test_unknown_choices_and_probabilities_are_refused_by_name(kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        VariationalDropout(**kwargs)


def test_fresh_masks_need_the_number_of_steps():
    with pytest.raises(ValueError, match="pass steps"):
        VariationalDropout(0.5, time_masks="fresh").sample_masks(3, 64)


def test_representation_shows_the_dropout_scheme():
    assert (
        repr(VariationalDropout(0.5, "fresh"))
        == "VariationalDropout(p=0.5, time_masks='fresh', mask_sharing='sequence')"
    )


def test_a_packed_sequence_is_refused_with_what_to_do():
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3, 4)])
    with pytest.raises(TypeError, match="x must be a tensor, got PackedSequence; unpack"):
        VariationalDropout(0.5)(packed)
