"""Sample inputs of the losses: one module per operator, with a function ``case()``."""

from __future__ import annotations

from ..sample import OperatorCase
from . import (
    comp_sum_loss,
    energy_weighted_loss,
    energy_weights,
    gated_cross_entropy,
    mixture_cross_entropy,
    mixture_log_softmax,
    pair_kl_divergence,
    smooth_adversarial_loss,
    taylor_cross_entropy,
)

__all__ = ["operator_cases"]

_MODULES = (
    comp_sum_loss,
    energy_weighted_loss,
    energy_weights,
    gated_cross_entropy,
    mixture_cross_entropy,
    mixture_log_softmax,
    pair_kl_divergence,
    smooth_adversarial_loss,
    taylor_cross_entropy,
)


def operator_cases() -> list[OperatorCase]:
    """The losses with their references."""
    return [module.case() for module in _MODULES]
