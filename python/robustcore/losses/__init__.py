"""Fused per-sample losses for training on noisy labels."""

from .comp_sum_loss import CompSumLoss, comp_sum_loss
from .gated_cross_entropy import (
    GatedCrossEntropyLoss,
    gated_cross_entropy,
    gated_cross_entropy_scores,
)
from .linear_gated_cross_entropy import LinearGatedCrossEntropyLoss, linear_gated_cross_entropy
from .pi_dual import PiDUAL
from .results import GatedCrossEntropyScores, NoiseScores
from .taylor_cross_entropy import TaylorCrossEntropyLoss, taylor_cross_entropy
from .weights import dro_weights

__all__ = [
    "CompSumLoss",
    "GatedCrossEntropyLoss",
    "GatedCrossEntropyScores",
    "LinearGatedCrossEntropyLoss",
    "NoiseScores",
    "PiDUAL",
    "TaylorCrossEntropyLoss",
    "comp_sum_loss",
    "dro_weights",
    "gated_cross_entropy",
    "gated_cross_entropy_scores",
    "linear_gated_cross_entropy",
    "taylor_cross_entropy",
]
