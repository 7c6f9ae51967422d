"""Sample inputs of ldr_kl_loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..sample import OperatorCase, Sample
from ._rows import row_case, row_samples

__all__ = ["case", "samples"]

_ABSENT = ("temperature", "softcap", "lse_square_scale")

# Scores are as large as C times the share of a class, and temperatures below 1 magnify them.
_TOLERANCES = {
    "atol": {
        torch.float32: 1e-5,
        torch.float64: 2e-14,
        torch.bfloat16: 1e-5,
        torch.float16: 1e-5,
    },
    "rtol": {
        torch.float32: 1e-5,
        torch.float64: 2e-13,
        torch.bfloat16: 2**-8,
        torch.float16: 2**-10,
    },
}


def case() -> OperatorCase:
    """The operator with its reference."""
    differentiable = (0, "sample_weight")
    return row_case("ldr_kl_loss", samples, differentiable=differentiable, **_TOLERANCES)


def samples() -> Iterator[Sample]:
    """What every loss over rows is tried on, other temperatures, and very negative logits."""
    yield from row_samples(without=_ABSENT)
    for lam, margin in ((0.1, 0.1), (10.0, 0.1), (1.0, 0.0), (2.0, 3.0)):
        prefix = f"lam {lam}, margin {margin}: "
        yield from row_samples(
            prefix, sizes=((9, 21),), brief=True, without=_ABSENT, lam=lam, margin=margin
        )
    generator = torch.Generator().manual_seed(6)
    for sample in row_samples("lam per row: ", sizes=((9, 21),), brief=True, without=_ABSENT):
        of_rows = torch.rand(sample.args[0].shape[0], generator=generator) + 0.5
        yield Sample(sample.name, sample.args, {**sample.kwargs, "lam": of_rows})
    low = torch.randn(6, 9, generator=generator) - 1000
    yield Sample("logits near -1000", (low, torch.arange(6)), {"reduction": "none"})
