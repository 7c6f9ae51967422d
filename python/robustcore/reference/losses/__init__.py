"""Losses for noisy labels in plain PyTorch; :mod:`robustcore.losses` documents the arguments."""

from .comp_sum_loss import comp_sum_loss
from .gated_cross_entropy import gated_cross_entropy, gated_cross_entropy_scores
from .linear_gated_cross_entropy import linear_gated_cross_entropy
from .taylor_cross_entropy import taylor_cross_entropy
from .weights import dro_weights

__all__ = [
    "comp_sum_loss",
    "dro_weights",
    "gated_cross_entropy",
    "gated_cross_entropy_scores",
    "linear_gated_cross_entropy",
    "taylor_cross_entropy",
]
