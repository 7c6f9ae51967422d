"""Losses for noisy labels in plain PyTorch; :mod:`robustcore.losses` documents the arguments."""

from .comp_sum_loss import comp_sum_loss
from .early_learning_loss import early_learning_loss
from .gated_cross_entropy import gated_cross_entropy, gated_cross_entropy_scores
from .over_parameterized_loss import over_parameterized_loss

__all__ = [
    "comp_sum_loss",
    "early_learning_loss",
    "gated_cross_entropy",
    "gated_cross_entropy_scores",
    "over_parameterized_loss",
]
