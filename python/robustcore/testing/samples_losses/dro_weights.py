"""Sample inputs of dro_weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from ..sample import OperatorCase, Sample

__all__ = ["case", "samples"]


def case() -> OperatorCase:
    """The function with its reference."""
    from ... import losses
    from ...reference import losses as reference

    # Computed in float64 and rounded once, to float32 for every narrower type.
    rtol = dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), 2 ** (-23))
    return OperatorCase(
        name="dro_weights",
        family="losses",
        function=losses.dro_weights,
        reference=reference.dro_weights,
        samples=samples,
        differentiable=(0,),
        rtol={**rtol, torch.float64: 1e-13},
        atol={torch.float32: 1e-45, torch.bfloat16: 1e-45, torch.float16: 1e-45},
        # A derivative is a difference of products of weights; 16-bit losses get 16-bit gradients.
        gradient_rtol={
            torch.float32: 1e-6,
            torch.float64: 1e-12,
            torch.bfloat16: 2**-8,
            torch.float16: 2**-11,
        },
        gradient_atol={
            torch.float32: 1e-7,
            torch.float64: 1e-14,
            torch.bfloat16: 1e-6,
            torch.float16: 1e-6,
        },
    )


def samples() -> Iterator[Sample]:
    """Sizes, masks, temperatures, infinite losses."""
    generator = torch.Generator().manual_seed(0)

    def sample(name: str, losses: torch.Tensor, temperature: float, **options: Any) -> Sample:
        differentiable = options.setdefault("detach", False) is False and "inf" not in name
        return Sample(name, (losses, temperature), options, differentiable)

    for count in (0, 1, 2, 33, 129):
        yield sample(f"{count} losses", torch.rand(count, generator=generator), 0.5)
    losses = 5 * torch.rand(4, 6, generator=generator)
    mask = torch.rand(4, 6, generator=generator) < 0.7
    for normalization in ("sum", "mean"):
        yield sample(
            f"masked, {normalization} 1", losses, 1.0, mask=mask, normalization=normalization
        )
    yield sample("nothing counts", losses, 1.0, mask=torch.zeros_like(mask))
    yield sample("a low temperature", losses, 1e-3)
    yield sample("a high temperature", losses, 1e6)
    yield sample("constants", losses, 1.0, detach=True)
    infinite = losses.clone()
    infinite[0, :3], infinite[2, 1] = math.inf, -math.inf
    yield sample("losses of inf", infinite, 1.0)
    yield sample("losses of -inf", infinite.clamp(max=4.0), 1.0)
    yield sample("all -inf", torch.full((5,), -math.inf), 1.0)
