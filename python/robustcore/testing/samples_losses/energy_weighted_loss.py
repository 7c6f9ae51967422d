"""Sample inputs of energy_weighted_loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..sample import OperatorCase, Sample
from ._rows import row_case

__all__ = ["case", "samples"]


def case() -> OperatorCase:
    """The function with its reference."""
    return row_case("energy_weighted_loss", samples, (0, 1, "sample_weight"))


def samples() -> Iterator[Sample]:
    """Both variants, all reductions, ignored rows, class probabilities."""
    generator = torch.Generator().manual_seed(9)
    logits, moved = 3 * torch.randn(2, 9, 21, generator=generator)
    target = torch.randint(21, (9,), generator=generator)
    target[4] = -100
    for variant in ("adversarial", "natural"):
        for reduction in ("none", "mean", "sum"):
            options: dict[str, Any] = {"variant": variant, "reduction": reduction}
            yield Sample(f"{variant}, {reduction}", (logits, moved, target), options)
    options = {"label_smoothing": 0.1, "sample_weight": torch.rand(9, generator=generator)}
    yield Sample("weights and smoothing", (logits, moved, target), options)
    yield Sample("another beta", (logits, moved, target, 0.5), {})
    soft = torch.randn(9, 21, generator=generator).softmax(1)
    yield Sample("class probabilities", (logits, moved, soft), {})
    yield Sample("classes first", (logits.mT, moved.mT, target), {"dim": 0})
    huge, masked = 1e4 * logits / logits.abs().max(), torch.arange(21).remainder(3) == 1
    yield Sample("logits up to 10000", (huge, huge + moved, target), {"reduction": "none"})
    logits, moved = logits.masked_fill(masked, -torch.inf), moved.masked_fill(masked, -torch.inf)
    target = target.where(target % 3 != 1, target - 1)
    yield Sample("classes masked with -inf", (logits, moved, target), {"reduction": "none"})
