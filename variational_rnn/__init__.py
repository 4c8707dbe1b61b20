"""Recurrent layers with variational dropout (Gal & Ghahramani 2016), drop-in replacements of torch.nn's.

Knows torch and nothing else. p is always the probability to drop; scaling is inverted (divided by 1-p in training).
"""

from variational_rnn.embedding import VariationalEmbedding
from variational_rnn.masks import LayerMasks, RNNMasks
from variational_rnn.mc import log_mean_exp, mc_dropout
from variational_rnn.modules import VariationalDropout, VariationalGRU, VariationalLSTM, VariationalRNN

__all__ = [
    "LayerMasks",
    "RNNMasks",
    "VariationalDropout",
    "VariationalEmbedding",
    "VariationalGRU",
    "VariationalLSTM",
    "VariationalRNN",
    "log_mean_exp",
    "mc_dropout",
]
