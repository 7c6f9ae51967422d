"""Checks and pieces that methods share."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from ..recipe import DepthScale

__all__ = ["choice", "count", "depth_scale", "fraction", "number", "sum_scale", "task_weights"]

#: One number for all tasks, or one per task.
Weights = float | Sequence[float]


def number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def fraction(name: str, value: Any) -> float:
    result = number(name, value)
    if not 0 <= result <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value!r}")
    return result


def count(name: str, value: Any, least: int, most: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    value = int(value)
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {limits}, got {value}")
    return value


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return str(value)


def task_weights(name: str, value: Any, tasks: int) -> float | tuple[float, ...]:
    """One number for all tasks, or a tuple of one per task."""
    if isinstance(value, numbers.Real):
        return number(name, value)
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a number or a sequence of numbers, got {value!r}")
    if len(value) != tasks:
        raise ValueError(f"{name} must hold one number per task ({tasks}), got {len(value)}")
    return tuple(number(f"{name}[{index}]", entry) for index, entry in enumerate(value))


def depth_scale(depth: Any, tasks: int) -> DepthScale | None:
    """From ``lines=``: None, True for the defaults, or a mapping with alpha, beta, blocks."""
    if depth is None or depth is False:
        return None
    fields = {} if depth is True else depth
    if not isinstance(fields, dict):
        raise TypeError(f"lines must be True or a mapping of alpha, beta, blocks, got {depth!r}")
    unknown = fields.keys() - {"alpha", "beta", "blocks"}
    if unknown:
        raise TypeError(f"lines has the entries alpha, beta, blocks, got {sorted(unknown)[0]!r}")
    alpha = fields.get("alpha")
    if alpha is not None:
        alpha = number("lines['alpha']", alpha)
    blocks = fields.get("blocks")
    if blocks is not None and not isinstance(blocks, str):
        raise TypeError(f"lines['blocks'] must be a regular expression, got {blocks!r}")
    return DepthScale(alpha, number("lines['beta']", fields.get("beta", 1.0)), blocks)


def sum_scale(scale: Any, lines: Any) -> float:
    """The factor of a sum of task vectors: 0.3 unless given; 1 where LiNeS scales it already."""
    if scale is None:
        return 1.0 if lines else 0.3
    return number("scale", scale)
