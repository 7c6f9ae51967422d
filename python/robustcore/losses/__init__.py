"""Fused per-sample losses for training on noisy labels."""

from .gated_cross_entropy import (
    GatedCrossEntropyLoss,
    gated_cross_entropy,
    gated_cross_entropy_scores,
)
from .pi_dual import PiDUAL
from .results import GatedCrossEntropyScores, NoiseScores

__all__ = [
    "GatedCrossEntropyLoss",
    "GatedCrossEntropyScores",
    "NoiseScores",
    "PiDUAL",
    "gated_cross_entropy",
    "gated_cross_entropy_scores",
]
