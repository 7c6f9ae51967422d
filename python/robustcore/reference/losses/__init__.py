"""Losses for noisy labels in plain PyTorch; :mod:`robustcore.losses` documents the arguments."""

from .comp_sum_loss import comp_sum_loss
from .gated_cross_entropy import gated_cross_entropy, gated_cross_entropy_scores
from .ldr_kl_loss import aldr_kl_loss, aldr_kl_temperature, ldr_kl_loss
from .normalized_cross_entropy import normalized_cross_entropy
from .spherical_z_loss import spherical_z_loss
from .symmetric_cross_entropy import symmetric_cross_entropy

__all__ = [
    "aldr_kl_loss",
    "aldr_kl_temperature",
    "comp_sum_loss",
    "gated_cross_entropy",
    "gated_cross_entropy_scores",
    "ldr_kl_loss",
    "normalized_cross_entropy",
    "spherical_z_loss",
    "symmetric_cross_entropy",
]
