"""Sample inputs of spherical_z_loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..sample import OperatorCase, Sample
from ._rows import row_case, row_samples

__all__ = ["case", "samples"]

_ABSENT = ("temperature", "softcap", "lse_square_scale")


def case() -> OperatorCase:
    """The operator with its reference."""
    return row_case("spherical_z_loss", samples, differentiable=(0, "sample_weight"))


def samples() -> Iterator[Sample]:
    """What every loss over rows is tried on, other bends, constant rows and a large offset."""
    for sample in row_samples(without=_ABSENT):
        # The gradient of a loss that knows no scale is then as large as 1e30, and differences of
        # such numbers cannot be held against an absolute tolerance: the tests look at them.
        if sample.name != "tiny logits":
            yield sample
    for a, b in ((0.1, 10.0), (5.0, 2.0), (1.0, -1.0)):
        prefix = f"a {a}, b {b}: "
        yield from row_samples(prefix, sizes=((9, 21),), brief=True, without=_ABSENT, a=a, b=b)
    target = torch.arange(6)
    yield Sample("constant rows", (torch.full((6, 9), 2.5), target), {"reduction": "none"})
    spread = torch.linspace(-1, 1, 54).reshape(6, 9)
    yield Sample("a common offset", (10000 + spread, target), {"reduction": "none"})
