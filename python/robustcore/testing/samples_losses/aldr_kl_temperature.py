"""Sample inputs of aldr_kl_temperature."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ..sample import OperatorCase, Sample
from ._rows import row_case

__all__ = ["case", "samples"]


def case() -> OperatorCase:
    """The operator with its reference; it has no gradient."""
    # Results keep float32 for 16-bit logits: they are a state.
    rtol = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 2e-6, torch.float16: 2e-6}
    return row_case("aldr_kl_temperature", samples, differentiable=(), rtol=rtol, atol={})


def samples() -> Iterator[Sample]:
    """Sizes, sure and unsure rows, and the corners."""
    generator = torch.Generator().manual_seed(8)
    for rows, classes in ((0, 5), (1, 1), (3, 2), (31, 10), (33, 129), (5, 1025)):
        logits = torch.randn(rows, classes, generator=generator)
        lam = torch.rand(rows, generator=generator) * 9 + 1
        yield Sample(f"{rows} rows of {classes} classes", (logits, lam))
    logits, lam = torch.randn(9, 12, generator=generator), torch.full((9,), 10.0)
    yield Sample("other constants", (logits, lam), {"alpha": 1.5, "lambda0": 4.0})
    yield Sample("one sure class", (logits + 100 * torch.eye(9, 12), lam * 0.01))
    yield Sample("logits up to 10000", (logits * 1e4, lam))
    yield Sample("rows of zeros", (torch.zeros(9, 12), lam))
    yield Sample("classes first", (logits.t().contiguous(), lam), {"dim": 0})
    masked = logits.clone()
    masked[:, 1::3] = -math.inf
    masked[4, 1:] = -math.inf
    yield Sample("classes masked with -inf", (masked, lam))
