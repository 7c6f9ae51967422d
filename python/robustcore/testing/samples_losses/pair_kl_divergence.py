"""Sample inputs of pair_kl_divergence."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..sample import OperatorCase, Sample
from ._rows import row_case, row_samples

__all__ = ["adversarial_logits", "case", "samples"]

_WITHOUT = ("weight", "label_smoothing", "class probabilities", "softcap", "lse_square_scale")


def case() -> OperatorCase:
    """The operator with its reference."""
    return row_case("pair_kl_divergence", samples, (0, 1, "sample_weight"))


def samples() -> Iterator[Sample]:
    """What every loss over rows is tried on, with a target and without, and close pairs."""
    yield from row_samples(extra=adversarial_logits, without=_WITHOUT)
    generator = torch.Generator().manual_seed(6)
    for reduction in ("none", "mean", "sum"):
        first, second = 3 * torch.randn(2, 9, 21, generator=generator)
        yield Sample(f"no target, {reduction}", (first, second), {"reduction": reduction})
    first, second = 3 * torch.randn(2, 9, 21, generator=generator)
    for distance in (0.0, 1e-3, 0.1):
        args = (first, first + distance * second)
        yield Sample(f"a distance of {distance}", args, {"reduction": "none"})
    first[:, ::4] = -torch.inf
    yield Sample("classes masked in the first", (first, second), {"reduction": "none"})


def adversarial_logits(
    rows: int, classes: int, generator: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """The second logits."""
    return (3 * torch.randn(rows, classes, generator=generator),)
