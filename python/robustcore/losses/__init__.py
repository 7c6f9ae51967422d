"""Fused per-sample losses for training on noisy labels."""

from . import noise_detection as noise_detection
from .afm import AFM
from .aldr_kl_indexed_loss import ALDRKLLoss, aldr_kl_indexed_loss
from .aldr_kl_loss import aldr_kl_loss, aldr_kl_temperature
from .comp_sum_loss import CompSumLoss, comp_sum_loss
from .crossmax import CrossMax, crossmax
from .early_learning_loss import EarlyLearningLoss, early_learning_loss
from .energy_weighted_loss import WEAT, energy_weighted_loss
from .energy_weights import energy_weights
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
from .ldr_kl_loss import LDRKLLoss, ldr_kl_loss
from .linear_gated_cross_entropy import LinearGatedCrossEntropyLoss, linear_gated_cross_entropy
from .mixture_cross_entropy import MixtureCrossEntropyLoss, mixture_cross_entropy
from .mixture_log_softmax import MixtureLogSoftmax, mixture_log_softmax
from .normalized_cross_entropy import NormalizedCrossEntropyLoss, normalized_cross_entropy
from .over_parameterized_loss import OverParameterizedLoss, over_parameterized_loss
from .pair_kl_divergence import PairKLDivergence, pair_kl_divergence
from .pi_dual import PiDUAL
from .privileged_information import PrivilegedHead, random_privileged_information
from .results import GatedCrossEntropyScores, NoiseScores, ShrinkMatchScores
from .shrink_match_loss import ShrinkMatchLoss, shrink_match_loss, shrink_match_scores
from .smooth_adversarial_loss import SmoothAdversarialLoss, smooth_adversarial_loss
from .spherical_z_loss import SphericalZLoss, spherical_z_loss
from .symmetric_cross_entropy import SymmetricCrossEntropyLoss, symmetric_cross_entropy
from .taylor_cross_entropy import TaylorCrossEntropyLoss, taylor_cross_entropy
from .tram import TRAM
from .weights import dro_weights

__all__ = [
    "AFM",
    "TRAM",
    "WEAT",
    "ALDRKLLoss",
    "CompSumLoss",
    "CrossMax",
    "EarlyLearningLoss",
    "GatedCrossEntropyLoss",
    "GatedCrossEntropyScores",
    "HeteroscedasticCrossEntropyLoss",
    "HeteroscedasticHead",
    "HeteroscedasticLogits",
    "LDRKLLoss",
    "LinearGatedCrossEntropyLoss",
    "MixtureCrossEntropyLoss",
    "MixtureLogSoftmax",
    "NoiseScores",
    "NormalizedCrossEntropyLoss",
    "OverParameterizedLoss",
    "PairKLDivergence",
    "PiDUAL",
    "PrivilegedHead",
    "ShrinkMatchLoss",
    "ShrinkMatchScores",
    "SmoothAdversarialLoss",
    "SphericalZLoss",
    "SymmetricCrossEntropyLoss",
    "TaylorCrossEntropyLoss",
    "aldr_kl_indexed_loss",
    "aldr_kl_loss",
    "aldr_kl_temperature",
    "comp_sum_loss",
    "crossmax",
    "dro_weights",
    "early_learning_loss",
    "energy_weighted_loss",
    "energy_weights",
    "gated_cross_entropy",
    "gated_cross_entropy_scores",
    "heteroscedastic_cross_entropy",
    "heteroscedastic_log_probabilities",
    "ldr_kl_loss",
    "linear_gated_cross_entropy",
    "mixture_cross_entropy",
    "mixture_log_softmax",
    "normalized_cross_entropy",
    "over_parameterized_loss",
    "pair_kl_divergence",
    "random_privileged_information",
    "shrink_match_loss",
    "shrink_match_scores",
    "smooth_adversarial_loss",
    "spherical_z_loss",
    "symmetric_cross_entropy",
    "taylor_cross_entropy",
]
