"""Fused per-sample losses for training on noisy labels."""

from . import noise_detection as noise_detection
from .afm import AFM
from .comp_sum_loss import CompSumLoss, comp_sum_loss
from .crossmax import CrossMax, crossmax
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
from .linear_gated_cross_entropy import LinearGatedCrossEntropyLoss, linear_gated_cross_entropy
from .pi_dual import PiDUAL
from .privileged_information import PrivilegedHead, random_privileged_information
from .results import GatedCrossEntropyScores, NoiseScores, ShrinkMatchScores
from .shrink_match_loss import ShrinkMatchLoss, shrink_match_loss, shrink_match_scores
from .taylor_cross_entropy import TaylorCrossEntropyLoss, taylor_cross_entropy
from .tram import TRAM
from .weights import dro_weights

__all__ = [
    "AFM",
    "TRAM",
    "CompSumLoss",
    "CrossMax",
    "GatedCrossEntropyLoss",
    "GatedCrossEntropyScores",
    "HeteroscedasticCrossEntropyLoss",
    "HeteroscedasticHead",
    "HeteroscedasticLogits",
    "LinearGatedCrossEntropyLoss",
    "NoiseScores",
    "PiDUAL",
    "PrivilegedHead",
    "ShrinkMatchLoss",
    "ShrinkMatchScores",
    "TaylorCrossEntropyLoss",
    "comp_sum_loss",
    "crossmax",
    "dro_weights",
    "gated_cross_entropy",
    "gated_cross_entropy_scores",
    "heteroscedastic_cross_entropy",
    "heteroscedastic_log_probabilities",
    "linear_gated_cross_entropy",
    "random_privileged_information",
    "shrink_match_loss",
    "shrink_match_scores",
    "taylor_cross_entropy",
]
