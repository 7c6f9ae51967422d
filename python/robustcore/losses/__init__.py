"""Fused per-sample losses for training on noisy labels."""

from .comp_sum_loss import CompSumLoss, comp_sum_loss
from .crossmax import CrossMax, crossmax
from .gated_cross_entropy import (
    GatedCrossEntropyLoss,
    gated_cross_entropy,
    gated_cross_entropy_scores,
)
from .linear_gated_cross_entropy import LinearGatedCrossEntropyLoss, linear_gated_cross_entropy
from .pi_dual import PiDUAL
from .results import GatedCrossEntropyScores, NoiseScores, ShrinkMatchScores
from .shrink_match_loss import ShrinkMatchLoss, shrink_match_loss, shrink_match_scores
from .taylor_cross_entropy import TaylorCrossEntropyLoss, taylor_cross_entropy
from .weights import dro_weights

__all__ = [
    "CompSumLoss",
    "CrossMax",
    "GatedCrossEntropyLoss",
    "GatedCrossEntropyScores",
    "LinearGatedCrossEntropyLoss",
    "NoiseScores",
    "PiDUAL",
    "ShrinkMatchLoss",
    "ShrinkMatchScores",
    "TaylorCrossEntropyLoss",
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
