"""Sample inputs of the losses: one module per operator, with a function ``case()``."""

from __future__ import annotations

from ..sample import OperatorCase
from . import (
    aldr_kl_loss,
    aldr_kl_temperature,
    comp_sum_loss,
    gated_cross_entropy,
    ldr_kl_loss,
    normalized_cross_entropy,
    spherical_z_loss,
    symmetric_cross_entropy,
)

__all__ = ["operator_cases"]

_MODULES = (
    comp_sum_loss,
    gated_cross_entropy,
    symmetric_cross_entropy,
    normalized_cross_entropy,
    spherical_z_loss,
    ldr_kl_loss,
    aldr_kl_loss,
    aldr_kl_temperature,
)


def operator_cases() -> list[OperatorCase]:
    """The losses with their references."""
    return [module.case() for module in _MODULES]
