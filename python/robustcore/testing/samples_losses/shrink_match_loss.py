"""Sample inputs of shrink_match_loss."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ..sample import OperatorCase, Sample

__all__ = ["case", "samples"]


def case() -> OperatorCase:
    """The operator with its reference."""
    from ... import losses
    from ...reference import losses as reference

    return OperatorCase(
        name="shrink_match_loss",
        family="losses",
        function=losses.shrink_match_loss,
        reference=reference.shrink_match_loss,
        samples=samples,
        differentiable=(1,),
        # The results of 16-bit inputs are rounded once, from float32.
        rtol={
            torch.float32: 2e-6,
            torch.float64: 1e-13,
            torch.bfloat16: 2**-8,
            torch.float16: 2**-11,
        },
        # Log-probabilities near 0 come out of a difference of numbers near 10.
        atol={
            torch.float32: 2e-6,
            torch.float64: 1e-14,
            torch.bfloat16: 4e-6,
            torch.float16: 4e-6,
        },
    )


def samples() -> Iterator[Sample]:
    """Sizes, thresholds, reductions, layouts, ties, certain rows, masks and extreme logits."""
    sizes = ((0, 5), (1, 1), (3, 1), (4, 2), (6, 3), (31, 10), (33, 129), (5, 1025), (2, 5000))
    for rows, classes in sizes:
        yield _random(f"{rows} rows of {classes} classes", rows, classes)
    for reduction in ("none", "sum", "mean"):
        yield _random(f"reduction {reduction}", 17, 33, reduction=reduction)
    for threshold in (0.05, 0.3, 0.5, 0.7, 0.999):
        yield _random(f"threshold {threshold}", 16, 40, threshold=threshold, reduction="none")
    yield _random("every row certain", 5, 8, scale=1e3)
    yield _random("logits up to 10000", 16, 40, scale=1e4)
    yield _random("tiny logits", 16, 40, scale=1e-30)
    yield _random("all logits equal", 7, 90, scale=0.0, reduction="none")
    yield _with_ties()
    yield _with_masked_classes()
    yield _strided()


def _random(
    name: str,
    rows: int,
    classes: int,
    *,
    scale: float = 2.0,
    threshold: float = 0.95,
    reduction: str = "mean",
) -> Sample:
    generator = torch.Generator().manual_seed(1000 * rows + classes)
    args = (
        torch.randn(rows, classes, generator=generator) * scale,
        torch.randn(rows, classes, generator=generator) * min(scale, 1e4),
    )
    return Sample(name, args, {"threshold": threshold, "reduction": reduction})


def _with_ties() -> Sample:
    """Few different weak logits, which every dtype holds exactly."""
    generator = torch.Generator().manual_seed(5)
    weak = torch.randint(-8, 3, (24, 200), generator=generator) / 2
    strong = torch.randn(24, 200, generator=generator)
    return Sample("ties", (weak, strong), {"reduction": "none"})


def _with_masked_classes() -> Sample:
    """Classes that cannot occur have -inf in both views."""
    weak, strong = _random("", 8, 20).args
    masked = torch.arange(20).remainder(3) == 1
    weak, strong = (logits.masked_fill(masked, -math.inf) for logits in (weak, strong))
    return Sample("classes masked with -inf", (weak, strong), {"reduction": "none"})


def _strided() -> Sample:
    """Every other column of a wider tensor, and a transposed one."""
    generator = torch.Generator().manual_seed(7)
    weak = torch.randn(6, 22, generator=generator)[:, ::2]
    strong = torch.randn(11, 6, generator=generator).t()
    return Sample("strided inputs", (weak, strong), {})
