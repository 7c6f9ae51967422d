"""Sample inputs of symmetric_cross_entropy."""

from __future__ import annotations

from collections.abc import Iterator

from ..sample import OperatorCase, Sample
from ._rows import row_case, row_samples

__all__ = ["case", "samples"]


def case() -> OperatorCase:
    """The operator with its reference."""
    return row_case("symmetric_cross_entropy", samples, differentiable=(0, "sample_weight"))


def samples() -> Iterator[Sample]:
    """What every loss over rows is tried on, and each part alone."""
    yield from row_samples()
    for alpha, beta in ((6.0, 0.1), (1.0, 0.0), (0.0, 1.0)):
        prefix = f"alpha {alpha}, beta {beta}: "
        yield from row_samples(prefix, sizes=((9, 21),), brief=True, alpha=alpha, beta=beta)
    yield from row_samples("log_zero -4: ", sizes=((9, 21),), brief=True, log_zero=-4.0)
