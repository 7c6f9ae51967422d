"""Sample inputs of the losses: one module per operator, with a function ``case()``."""

from __future__ import annotations

from ..sample import OperatorCase
from . import (
    comp_sum_loss,
    early_learning_loss,
    gated_cross_entropy,
    over_parameterized_loss,
)

__all__ = ["operator_cases"]

_MODULES = (
    comp_sum_loss,
    early_learning_loss,
    gated_cross_entropy,
    over_parameterized_loss,
)


def operator_cases() -> list[OperatorCase]:
    """The losses with their references."""
    return [module.case() for module in _MODULES]
