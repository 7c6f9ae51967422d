"""Sample inputs of comp_sum_loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..sample import OperatorCase, Sample
from ._rows import row_case, row_samples

__all__ = ["case", "samples"]


def case() -> OperatorCase:
    """The operator with its reference."""
    return row_case("comp_sum_loss", samples, differentiable=(0, "sample_weight"))


def samples() -> Iterator[Sample]:
    """What every loss over rows is tried on, and the members of the family."""
    yield from row_samples(tau=1.7)
    for tau in (0.0, 0.5, 1.0, 1.001, 2.0, 3.0):
        yield from row_samples(f"tau {tau}: ", sizes=((9, 21),), brief=True, tau=tau)
    generator = torch.Generator().manual_seed(5)
    for sample in row_samples("tau per row: ", sizes=((9, 21),), brief=True):
        tau_of_rows = torch.rand(sample.args[0].shape[0], generator=generator) * 2
        yield Sample(sample.name, sample.args, {**sample.kwargs, "tau": tau_of_rows})
