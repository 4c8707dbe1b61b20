"""Dropout of a network's output."""

import pytest
import torch

from variational_rnn import VariationalDropout

X = torch.ones(6, 3, 64)


def test_a_unit_is_dropped_at_all_time_steps_of_a_sequence():
    output = VariationalDropout(0.25)(X)
    assert len(output.unique(dim=0)) == 1
    assert len(output.unique(dim=1)[0]) == 3
    torch.testing.assert_close(output.unique(), torch.tensor([0, 1 / 0.75]))


def test_a_fresh_mask_differs_between_time_steps_and_sequences():
    output = VariationalDropout(0.25, time_masks="fresh")(X)
    assert len(output.flatten(0, 1).unique(dim=0)) == 6 * 3
    torch.testing.assert_close(output.unique(), torch.tensor([0, 1 / 0.75]))


@pytest.mark.parametrize("time_masks", ["constant", "fresh"])
def test_without_time_it_drops_units_of_every_row(time_masks):
    output = VariationalDropout(0.5, time_masks)(X[0])
    assert output.shape == (3, 64)
    assert len(output.unique(dim=0)) == 3


@pytest.mark.parametrize("time_masks", ["constant", "fresh"])
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


@pytest.mark.parametrize("time_masks", ["constant", "fresh"])
def test_a_sampled_mask_given_without_time_keeps_the_shape_of_the_input(time_masks):
    dropout = VariationalDropout(0.5, time_masks)
    mask = dropout.sample_masks(3, 64, steps=1)
    assert torch.equal(dropout(X[0], mask), mask[0])


def test_fresh_masks_need_the_number_of_steps():
    with pytest.raises(ValueError, match="pass steps"):
        VariationalDropout(0.5, time_masks="fresh").sample_masks(3, 64)


def test_representation_shows_the_dropout_scheme():
    assert (
        repr(VariationalDropout(0.5, "fresh"))
        == "VariationalDropout(p=0.5, time_masks='fresh', mask_sharing='sequence')"
    )
