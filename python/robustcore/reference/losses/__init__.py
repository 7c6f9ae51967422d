"""Losses for noisy labels in plain PyTorch; :mod:`robustcore.losses` documents the arguments."""

from .comp_sum_loss import comp_sum_loss
from .crossmax import crossmax
from .early_learning_loss import early_learning_loss
from .energy_weighted_loss import energy_weighted_loss
from .energy_weights import energy_weights
from .gated_cross_entropy import gated_cross_entropy, gated_cross_entropy_scores
from .heteroscedastic_cross_entropy import (
    heteroscedastic_cross_entropy,
    heteroscedastic_log_probabilities,
)
from .ldr_kl_loss import (
    aldr_kl_indexed_loss,
    aldr_kl_loss,
    aldr_kl_temperature,
    ldr_kl_loss,
)
from .linear_gated_cross_entropy import linear_gated_cross_entropy
from .mixture_cross_entropy import mixture_cross_entropy
from .mixture_log_softmax import mixture_log_softmax
from .normalized_cross_entropy import normalized_cross_entropy
from .over_parameterized_loss import over_parameterized_loss
from .pair_kl_divergence import pair_kl_divergence
from .privileged_information import random_privileged_information
from .shrink_match_loss import shrink_match_loss, shrink_match_scores
from .smooth_adversarial_loss import smooth_adversarial_loss
from .spherical_z_loss import spherical_z_loss
from .symmetric_cross_entropy import symmetric_cross_entropy
from .taylor_cross_entropy import taylor_cross_entropy
from .weights import dro_weights

__all__ = [
    "aldr_kl_indexed_loss",
    "aldr_kl_loss",
    "aldr_kl_temperature",
    "comp_sum_loss",
    "crossmax",
    "dro_weights",
    "early_learning_loss",
    "energy_weighted_loss",
    "energy_weights",
    "gated_cross_entropy",
    "gated_cross_entropy_scores",
    "heteroscedastic_cross_entropy",
    "heteroscedastic_log_probabilities",
    "ldr_kl_loss",
    "linear_gated_cross_entropy",
    "mixture_cross_entropy",
    "mixture_log_softmax",
    "normalized_cross_entropy",
    "over_parameterized_loss",
    "pair_kl_divergence",
    "random_privileged_information",
    "shrink_match_loss",
    "shrink_match_scores",
    "smooth_adversarial_loss",
    "spherical_z_loss",
    "symmetric_cross_entropy",
    "taylor_cross_entropy",
]
