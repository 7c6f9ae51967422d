"""Losses for noisy labels in plain PyTorch; :mod:`robustcore.losses` documents the arguments."""

from .comp_sum_loss import comp_sum_loss
from .gated_cross_entropy import gated_cross_entropy, gated_cross_entropy_scores
from .heteroscedastic_cross_entropy import (
    heteroscedastic_cross_entropy,
    heteroscedastic_log_probabilities,
)
from .privileged_information import random_privileged_information
from .taylor_cross_entropy import taylor_cross_entropy

__all__ = [
    "comp_sum_loss",
    "gated_cross_entropy",
    "gated_cross_entropy_scores",
    "heteroscedastic_cross_entropy",
    "heteroscedastic_log_probabilities",
    "random_privileged_information",
    "taylor_cross_entropy",
]
