"""Fused per-sample losses for training on noisy labels."""

from .comp_sum_loss import CompSumLoss, comp_sum_loss
from .early_learning_loss import EarlyLearningLoss, early_learning_loss
from .gated_cross_entropy import (
    GatedCrossEntropyLoss,
    gated_cross_entropy,
    gated_cross_entropy_scores,
)
from .over_parameterized_loss import OverParameterizedLoss, over_parameterized_loss
from .pi_dual import PiDUAL
from .results import GatedCrossEntropyScores, NoiseScores

__all__ = [
    "CompSumLoss",
    "EarlyLearningLoss",
    "GatedCrossEntropyLoss",
    "GatedCrossEntropyScores",
    "NoiseScores",
    "OverParameterizedLoss",
    "PiDUAL",
    "comp_sum_loss",
    "early_learning_loss",
    "gated_cross_entropy",
    "gated_cross_entropy_scores",
    "over_parameterized_loss",
]
