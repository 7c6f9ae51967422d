"""Sample inputs of gated_cross_entropy."""

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
    """Sizes, weights, ignored rows, smoothing, reductions, layouts and extreme logits."""
    for rows, classes in ((0, 5), (1, 1), (1, 2), (3, 7), (31, 10), (33, 129), (5, 1025)):
        yield _gated(f"{rows} rows of {classes} classes", rows, classes)
    for reduction in ("none", "sum", "mean"):
        yield _gated(f"reduction {reduction}", 17, 33, reduction=reduction)
        yield _gated(
            f"reduction {reduction}, everything at once",
            17,
            33,
            reduction=reduction,
            label_smoothing=0.1,
            weighted_classes=True,
            weighted_samples=True,
            ignored=(0, 5, 16),
        )
    yield _gated("class weights", 9, 12, weighted_classes=True)
    yield _gated("sample weights", 9, 12, weighted_samples=True)
    yield _gated("label smoothing", 9, 12, label_smoothing=0.2)
    yield _gated("ignored rows", 9, 12, ignored=(0, 3, 8))
    yield _gated("another ignore_index", 9, 12, ignored=(2,), ignore_index=-1)
    yield _gated("every row ignored", 4, 6, ignored=(0, 1, 2, 3))
    yield _gated("logits up to 10000", 16, 40, scale=1e4)
    yield _gated("tiny logits", 16, 40, scale=1e-30)
    yield _with_extreme_gates()
    yield _with_masked_classes()
    yield _strided()


def _gated(
    name: str,
    rows: int,
    classes: int,
    *,
    scale: float = 3.0,
    weighted_classes: bool = False,
    weighted_samples: bool = False,
    ignored: tuple[int, ...] = (),
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    differentiable: bool = True,
) -> Sample:
    generator = torch.Generator().manual_seed(1000 * rows + classes)
    target = torch.randint(classes, (rows,), generator=generator)
    target[list(ignored)] = ignore_index
    kwargs: dict[str, object] = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
    }
    if weighted_classes:
        kwargs["weight"] = torch.rand(classes, generator=generator) + 0.1
    if weighted_samples:
        kwargs["sample_weight"] = torch.rand(rows, generator=generator) * 2
    args = (
        torch.randn(rows, classes, generator=generator) * scale,
        torch.randn(rows, classes, generator=generator) * scale,
        torch.randn(rows, generator=generator) * 2,
        target,
    )
    return Sample(name, args, kwargs, differentiable)


def _with_extreme_gates() -> Sample:
    sample = _gated("gates that are almost 0 and 1", 8, 10)
    prediction, noise, _, target = sample.args
    gate = torch.tensor([-100.0, -30.0, -10.0, 0.0, 10.0, 17.0, 30.0, 100.0])
    return Sample(sample.name, (prediction, noise, gate, target), sample.kwargs)


def _with_masked_classes() -> Sample:
    """Classes that cannot occur have -inf in both logits; no target is among them."""
    sample = _gated("classes masked with -inf", 8, 20, reduction="none")
    prediction, noise, gate, target = (tensor.clone() for tensor in sample.args)
    masked = torch.arange(20).remainder(3) == 1
    target[masked[target]] = 0
    prediction[:, masked] = -math.inf
    noise[:, masked] = -math.inf
    # 0 * inf: what the derivative of the gate means here is for the operator's own tests to say.
    return Sample(sample.name, (prediction, noise, gate, target), sample.kwargs, False)


def _strided() -> Sample:
    """Every other column of a wider tensor, a transposed one and an expanded gate."""
    generator = torch.Generator().manual_seed(7)
    prediction = torch.randn(6, 22, generator=generator)[:, ::2]
    noise = torch.randn(11, 6, generator=generator).t()
    gate = torch.tensor(0.3).expand(6)
    target = torch.randint(11, (12,), generator=generator)[::2]
    return Sample("strided inputs", (prediction, noise, gate, target), {})
