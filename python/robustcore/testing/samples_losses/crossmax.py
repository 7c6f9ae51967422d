"""Sample inputs of crossmax."""

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
        name="crossmax",
        family="losses",
        function=losses.crossmax,
        reference=reference.crossmax,
        samples=samples,
        differentiable=(0,),
        # Two subtractions, each rounded; 16-bit results are rounded once more.
        rtol={
            torch.float32: 4e-7,
            torch.float64: 1e-15,
            torch.bfloat16: 2**-8,
            torch.float16: 2**-10,
        },
        # Relative to the logits, of size 10 at most, rather than to their differences.
        atol={
            torch.float32: 4e-6,
            torch.float64: 1e-14,
            torch.bfloat16: 4e-6,
            torch.float16: 4e-6,
        },
        # Sums over the classes of a member, up to a thousand.
        gradient_rtol={
            torch.float32: 1e-5,
            torch.float64: 1e-13,
            torch.bfloat16: 2**-7,
            torch.float16: 2**-10,
        },
        gradient_atol={
            torch.float32: 1e-4,
            torch.float64: 1e-12,
            torch.bfloat16: 1e-4,
            torch.float16: 1e-4,
        },
    )


def samples() -> Iterator[Sample]:
    """Sizes, ranks, dimensions, layouts, ties and masked classes."""
    sizes = ((0, 4, 5), (1, 3, 1), (2, 3, 7), (5, 10, 10), (3, 5, 33), (2, 4, 300), (1, 17, 1025))
    for batch, members, classes in sizes:
        yield _random(f"{batch} of {members} members, {classes} classes", (batch, members, classes))
    for k in (1, 2, 7):
        yield _random(f"k = {k} of 7", (4, 7, 20), k=k)
    yield _random("one member", (3, 1, 9), k=1)
    yield _random("no batch", (6, 9))
    yield _random("members in front", (6, 4, 9), ensemble_dim=0)
    yield _random("classes before members", (2, 9, 5, 3), ensemble_dim=3, dim=1)
    generator = torch.Generator().manual_seed(3)
    ties = torch.randint(-3, 4, (6, 8, 50), generator=generator).float()
    yield Sample("ties", (ties,), {"k": 3})
    masked = _random("", (4, 6, 20)).args[0].clone()
    masked[..., 1::3] = -math.inf  # masked by every member
    masked[:, 2, 5:9] = -math.inf  # masked by one of them
    yield Sample("classes masked with -inf", (masked,), {"k": 3})
    wide = torch.randn(3, 20, 12, generator=generator)
    yield Sample("strided inputs", (wide.transpose(1, 2)[:, ::2],), {"k": 2})


def _random(name: str, shape: tuple[int, ...], **kwargs: int) -> Sample:
    generator = torch.Generator().manual_seed(sum(shape))
    return Sample(name, (2 * torch.randn(shape, generator=generator),), {"k": 3, **kwargs})
