"""Fused per-sample losses for training on noisy labels."""

from .aldr_kl_loss import ALDRKLLoss, aldr_kl_loss, aldr_kl_temperature
from .comp_sum_loss import CompSumLoss, comp_sum_loss
from .gated_cross_entropy import (
    GatedCrossEntropyLoss,
    gated_cross_entropy,
    gated_cross_entropy_scores,
)
from .ldr_kl_loss import LDRKLLoss, ldr_kl_loss
from .normalized_cross_entropy import NormalizedCrossEntropyLoss, normalized_cross_entropy
from .pi_dual import PiDUAL
from .results import GatedCrossEntropyScores, NoiseScores
from .spherical_z_loss import SphericalZLoss, spherical_z_loss
from .symmetric_cross_entropy import SymmetricCrossEntropyLoss, symmetric_cross_entropy

__all__ = [
    "ALDRKLLoss",
    "CompSumLoss",
    "GatedCrossEntropyLoss",
    "GatedCrossEntropyScores",
    "LDRKLLoss",
    "NoiseScores",
    "NormalizedCrossEntropyLoss",
    "PiDUAL",
    "SphericalZLoss",
    "SymmetricCrossEntropyLoss",
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
