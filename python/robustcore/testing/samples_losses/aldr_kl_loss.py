"""Sample inputs of aldr_kl_loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..sample import OperatorCase, Sample
from ._rows import row_case, row_samples
from .ldr_kl_loss import _TOLERANCES

__all__ = ["case", "samples"]

_ABSENT = ("temperature", "softcap", "lse_square_scale")


def case() -> OperatorCase:
    """The operator with its reference."""
    differentiable = (0, "sample_weight")
    return row_case("aldr_kl_loss", samples, differentiable=differentiable, **_TOLERANCES)


def samples() -> Iterator[Sample]:
    """What every loss over rows is tried on, other temperatures, and rows of zeros."""
    for sample in row_samples(without=_ABSENT):
        # The gradient of a loss that knows no scale is then as large as 1e30, and differences of
        # such numbers cannot be held against an absolute tolerance: the tests look at them.
        if sample.name != "tiny logits":
            yield sample
    for lam, margin in ((0.5, 0.1), (1.0, 0.0), (7.0, 1.0)):
        prefix = f"lam {lam}, margin {margin}: "
        yield from row_samples(
            prefix, sizes=((9, 21),), brief=True, without=_ABSENT, lam=lam, margin=margin
        )
    generator = torch.Generator().manual_seed(7)
    for sample in row_samples("lam per row: ", sizes=((9, 21),), brief=True, without=_ABSENT):
        of_rows = torch.rand(sample.args[0].shape[0], generator=generator) * 5 + 5
        yield Sample(sample.name, sample.args, {**sample.kwargs, "lam": of_rows})
    yield Sample("rows of zeros", (torch.zeros(6, 9), torch.arange(6)), {"reduction": "none"})
