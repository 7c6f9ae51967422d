"""Sample inputs of early_learning_loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ... import losses
from ..._checks import accumulate_dtype
from ...reference import losses as reference
from ..sample import OperatorCase, Sample
from ._rows import row_case, row_samples

__all__ = ["case", "samples"]


def _on_a_copy_of_the_state(function: Any) -> Any:
    """The loss as a function of its arguments alone: calling it twice gives the same."""

    def call(
        logits: torch.Tensor,
        target: torch.Tensor,
        index: torch.Tensor,
        state: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        state = state.to(accumulate_dtype(logits.dtype), copy=True)
        return function(logits, target, index, state, **kwargs)

    return call


def case() -> OperatorCase:
    """The operator with its reference."""
    return row_case(
        "early_learning_loss",
        samples,
        differentiable=(0, "sample_weight"),
        function=_on_a_copy_of_the_state(losses.early_learning_loss),
        reference=_on_a_copy_of_the_state(reference.early_learning_loss),
    )


def samples() -> Iterator[Sample]:
    """With and without an update, and with examples that occur more than once."""
    for sample in row_samples(update=False):
        yield _with_state(sample, repeated=False)
    for sample in row_samples("with update: ", brief=True, update=True, beta=0.9, strength=1.0):
        # Numerical derivatives see the update, which is a constant.
        name = sample.name.replace("small", "few")
        yield _with_state(Sample(name, sample.args, sample.kwargs), repeated=False)
        yield _with_state(Sample(f"repeated, {name}", sample.args, sample.kwargs), repeated=True)


def _with_state(sample: Sample, repeated: bool) -> Sample:
    logits, target = sample.args
    rows, classes = logits.shape
    generator = torch.Generator().manual_seed(rows * 31 + classes)
    examples = rows + 3
    state = torch.rand(examples, classes, generator=generator)
    state = 0.8 * state / state.sum(1, keepdim=True)
    index = torch.arange(rows)
    index[6:] = index[6:].flip(0)
    if repeated and rows > 1:
        index = index[torch.randint((rows + 1) // 2, (rows,), generator=generator)]
    args = (logits, target, index, state)
    return Sample(sample.name, args, sample.kwargs, sample.differentiable)
