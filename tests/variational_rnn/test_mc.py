"""Monte Carlo dropout."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from variational_rnn import VariationalDropout, VariationalEmbedding, VariationalGRU, log_mean_exp, mc_dropout

WORDS = torch.arange(8).unsqueeze(1)
log_probabilities = st.lists(st.floats(-600, 0), min_size=1, max_size=10)


class Tagger(nn.Module):
    """A model with dropout of this library at three places, and an ordinary nn.Dropout and batch norm."""

    def __init__(self, p=0.5):
        super().__init__()
        self.embedding = VariationalEmbedding(8, 16, word_dropout=p)
        self.gru = VariationalGRU(16, 16, input_dropout=p, recurrent_dropout=p)
        self.dropout = VariationalDropout(p)
        self.ordinary = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, words):
        return self.norm(self.ordinary(self.dropout(self.gru(self.embedding(words))[0]).squeeze(1)))


def is_stochastic(model, x=WORDS):
    return not torch.equal(model(x), model(x))


def test_dropout_is_live_within_the_context_only():
    model = Tagger().eval()
    assert not is_stochastic(model)
    with mc_dropout(model) as same:
        assert same is model
        assert is_stochastic(model)
    assert not is_stochastic(model)


def test_no_module_leaves_eval_and_ordinary_dropout_and_batch_norm_stay_off():
    model = Tagger().eval()
    with mc_dropout(model):
        assert not any(module.training for module in model.modules())
        assert torch.equal(model.ordinary(torch.ones(100)), torch.ones(100))
        model(WORDS)
        assert model.norm.num_batches_tracked == 0


def test_a_model_in_mixed_modes_keeps_every_mode():
    model = Tagger().train()
    model.gru.eval()
    before = [module.training for module in model.modules()]
    with mc_dropout(model):
        assert [module.training for module in model.modules()] == before
    assert [module.training for module in model.modules()] == before


def test_eval_called_within_the_context_does_not_switch_it_off():
    model = Tagger().train()
    with mc_dropout(model):
        model.eval()
        assert is_stochastic(model)
    assert not model.training
    assert not is_stochastic(model)


def test_contexts_nest():
    model = Tagger().eval()
    with mc_dropout(model):
        with mc_dropout(model.dropout):
            assert is_stochastic(model.dropout, torch.ones(4, 1, 16))
        assert is_stochastic(model.dropout, torch.ones(4, 1, 16))
    assert not is_stochastic(model)


def test_the_former_setting_comes_back_when_an_exception_leaves_the_context():
    model = Tagger().eval()
    with pytest.raises(KeyError), mc_dropout(model):
        raise KeyError
    assert not is_stochastic(model)


def test_a_part_of_a_model_can_be_sampled_alone():
    model = Tagger().eval()
    with mc_dropout(model.dropout):
        assert not is_stochastic(model.embedding)
        assert is_stochastic(model)


def test_a_model_with_nothing_to_sample_is_refused_by_name():
    with (
        pytest.raises(ValueError, match="in Sequential: there is nothing to sample"),
        mc_dropout(nn.Sequential(nn.LSTM(3, 4), nn.Dropout(0.5))),
    ):
        pass


def test_one_sample_with_p_0_is_the_approximation():
    model = Tagger(p=0.0).eval()
    approximation = model(WORDS).log_softmax(-1)
    with mc_dropout(model):
        samples = torch.stack([model(WORDS).log_softmax(-1)])
    assert torch.equal(log_mean_exp(samples), approximation)


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
