"""Losses for noisy labels in plain PyTorch; :mod:`robustcore.losses` documents the arguments."""

from .comp_sum_loss import comp_sum_loss
from .crossmax import crossmax
from .gated_cross_entropy import gated_cross_entropy, gated_cross_entropy_scores
from .linear_gated_cross_entropy import linear_gated_cross_entropy
from .shrink_match_loss import shrink_match_loss, shrink_match_scores
from .taylor_cross_entropy import taylor_cross_entropy
from .weights import dro_weights

__all__ = [
    "comp_sum_loss",
    "crossmax",
    "dro_weights",
    "gated_cross_entropy",
    "gated_cross_entropy_scores",
    "linear_gated_cross_entropy",
    "shrink_match_loss",
    "shrink_match_scores",
    "taylor_cross_entropy",
]
