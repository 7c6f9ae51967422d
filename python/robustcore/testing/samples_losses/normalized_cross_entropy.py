"""Sample inputs of normalized_cross_entropy."""

from __future__ import annotations

from collections.abc import Iterator

from ..sample import OperatorCase, Sample
from ._rows import row_case, row_samples

__all__ = ["case", "samples"]


def case() -> OperatorCase:
    """The operator with its reference."""
    return row_case("normalized_cross_entropy", samples, differentiable=(0, "sample_weight"))


def samples() -> Iterator[Sample]:
    """What every loss over rows is tried on."""
    yield from row_samples()
