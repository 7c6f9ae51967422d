"""Sample inputs of heteroscedastic_cross_entropy."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ..sample import OperatorCase, Sample

__all__ = ["case", "samples"]


def case() -> OperatorCase:
    """The operator with its reference; both make the same random numbers from the same seed."""
    from ... import losses
    from ...reference import losses as reference

    return OperatorCase(
        name="heteroscedastic_cross_entropy",
        family="losses",
        function=losses.heteroscedastic_cross_entropy,
        reference=reference.heteroscedastic_cross_entropy,
        samples=samples,
        differentiable=(0, 1, 2, "sample_weight"),
        # Probabilities near 1 lose an ulp of 1 in the gradient, as in every softmax. The results of
        # 16-bit inputs are rounded once, from float32.
        rtol={
            torch.float32: 5e-6,
            torch.float64: 1e-13,
            torch.bfloat16: 2**-8,
            torch.float16: 2**-11,
        },
        atol={
            torch.float32: 5e-6,
            torch.float64: 1e-13,
            torch.bfloat16: 1e-5,
            torch.float16: 1e-5,
        },
    )


def samples() -> Iterator[Sample]:
    """Sizes, ranks and numbers of samples, weights, ignored rows, reductions, masked classes."""
    for rows, classes, rank, count in (
        (0, 5, 3, 10),
        (1, 1, 0, 1),
        (1, 2, 1, 3),
        (3, 7, 2, 4),
        (2, 10, 6, 64),
        (2, 33, 4, 65),
        (2, 129, 7, 5),
        (1, 300, 12, 9),
        (1, 1100, 2, 6),
        (1, 5, 20, 30),
    ):
        name = f"{rows} rows of {classes} classes, rank {rank}, {count} samples"
        yield _sampled(name, rows, classes, rank, count)
    for reduction in ("none", "sum", "mean"):
        yield _sampled(f"reduction {reduction}", 5, 9, 3, 20, reduction=reduction)
        yield _sampled(
            f"reduction {reduction}, everything at once",
            6,
            9,
            3,
            20,
            reduction=reduction,
            weighted=True,
            ignored=(0, 5),
        )
    yield _sampled("another ignore_index", 4, 6, 2, 12, ignored=(2,), ignore_index=-1)
    yield _sampled("every row ignored", 3, 6, 2, 8, ignored=(0, 1, 2))
    yield _sampled("labels below the minimum", 6, 8, 2, 16, scale=30.0)
    yield _sampled("no minimum", 6, 8, 2, 16, scale=30.0, minimum_probability=0.0)
    yield _sampled("without a temperature", 4, 6, 2, 16, temperature=1.0)
    yield _with_masked_classes()
    yield _strided()


def _sampled(
    name: str,
    rows: int,
    classes: int,
    rank: int,
    count: int,
    *,
    scale: float = 2.0,
    weighted: bool = False,
    ignored: tuple[int, ...] = (),
    ignore_index: int = -100,
    **options: object,
) -> Sample:
    generator = torch.Generator().manual_seed(1000 * rows + 10 * classes + rank)
    target = torch.randint(classes, (rows,), generator=generator)
    target[list(ignored)] = ignore_index
    kwargs: dict[str, object] = {"temperature": 1.3, "samples": count, "seed": 7, **options}
    kwargs["ignore_index"] = ignore_index
    if weighted:
        kwargs["weight"] = torch.rand(classes, generator=generator) + 0.1
        kwargs["sample_weight"] = torch.rand(rows, generator=generator) * 2
    args = (
        torch.randn(rows, classes, generator=generator) * scale,
        torch.randn(rows, classes, rank, generator=generator) * 0.5,
        torch.rand(rows, classes, generator=generator) + 1e-3,
        target,
    )
    return Sample(name, args, kwargs)


def _with_masked_classes() -> Sample:
    sample = _sampled("classes masked with -inf", 4, 10, 2, 12, reduction="none")
    mean, low_rank, diagonal, target = (tensor.clone() for tensor in sample.args)
    masked = torch.arange(10).remainder(3) == 1
    target[masked[target]] = 0
    mean[:, masked] = -math.inf
    return Sample(sample.name, (mean, low_rank, diagonal, target), sample.kwargs)


def _strided() -> Sample:
    """Every other column, a transposed factor and expanded scales."""
    generator = torch.Generator().manual_seed(7)
    mean = torch.randn(6, 22, generator=generator)[:, ::2]
    low_rank = torch.randn(3, 11, 6, generator=generator).permute(2, 1, 0)
    diagonal = torch.tensor(0.3).expand(6, 11)
    target = torch.randint(11, (12,), generator=generator)[::2]
    return Sample(
        "strided inputs", (mean, low_rank, diagonal, target), {"samples": 20, "seed": 2**40 + 1}
    )
