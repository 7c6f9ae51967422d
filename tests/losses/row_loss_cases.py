"""The row losses that there are, for the tests that run all of them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from robustcore.losses._arguments import RowLossArguments
from robustcore.losses._row_loss import ROW_LOSSES, RowLoss
from robustcore.losses._state_loss import StateRowLoss
from robustcore.testing import OperatorCase, Sample
from robustcore.testing.samples_losses import operator_cases

CASES = {case.name: case for case in operator_cases() if case.name in ROW_LOSSES}
# Losses with a state have operators with more arguments, and tests of their own for those.
STATELESS = {
    name: case for name, case in CASES.items() if not isinstance(ROW_LOSSES[name], StateRowLoss)
}


@functools.cache
def samples_of(name: str) -> list[Sample]:
    return list(CASES[name].samples())


def small(case: OperatorCase) -> list[Sample]:
    found = [s for s in samples_of(case.name) if "small" in s.name and s.differentiable]
    assert found, f"{case.name} has no sample with 'small' in its name"
    return found


def named(case: OperatorCase, text: str) -> Sample:
    return next(s for s in samples_of(case.name) if text in s.name)


def raw_arguments(
    case: OperatorCase, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, ...]:
    """The arguments that the public function hands to its operators."""
    seen: list[tuple[Any, ...]] = []

    def record(self: RowLoss, arguments: RowLossArguments) -> torch.Tensor:
        seen.append(arguments.raw)
        return arguments.raw[0].sum()

    with monkeypatch.context() as patch:
        patch.setattr(RowLoss, "__call__", record)
        case.function(*sample.args, **sample.kwargs)
    return seen[0]
