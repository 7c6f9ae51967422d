"""Sample inputs of the recurrences."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .sample import OperatorCase, Sample

__all__ = ["linear_recurrence_samples", "operator_cases"]


def operator_cases() -> list[OperatorCase]:
    """The recurrences with their references."""
    from .. import pcr
    from ..reference import pcr as reference

    return [
        OperatorCase(
            name="linear_recurrence",
            family="pcr",
            function=pcr.linear_recurrence,
            reference=reference.linear_recurrence,
            samples=linear_recurrence_samples,
            differentiable=(0, 1, "initial"),
            # In 16 bits a state has the error of the float32 carry, and is then rounded once: by at
            # most half a unit in the last place, which just above a power of two is 2^-8 of a
            # bfloat16 (8 significant bits) and 2^-11 of a float16 (11 of them). Among some hundred
            # values one comes close to a tie there, so that nearly all of that is really used.
            rtol={
                torch.float32: 2e-6,
                torch.float64: 1e-14,
                torch.bfloat16: 2**-8 + 2e-6,
                torch.float16: 2**-11 + 2e-6,
            },
            # Sums of some tens of terms of size one may cancel. Below its normal range a float16
            # is rounded by up to half of its smallest step, 2^-24.
            atol={
                torch.float32: 2e-6,
                torch.float64: 1e-14,
                torch.bfloat16: 2e-6,
                torch.float16: 2e-6 + 2**-25,
            },
            # The gradient of a gate multiplies by a stored state; of one that is broadcast, 16-bit
            # terms are summed by PyTorch.
            gradient_rtol={
                torch.float32: 2e-6,
                torch.float64: 1e-14,
                torch.bfloat16: 2**-6,
                torch.float16: 2**-9,
            },
            gradient_atol={
                torch.float32: 5e-6,
                torch.float64: 1e-14,
                torch.bfloat16: 2e-2,
                torch.float16: 4e-3,
            },
        )
    ]


def linear_recurrence_samples() -> Iterator[Sample]:
    """Sizes, layouts, broadcasting, both directions, gates in the corners, values not finite."""
    sizes = ((2, 0, 3), (0, 4, 3), (2, 4, 0), (1, 1, 1), (3, 31, 33), (1, 129, 8), (2, 32, 127))
    for batch, length, channels in (*sizes, (1, 1025, 9)):
        yield _sample(f"({batch}, {length}, {channels})", (batch, length, channels))
    for reverse in (False, True):
        direction = "reverse" if reverse else "forward"
        for time_dim in (-1, 0):
            yield _sample(
                f"{direction}, initial state, time_dim {time_dim}",
                (17, 5, 40),
                time_dim=time_dim,
                reverse=reverse,
                with_initial=True,
            )
        yield _sample(
            f"{direction}, initial state", (2, 65, 31), reverse=reverse, with_initial=True
        )
    yield _sample("one dimension", (100,), time_dim=0)
    yield _sample("four dimensions", (2, 3, 33, 16), with_initial=True)
    yield _sample("time last, many rows", (40, 130), time_dim=-1)
    yield _gates("gates of zero, one and minus one", torch.tensor([0.0, 1.0, -1.0, 0.5]))
    yield _gates("negative gates", torch.tensor([-0.9, -0.5, -0.1]))
    yield _broadcast()
    yield _strided()
    yield _not_finite()


def _sample(
    name: str,
    shape: tuple[int, ...],
    *,
    time_dim: int = -2,
    reverse: bool = False,
    with_initial: bool = False,
) -> Sample:
    generator = torch.Generator().manual_seed(sum(shape))
    a = torch.rand(shape, generator=generator)
    x = torch.randn(shape, generator=generator)
    kwargs: dict[str, object] = {}
    if with_initial:
        step = list(shape)
        del step[time_dim]
        kwargs["initial"] = torch.randn(step, generator=generator)
    if reverse:
        kwargs["reverse"] = True
    if time_dim != -2:
        kwargs["time_dim"] = time_dim
    return Sample(name, (a, x), kwargs)


def _gates(name: str, values: Tensor) -> Sample:
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randint(len(values), (2, 40, 12), generator=generator)
    return Sample(name, (values[chosen], torch.randn(2, 40, 12, generator=generator)))


def _broadcast() -> Sample:
    """Constant gates for each channel, one initial state for all sequences."""
    generator = torch.Generator().manual_seed(2)
    a = torch.rand(9, generator=generator)
    x = torch.randn(2, 20, 9, generator=generator)
    return Sample("gates and state broadcast", (a, x), {"initial": torch.tensor(0.5)})


def _strided() -> Sample:
    """Every other channel of a wider tensor, a transposed one and an expanded state."""
    generator = torch.Generator().manual_seed(3)
    a = torch.rand(2, 20, 22, generator=generator)[..., ::2]
    x = torch.randn(11, 20, 2, generator=generator).permute(2, 1, 0)
    initial = torch.randn(11, generator=generator).expand(2, 11)
    return Sample("strided inputs", (a, x), {"initial": initial})


def _not_finite() -> Sample:
    """Infinities and NaN, which must stay in their channel and in later steps."""
    generator = torch.Generator().manual_seed(4)
    a = torch.rand(2, 30, 10, generator=generator)
    x = torch.randn(2, 30, 10, generator=generator)
    x[0, 3, 1], x[1, 0, 9], a[1, 7, 2] = math.nan, -math.inf, math.inf
    x[0, 12, 4], a[0, 20, 4] = math.inf, 0.0
    return Sample("values that are not finite", (a, x), differentiable=False)
