"""Fused per-sample losses for training on noisy labels."""

from .comp_sum_loss import CompSumLoss, comp_sum_loss
from .energy_weighted_loss import WEAT, energy_weighted_loss
from .energy_weights import energy_weights
from .gated_cross_entropy import (
    GatedCrossEntropyLoss,
    gated_cross_entropy,
    gated_cross_entropy_scores,
)
from .mixture_cross_entropy import MixtureCrossEntropyLoss, mixture_cross_entropy
from .mixture_log_softmax import MixtureLogSoftmax, mixture_log_softmax
from .pair_kl_divergence import PairKLDivergence, pair_kl_divergence
from .pi_dual import PiDUAL
from .results import GatedCrossEntropyScores, NoiseScores
from .smooth_adversarial_loss import SmoothAdversarialLoss, smooth_adversarial_loss
from .taylor_cross_entropy import TaylorCrossEntropyLoss, taylor_cross_entropy

__all__ = [
    "WEAT",
    "CompSumLoss",
    "GatedCrossEntropyLoss",
    "GatedCrossEntropyScores",
    "MixtureCrossEntropyLoss",
    "MixtureLogSoftmax",
    "NoiseScores",
    "PairKLDivergence",
    "PiDUAL",
    "SmoothAdversarialLoss",
    "TaylorCrossEntropyLoss",
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
