"""Losses for noisy labels in plain PyTorch; :mod:`robustcore.losses` documents the arguments."""

from .comp_sum_loss import comp_sum_loss
from .energy_weighted_loss import energy_weighted_loss
from .energy_weights import energy_weights
from .gated_cross_entropy import gated_cross_entropy, gated_cross_entropy_scores
from .mixture_cross_entropy import mixture_cross_entropy
from .mixture_log_softmax import mixture_log_softmax
from .pair_kl_divergence import pair_kl_divergence
from .smooth_adversarial_loss import smooth_adversarial_loss
from .taylor_cross_entropy import taylor_cross_entropy

__all__ = [
    "comp_sum_loss",
    "energy_weighted_loss",
    "energy_weights",
    "gated_cross_entropy",
    "gated_cross_entropy_scores",
    "mixture_cross_entropy",
    "mixture_log_softmax",
    "pair_kl_divergence",
    "smooth_adversarial_loss",
    "taylor_cross_entropy",
]
