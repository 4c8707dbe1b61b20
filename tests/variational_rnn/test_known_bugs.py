"""Bugs seen in other implementations of dropout in recurrent networks; each is named with where it was seen."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from variational_rnn import (
    VariationalDropout,
    VariationalEmbedding,
    VariationalGRU,
    VariationalLSTM,
    VariationalRNN,
    log_mean_exp,
    mc_dropout,
)

LAYERS = [VariationalLSTM, VariationalGRU, VariationalRNN]
any_layer = pytest.mark.parametrize("ours", LAYERS)


def h_of(state):
    return state[0] if isinstance(state, tuple) else state


@any_layer
def test_recurrent_mask_drops_entries_of_h_that_is_columns_of_w_hh_and_no_row(ours):
    """salesforce/awd-lstm-lm with variational=True and its copies."""
    rnn = ours(3, 16, recurrent_dropout=0.5)
    masks = rnn.sample_masks(1)
    h_0 = torch.randn(1, 1, 16)
    output, _ = rnn(torch.randn(1, 1, 3), (h_0, torch.randn(1, 1, 16)) if ours is VariationalLSTM else h_0, masks)
    output.sum().backward()
    has_gradient = rnn.weight_hh_l0.grad != 0
    kept = masks.layers[0].recurrent[0, 0, 0] != 0
    assert torch.equal(has_gradient, kept.expand_as(has_gradient))


@any_layer
def test_nothing_is_random_in_eval(ours):
    """salesforce/awd-lstm-lm #72."""
    rnn = ours(3, 16, 2, input_dropout=0.5, recurrent_dropout=0.5, backend="reference").eval()
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(rnn(x), rnn(x), rtol=0, atol=0)


@any_layer
def test_weights_are_the_same_after_ten_forwards_and_not_overwritten_by_their_dropped_copy(ours):
    """Better_LSTM #7: all zero after ten forwards."""
    rnn = ours(3, 16, 2, input_dropout=0.5, recurrent_dropout=0.5)
    before = {name: parameter.clone() for name, parameter in rnn.state_dict().items()}
    for _ in range(10):
        rnn(torch.randn(5, 2, 3))[0].sum().backward()
    torch.testing.assert_close(dict(rnn.state_dict()), before, rtol=0, atol=0)


@any_layer
def test_train_eval_train_keeps_parameters_and_their_gradients(ours):
    """awd-lstm-lm #79 and #119, pytorch #32346, fastai2 #427."""
    rnn = ours(16, 16, 2, input_dropout=0.5, recurrent_dropout=0.5)
    parameters, x, masks = list(rnn.parameters()), torch.randn(5, 2, 16), rnn.sample_masks(2)
    before = torch.autograd.grad(rnn(x, masks=masks)[0].sum(), parameters)
    rnn.eval()(x)
    rnn.train()
    after = torch.autograd.grad(rnn(x, masks=masks)[0].sum(), parameters)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert all(one is other for one, other in zip(rnn.parameters(), parameters, strict=True))
    rnn(x)[0].sum().backward()
    assert all(parameter.grad.any() for parameter in parameters)


def test_gru_does_not_explode_in_200_steps_with_a_mask_on_the_recurrent_input():
    """tensorflow #11650 and #15150, keras PR #20656: the carried state was masked, a factor 1/(1-p) at every step."""
    gru = VariationalGRU(3, 16, recurrent_dropout=0.5)
    with torch.no_grad():
        gru.bias_ih_l0[16:32] = 10.0  # the update gate carries nearly all of h on
    output, _ = gru(torch.randn(200, 4, 3), torch.ones(1, 4, 16))
    assert output.abs().max() <= 1  # h is a mean of the former h and a tanh
    assert output[-1].min() > 0.5  # and no entry is forgotten


@any_layer
def test_final_state_of_every_sequence_of_a_packed_batch_has_a_gradient(ours):
    """allennlp #2530: it was zero for all but the longest."""
    rnn = ours(3, 16, input_dropout=0.2, recurrent_dropout=0.5)
    sequences = [torch.randn(length, 3, requires_grad=True) for length in (2, 5, 1, 4)]
    _, state = rnn(pack_sequence(sequences, enforce_sorted=False))
    h_of(state).sum().backward()
    for sequence in sequences:
        assert sequence.grad[-1].any()


@any_layer
def test_final_state_is_the_last_output_and_not_masked(ours):
    """supar: h_n was the masked state."""
    rnn = ours(3, 16, recurrent_dropout=0.9)
    output, state = rnn(torch.randn(5, 4, 3))
    assert torch.equal(h_of(state)[0], output[-1])
    assert output.all()


@any_layer
def test_recurrence_and_next_layer_read_h_through_masks_of_their_own(ours):
    """allennlp #2320: one mask was used for recurrence and output."""
    lower, upper = ours(16, 16, 2, input_dropout=0.5, recurrent_dropout=0.5).sample_masks(4).layers
    assert lower.recurrent.shape == upper.input.shape
    assert not torch.equal(lower.recurrent, upper.input)


@any_layer
@pytest.mark.parametrize("dropout", ["input_dropout", "recurrent_dropout"])
def test_sequences_of_a_minibatch_do_not_share_a_mask(ours, dropout):
    """dynet #812."""
    rnn = ours(16, 16, **{dropout: 0.5})
    output, _ = rnn(torch.randn(5, 1, 16).expand(5, 4, 16))
    assert len(output[-1].unique(dim=0)) == 4


@any_layer
def test_tied_or_untied_depends_on_gate_masks_and_on_no_other_flag(ours):
    """tensorflow #40215."""
    for bias, batch_first, bidirectional, time_masks, mask_sharing, backend, gate_masks in itertools.product(
        *[[True, False]] * 3,
        ["constant", "fresh"],
        ["sequence", "batch"],
        ["auto", "reference"],
        ["tied", "untied"],
    ):
        rnn = ours(
            3, 4, 2, bias=bias, batch_first=batch_first, bidirectional=bidirectional, input_dropout=0.1,
            recurrent_dropout=0.1, gate_masks=gate_masks, time_masks=time_masks, mask_sharing=mask_sharing,
            backend=backend,
        )  # fmt: skip
        gates = len(rnn.weight_hh_l0) // 4 if gate_masks == "untied" else 1
        for layer in rnn.sample_masks(2, 5).layers:
            assert layer.input.size(1) == layer.recurrent.size(1) == gates


def test_occurrences_of_a_word_are_tied_also_where_no_two_rows_of_the_batch_are_equal():
    """yaringal/BayesianRNN #4: whole rows were compared, so that words never were tied."""
    embedding = VariationalEmbedding(12, 4, word_dropout=0.5)
    words = torch.stack([torch.zeros(11, dtype=torch.long), torch.arange(1, 12)], dim=1)
    for _ in range(20):
        assert len(embedding(words)[:, 0].unique(dim=0)) == 1


@any_layer
def test_monte_carlo_samples_are_exchangeable_and_start_from_no_state_of_the_one_before(ours):
    """nlp-uncertainty-zoo: each sample started from the state the previous one left."""
    rnn = ours(3, 16, 2, input_dropout=0.5, recurrent_dropout=0.5).eval()
    x = torch.randn(5, 2, 3)
    with mc_dropout(rnn):
        torch.manual_seed(1)
        first = rnn(x)
        rnn(x)
        torch.manual_seed(1)
        third = rnn(x)
    torch.testing.assert_close(third, first, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("module", "x"),
    [
        *((ours(16, 16, recurrent_dropout=0.5), torch.ones(4, 2, 16)) for ours in LAYERS),
        (VariationalDropout(0.5), torch.ones(4, 2, 16)),
        (VariationalEmbedding(8, 16, word_dropout=0.5), torch.arange(8).unsqueeze(1)),
    ],
)
def test_monte_carlo_dropout_finds_dropout_by_masks_and_not_only_nn_dropout(module, x):
    """torch-uncertainty and lightning-uq-box look for nn.Dropout alone."""
    assert not any(isinstance(part, nn.Dropout) for part in module.modules())
    module.eval()
    with mc_dropout(module):
        one, other = module(x), module(x)
    assert not torch.equal(h_of(one), h_of(other))


def test_monte_carlo_dropout_survives_a_trainer_that_sets_and_restores_each_modules_mode():
    """darts #2300, Lightning >= 2.2."""
    model = nn.Sequential(VariationalGRU(3, 16, recurrent_dropout=0.5), nn.Identity())
    x = torch.randn(5, 2, 3)
    with mc_dropout(model):
        modes = {module: module.training for module in model.modules()}
        model.eval()
        assert not torch.equal(model(x)[0], model(x)[0])
        for module, training in modes.items():
            module.training = training
    assert all(module.training for module in model.modules())
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


def test_monte_carlo_perplexity_averages_probabilities_and_not_their_logs():
    """The mean of logs is the perplexity of a geometric mean, and larger."""
    probabilities = torch.tensor([[0.5, 0.1], [0.1, 0.3]])
    perplexity = torch.exp(-log_mean_exp(probabilities.log()).mean())
    assert perplexity.item() == pytest.approx(1 / math.sqrt(0.3 * 0.2))
    assert perplexity < torch.exp(-probabilities.log().mean())


@any_layer
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_masks_do_not_depend_on_the_number_of_processes_and_differ_between_them(ours, processes):
    """Each process drew its own from a seed that all share, or all drew the same."""
    rnn = ours(3, 16, 2, input_dropout=0.5, recurrent_dropout=0.5, dtype=torch.float64)
    x = torch.randn(5, 1, 3, dtype=torch.float64).expand(5, 8, 3)
    of_one_process, _ = rnn(x, masks=rnn.sample_masks(8, generator=1))
    parts = []
    for sequences in torch.arange(8).chunk(processes):
        masks = rnn.sample_masks(8, generator=1).select(sequences)
        parts.append(rnn(x[:, sequences], masks=masks)[0])
    torch.testing.assert_close(torch.cat(parts, dim=1), of_one_process)
    assert len(of_one_process[-1].unique(dim=0)) == 8
