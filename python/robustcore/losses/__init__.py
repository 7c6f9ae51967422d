"""Fused per-sample losses for training on noisy labels."""

from . import noise_detection as noise_detection
from .comp_sum_loss import CompSumLoss, comp_sum_loss
from .gated_cross_entropy import (
    GatedCrossEntropyLoss,
    gated_cross_entropy,
    gated_cross_entropy_scores,
)
from .pi_dual import PiDUAL
from .results import GatedCrossEntropyScores, NoiseScores
from .taylor_cross_entropy import TaylorCrossEntropyLoss, taylor_cross_entropy

__all__ = [
    "CompSumLoss",
    "GatedCrossEntropyLoss",
    "GatedCrossEntropyScores",
    "NoiseScores",
    "PiDUAL",
    "TaylorCrossEntropyLoss",
    "comp_sum_loss",
    "gated_cross_entropy",
    "gated_cross_entropy_scores",
    "taylor_cross_entropy",
]
