"""Runs one operator against its reference on one sample."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .comparison import Comparison, compare
from .sample import OperatorCase, Sample

__all__ = ["Finding", "check_sample"]


@dataclass(frozen=True)
class Finding:
    """One comparison.

    Attributes:
        sample: Name of the sample.
        quantity: What was compared, for example ``output`` or ``gradient of 0``.
        gradient: Whether it is a gradient.
        comparison: The outcome.
    """

    sample: str
    quantity: str
    gradient: bool
    comparison: Comparison


def check_sample(
    case: OperatorCase, sample: Sample, device: str, dtype: torch.dtype
) -> list[Finding]:
    """Compares results, the repeated results, and gradients.

    The reference runs on the CPU, in float64 on the values that ``dtype`` can hold; for an exact
    operator in ``dtype`` itself.

    Args:
        case: The operator.
        sample: One of its sample inputs.
        device: Where the operator runs.
        dtype: Type of its floating-point inputs.

    Returns:
        One finding for each output and each gradient.

    Example:
        >>> import torch
        >>> from robustcore.testing import check_sample, operators
        >>> case = next(operators("losses"))
        >>> sample = next(iter(case.samples()))
        >>> all(f.comparison.passed for f in check_sample(case, sample, "cpu", torch.float32))
        True
    """
    rounded = sample.to(dtype=dtype)
    expected = rounded if case.exact else rounded.float64()
    on_device = rounded.to(device=device)

    exact = case.outputs(case.reference(*expected.args, **expected.kwargs))
    first = case.outputs(case.function(*on_device.args, **on_device.kwargs))
    again = case.outputs(case.function(*on_device.args, **on_device.kwargs))
    rtol, atol = (0.0, 0.0) if case.exact else case.tolerance(dtype)
    found = functools.partial(Finding, sample.name)
    findings = _compared(found, "", False, first, exact, rtol, atol)
    findings += _compared(found, "repeated ", False, again, first, 0.0, 0.0)
    if case.differentiable and sample.differentiable:
        rtol, atol = case.tolerance(dtype, gradient=True)
        ours, results = _gradients(case, case.function, on_device)
        theirs, _ = _gradients(case, case.reference, expected)
        findings += _compared(
            found, "with gradients, ", False, results, exact, *case.tolerance(dtype)
        )
        findings += _compared(found, "gradient of ", True, ours, theirs, rtol, atol)
    return findings


def _compared(
    found: Any,
    prefix: str,
    gradient: bool,
    actual: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    rtol: float,
    atol: float,
) -> list[Finding]:
    if list(actual) != list(expected):
        raise ValueError(
            f"the operator has {', '.join(actual)}, its reference {', '.join(expected)}"
        )
    return [
        found(prefix + name, gradient, compare(value, expected[name], rtol=rtol, atol=atol))
        for name, value in actual.items()
    ]


def _gradients(
    case: OperatorCase, function: Any, sample: Sample
) -> tuple[dict[str, torch.Tensor], Mapping[str, torch.Tensor]]:
    """Gradients by argument, for cotangents that depend on nothing but the outputs' shapes."""
    with_leaves = sample.requires_grad(case.differentiable)
    leaves = with_leaves.leaves()
    outputs = case.outputs(function(*with_leaves.args, **with_leaves.kwargs))
    differentiable = [value for value in outputs.values() if value.requires_grad]
    generator = torch.Generator().manual_seed(0)
    cotangents = [
        # Multiples of 1/8 up to 1: every floating-point type holds them.
        (torch.randint(-8, 9, value.shape, generator=generator) / 8).to(value)
        for value in differentiable
    ]
    gradients = torch.autograd.grad(
        differentiable, list(leaves.values()), cotangents, allow_unused=True
    )
    filled = {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), gradients)
    }
    return filled, {name: value.detach() for name, value in outputs.items()}
