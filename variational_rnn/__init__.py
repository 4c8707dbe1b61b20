"""Recurrent layers with variational dropout (Gal & Ghahramani 2016), drop-in replacements of torch.nn's.

Depends only on PyTorch. p is always the probability to drop; scaling is inverted (divided by 1-p in training).
"""

from variational_rnn import theory
from variational_rnn.cells import VariationalGRUCell, VariationalLSTMCell, VariationalRNNCell
from variational_rnn.dropout import VariationalDropout
from variational_rnn.embedding import VariationalEmbedding
from variational_rnn.estimators import (
    log_mean_exp,
    mutual_information,
    predictive_entropy,
    predictive_mean_and_variance,
    regression_log_likelihood,
)
from variational_rnn.masks import LayerMasks, RNNMasks
from variational_rnn.mc import mc_dropout
from variational_rnn.modules import VariationalGRU, VariationalLSTM, VariationalRNN

__all__ = [
    "LayerMasks",
    "RNNMasks",
    "VariationalDropout",
    "VariationalEmbedding",
    "VariationalGRU",
    "VariationalGRUCell",
    "VariationalLSTM",
    "VariationalLSTMCell",
    "VariationalRNN",
    "VariationalRNNCell",
    "log_mean_exp",
    "mc_dropout",
    "mutual_information",
    "predictive_entropy",
    "predictive_mean_and_variance",
    "regression_log_likelihood",
    "theory",
]
