"""Fused per-sample losses for training on noisy labels."""

from .afm import AFM
from .comp_sum_loss import CompSumLoss, comp_sum_loss
from .gated_cross_entropy import (
    GatedCrossEntropyLoss,
    gated_cross_entropy,
    gated_cross_entropy_scores,
)
from .heteroscedastic_cross_entropy import (
    HeteroscedasticCrossEntropyLoss,
    heteroscedastic_cross_entropy,
    heteroscedastic_log_probabilities,
)
from .heteroscedastic_head import HeteroscedasticHead, HeteroscedasticLogits
from .pi_dual import PiDUAL
from .privileged_information import PrivilegedHead, random_privileged_information
from .results import GatedCrossEntropyScores, NoiseScores
from .taylor_cross_entropy import TaylorCrossEntropyLoss, taylor_cross_entropy
from .tram import TRAM

__all__ = [
    "AFM",
    "TRAM",
    "CompSumLoss",
    "GatedCrossEntropyLoss",
    "GatedCrossEntropyScores",
    "HeteroscedasticCrossEntropyLoss",
    "HeteroscedasticHead",
    "HeteroscedasticLogits",
    "NoiseScores",
    "PiDUAL",
    "PrivilegedHead",
    "TaylorCrossEntropyLoss",
    "comp_sum_loss",
    "gated_cross_entropy",
    "gated_cross_entropy_scores",
    "heteroscedastic_cross_entropy",
    "heteroscedastic_log_probabilities",
    "random_privileged_information",
    "taylor_cross_entropy",
]
