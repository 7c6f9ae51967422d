"""Sample inputs of energy_weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..sample import OperatorCase, Sample
from ._rows import row_case

__all__ = ["case", "samples"]


def case() -> OperatorCase:
    """energy_weights with its reference. Its results are float32 at least."""
    rtol = {torch.float32: 2e-6, torch.float64: 1e-13}
    rtol |= {torch.bfloat16: 2e-6, torch.float16: 2e-6}
    return row_case("energy_weights", samples, (), rtol=rtol, atol={})


def samples() -> Iterator[Sample]:
    """Sizes, layouts, energies from tiny to beyond the range of exp, masked classes."""
    for rows, classes in ((0, 5), (1, 1), (3, 7), (31, 10), (33, 129), (5, 1025)):
        yield Sample(f"{rows} rows of {classes} classes", (_logits(rows, classes, 3.0),))
    for size in (1e-30, 1.0, 100.0, 1e4):
        yield Sample(f"logits of size {size}", (_logits(16, 12, size),))
    yield Sample("positive energies", (_logits(16, 12, 3.0) - 200,))
    masked = _logits(4, 9, 3.0)
    masked[:, ::3] = -torch.inf
    masked[3] = -torch.inf
    yield Sample("classes masked with -inf", (masked,))
    yield Sample(
        "strided, classes first", (_logits(10, 12, 3.0).reshape(5, 2, 12)[:, :, ::2],), {"dim": 0}
    )


def _logits(rows: int, classes: int, size: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * rows + classes)
    return size * torch.randn(rows, classes, generator=generator)
