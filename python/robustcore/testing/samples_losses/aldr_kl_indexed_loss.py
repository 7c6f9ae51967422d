"""Sample inputs of aldr_kl_indexed_loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ... import losses
from ..._checks import accumulate_dtype
from ...reference import losses as reference
from ..sample import OperatorCase, Sample
from ._rows import row_case, row_samples
from .ldr_kl_loss import _TOLERANCES

__all__ = ["case", "samples"]

_ABSENT = ("temperature", "softcap", "lse_square_scale")


def _on_a_copy_of_the_temperatures(function: Any) -> Any:
    """The loss as a function of its arguments alone: calling it twice gives the same."""

    def call(
        logits: torch.Tensor,
        target: torch.Tensor,
        index: torch.Tensor,
        lam: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        lam = lam.to(accumulate_dtype(logits.dtype), copy=True)
        return function(logits, target, index, lam, **kwargs)

    return call


def case() -> OperatorCase:
    """The operator with its reference."""
    return row_case(
        "aldr_kl_indexed_loss",
        samples,
        differentiable=(0, "sample_weight"),
        function=_on_a_copy_of_the_temperatures(losses.aldr_kl_indexed_loss),
        reference=_on_a_copy_of_the_temperatures(reference.aldr_kl_indexed_loss),
        **_TOLERANCES,
    )


def samples() -> Iterator[Sample]:
    """With and without an update, and with examples that occur more than once."""
    for sample in row_samples(update=False, without=_ABSENT):
        # See aldr_kl_loss: its gradient is then as large as 1e30.
        if sample.name != "tiny logits":
            yield _with_temperatures(sample, repeated=False)
    for sample in row_samples("with update: ", brief=True, without=_ABSENT, update=True):
        yield _with_temperatures(sample, repeated=False)
        repeated = Sample(f"repeated, {sample.name}", sample.args, sample.kwargs)
        yield _with_temperatures(repeated, repeated=True)


def _with_temperatures(sample: Sample, repeated: bool) -> Sample:
    logits, target = sample.args
    rows, classes = logits.shape
    generator = torch.Generator().manual_seed(rows * 31 + classes)
    lam = torch.rand(rows + 3, generator=generator) * 5 + 5
    index = torch.arange(rows)
    index[6:] = index[6:].flip(0)
    if repeated and rows > 1:
        index = index[torch.randint((rows + 1) // 2, (rows,), generator=generator)]
    args = (logits, target, index, lam)
    return Sample(sample.name, args, sample.kwargs, sample.differentiable)
