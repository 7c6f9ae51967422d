"""Losses for noisy labels in plain PyTorch; :mod:`robustcore.losses` documents the arguments."""

from .comp_sum_loss import comp_sum_loss
from .crossmax import crossmax
from .gated_cross_entropy import gated_cross_entropy, gated_cross_entropy_scores
from .heteroscedastic_cross_entropy import (
    heteroscedastic_cross_entropy,
    heteroscedastic_log_probabilities,
)
from .linear_gated_cross_entropy import linear_gated_cross_entropy
from .privileged_information import random_privileged_information
from .shrink_match_loss import shrink_match_loss, shrink_match_scores
from .taylor_cross_entropy import taylor_cross_entropy
from .weights import dro_weights

__all__ = [
    "comp_sum_loss",
    "crossmax",
    "dro_weights",
    "gated_cross_entropy",
    "gated_cross_entropy_scores",
    "heteroscedastic_cross_entropy",
    "heteroscedastic_log_probabilities",
    "linear_gated_cross_entropy",
    "random_privileged_information",
    "shrink_match_loss",
    "shrink_match_scores",
    "taylor_cross_entropy",
]
