"""Sample inputs of over_parameterized_loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ... import losses
from ...reference import losses as reference
from ..sample import OperatorCase, Sample
from ._rows import row_case, row_samples

__all__ = ["case", "samples"]


def _without_class_weights(function: Any) -> Any:
    """Class weights are not offered; what they stand for is offered as sample weights."""

    def call(logits: torch.Tensor, target: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        kwargs.pop("weight", None)
        return function(logits, target, *args, **kwargs)

    return call


def case() -> OperatorCase:
    """The operator with its reference."""
    return row_case(
        "over_parameterized_loss",
        samples,
        differentiable=(0, 2, 3, "sample_weight"),
        # 1 / q, with q down to 1e-4, multiplies the rounding of p + U - V, whose terms may cancel.
        gradient_rtol={
            torch.float32: 1e-4,
            torch.float64: 1e-12,
            torch.bfloat16: 2**-8,
            torch.float16: 2**-11,
        },
        function=_without_class_weights(losses.over_parameterized_loss),
        reference=_without_class_weights(reference.over_parameterized_loss),
    )


def samples() -> Iterator[Sample]:
    """u and v from nothing to values that are cut."""
    generator = torch.Generator().manual_seed(11)
    for scale, brief in ((0.3, False), (1e-8, True), (1.0, True)):
        prefix = "" if scale == 0.3 else f"u, v of {scale:g}: "
        for sample in row_samples(prefix, brief=brief):
            logits, target = sample.args
            u = torch.randn(logits.shape[:1], generator=generator) * scale
            v = torch.randn(logits.shape, generator=generator) * scale
            if "small" in sample.name:
                # Numerical derivatives see v in the first term too, unless it is zero.
                v.zero_()
            yield Sample(sample.name, (logits, target, u, v), sample.kwargs, sample.differentiable)
