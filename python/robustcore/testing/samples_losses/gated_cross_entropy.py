"""Sample inputs of gated_cross_entropy."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..sample import OperatorCase, Sample
from ._rows import row_samples

__all__ = ["case", "samples"]


def case() -> OperatorCase:
    """The operator with its reference."""
    from ... import losses
    from ...reference import losses as reference

    return OperatorCase(
        name="gated_cross_entropy",
        family="losses",
        function=losses.gated_cross_entropy,
        reference=reference.gated_cross_entropy,
        samples=samples,
        differentiable=(0, 1, 2, "sample_weight"),
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
    """What every loss over rows is tried on, and extreme gates."""
    yield from row_samples(extra=_noise_and_gate)
    yield _with_extreme_gates()


def _noise_and_gate(
    rows: int, classes: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    noise = 3 * torch.randn(rows, classes, generator=generator)
    return noise, 2 * torch.randn(rows, generator=generator)


def _with_extreme_gates() -> Sample:
    (sample,) = (s for s in row_samples(extra=_noise_and_gate) if s.name.startswith("31 rows"))
    prediction, noise, _, target = (value[:8] for value in sample.args)
    gate = torch.tensor([-100.0, -30.0, -10.0, 0.0, 10.0, 17.0, 30.0, 100.0])
    name = "gates that are almost 0 and 1"
    return Sample(name, (prediction, noise, gate, target), sample.kwargs)
