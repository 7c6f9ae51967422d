"""Comparing results: NaN and infinities by position, values by tolerance, the worst one by name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["Comparison", "assert_matches", "compare", "error_against"]


@dataclass(frozen=True)
class Comparison:
    """The outcome of :func:`compare`.

    Attributes:
        passed: Whether everything agrees.
        used: Worst ``|actual - expected| / (atol + rtol * |expected|)`` over the finite values;
            at most 1 where the values agree, infinite where they cannot be compared.
        absolute_error: ``|actual - expected|`` at that place.
        problem: One sentence that names the worst index with both values; empty where passed.
    """

    passed: bool
    used: float
    absolute_error: float
    problem: str


def compare(
    actual: torch.Tensor, expected: torch.Tensor, *, rtol: float = 0.0, atol: float = 0.0
) -> Comparison:
    """Compares two tensors of one shape.

    NaN must meet NaN, an infinity an infinity of the same sign; the other values must satisfy
    ``|actual - expected| <= atol + rtol * |expected|``, evaluated in float64. With both tolerances
    0 the values must be equal; integer and boolean tensors always must.

    Example:
        >>> import torch
        >>> from robustcore.testing import compare
        >>> compare(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), rtol=0.1).passed
        False
    """
    if tuple(actual.shape) != tuple(expected.shape):
        return _failed(f"shape {tuple(actual.shape)} where {tuple(expected.shape)} was expected")
    if actual.is_complex() or expected.is_complex():
        actual, expected = torch.view_as_real(actual), torch.view_as_real(expected)
    actual, expected = actual.detach().cpu(), expected.detach().cpu()
    if not actual.is_floating_point() or not expected.is_floating_point():
        return _compare_exactly(actual, expected)
    a, e = actual.double(), expected.double()
    for what, of_actual, of_expected in (
        ("NaN", a.isnan(), e.isnan()),
        ("+inf", a == math.inf, e == math.inf),
        ("-inf", a == -math.inf, e == -math.inf),
    ):
        wrong = of_actual != of_expected
        if wrong.any():
            return _failed(_sentence(f"{what} in the wrong place", wrong, a, e))
    finite = e.isfinite()
    difference = torch.where(finite, (a - e).abs(), 0.0)
    allowed = torch.where(finite, atol + rtol * e.abs(), 1.0)
    # 0/0 is agreement; anything else over 0 is not.
    used = torch.where(difference == 0, 0.0, difference / allowed)
    if used.numel() == 0:
        return Comparison(True, 0.0, 0.0, "")
    worst = int(used.argmax())
    ratio, error = float(used.flatten()[worst]), float(difference.flatten()[worst])
    if ratio <= 1:
        return Comparison(True, ratio, error, "")
    count = int((used > 1).sum())
    return Comparison(
        False,
        ratio,
        error,
        f"{count} of {used.numel()} values differ, worst at index {_index(worst, a.shape)}: "
        f"got {_value(a, worst)}, expected {_value(e, worst)}, difference {error:.3g} is "
        f"{ratio:.3g} times the allowed {float(allowed.flatten()[worst]):.3g}",
    )


def assert_matches(
    actual: torch.Tensor,
    expected: torch.Tensor,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    name: str = "result",
) -> None:
    """Raises AssertionError unless :func:`compare` finds that two tensors agree.

    Args:
        actual: What was computed.
        expected: What it must be; of the same shape, on any device, usually in float64.
        rtol: Allowed difference relative to ``|expected|``.
        atol: Allowed absolute difference, added to the relative one.
        name: Begins the message.

    Raises:
        AssertionError: Names the worst index with both values.

    Example:
        >>> import torch
        >>> from robustcore.testing import assert_matches
        >>> assert_matches(torch.tensor([1.0]), torch.tensor([1.0 + 1e-7]), rtol=1e-6, name="loss")
    """
    __tracebackhide__ = True
    outcome = compare(actual, expected, rtol=rtol, atol=atol)
    if not outcome.passed:
        raise AssertionError(f"{name}: {outcome.problem}")


def error_against(actual: torch.Tensor, reference64: torch.Tensor) -> float:
    """Relative error by norm, ``‖actual − reference‖₂ / ‖reference‖₂``, over the finite values.

    Args:
        actual: What was computed, in any floating-point type.
        reference64: The same in float64.

    Returns:
        The error; 0 for empty tensors; infinite where NaN or infinities are in other places.
    """
    a, r = actual.detach().cpu().double(), reference64.detach().cpu().double()
    if a.shape != r.shape:
        raise ValueError(
            f"error_against: actual must have shape {tuple(r.shape)}, got {tuple(a.shape)}"
        )
    finite = r.isfinite()
    same = torch.where(finite, a.isfinite(), (a == r) | (a.isnan() & r.isnan()))
    if not bool(same.all()):
        return math.inf
    # Scaled by the largest value, so that squares neither overflow nor vanish.
    scale = float(r[finite].abs().max()) if bool(finite.any()) else 0.0
    if scale == 0.0:
        return 0.0 if bool((a[finite] == 0).all()) else math.inf
    difference = torch.linalg.vector_norm((a[finite] - r[finite]) / scale)
    return float(difference / torch.linalg.vector_norm(r[finite] / scale))


def _compare_exactly(actual: torch.Tensor, expected: torch.Tensor) -> Comparison:
    if actual.dtype != expected.dtype:
        return _failed(f"type {actual.dtype} where {expected.dtype} was expected")
    wrong = actual != expected
    if not wrong.any():
        return Comparison(True, 0.0, 0.0, "")
    return _failed(_sentence("differ", wrong, actual, expected))


def _failed(problem: str) -> Comparison:
    return Comparison(False, math.inf, math.inf, problem)


def _sentence(what: str, wrong: torch.Tensor, actual: torch.Tensor, expected: torch.Tensor) -> str:
    first = int(wrong.flatten().int().argmax())
    return (
        f"{int(wrong.sum())} of {wrong.numel()} values {what}, first at index "
        f"{_index(first, wrong.shape)}: got {_value(actual, first)}, "
        f"expected {_value(expected, first)}"
    )


def _index(position: int, shape: torch.Size) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(position), shape))


def _value(tensor: torch.Tensor, position: int) -> str:
    value = tensor.flatten()[position].item()
    return f"{value:.9g}" if isinstance(value, float) else str(value)
