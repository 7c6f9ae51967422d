"""Arguments of this package, checked and brought into one form; optional packages."""

from __future__ import annotations

import importlib
import math
import numbers
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = ["ArrayLike", "Scores", "check_number", "optional_module", "read_scores"]

# A tensor, an array, or nested sequences of numbers: what numpy.asarray accepts.
ArrayLike = Any

_PACKAGES = {"sklearn": "scikit-learn"}


def optional_module(op: str, name: str) -> Any:
    """Imports a package of the extra ``analysis``; a clear error where it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        top = name.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        raise ModuleNotFoundError(
            f"{op} needs {_PACKAGES.get(top, top)}, which is not installed: "
            "install the extra `analysis` (scikit-learn, matplotlib)",
            name=top,
        ) from error


class Scores(NamedTuple):
    """The rows that take part, in order; high values mean wrong."""

    values: np.ndarray  # float64 [n], no NaN
    wrong: np.ndarray | None  # bool [n]
    rows: np.ndarray  # int64 [n], positions in the flattened input
    total: int  # rows of the input
    sign: float  # values = sign · the caller's scores

    @property
    def excluded(self) -> int:
        return self.total - len(self.values)


def read_scores(
    op: str,
    scores: ArrayLike,
    wrong: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    higher_is_wrong: bool = True,
) -> Scores:
    if not isinstance(higher_is_wrong, bool):
        raise TypeError(
            f"{op}: higher_is_wrong must be a bool, got {type(higher_is_wrong).__name__}"
        )
    values = _array(op, "scores", scores)
    if values.dtype.kind not in "fiu":
        raise TypeError(f"{op}: scores must be real numbers, got dtype {values.dtype}")
    shape = values.shape
    values = values.astype(np.float64).reshape(-1)
    keep = ~np.isnan(values)
    if valid is not None:
        keep &= _mask(op, "valid", valid, shape)
    truth = None if wrong is None else _mask(op, "wrong", wrong, shape)[keep]
    sign = 1.0 if higher_is_wrong else -1.0
    rows = np.flatnonzero(keep)
    return Scores(sign * values[keep], truth, rows, len(values), sign)


def _array(op: str, name: str, value: ArrayLike) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        # NumPy has no bfloat16.
        return (value.double() if value.is_floating_point() else value).numpy()
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{op}: {name} must be a tensor or an array: {error}") from None


def _mask(op: str, name: str, value: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    mask = _array(op, name, value)
    if mask.dtype != np.bool_:
        raise TypeError(f"{op}: {name} must be of dtype bool, got {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(f"{op}: {name} must have the shape of scores {shape}, got {mask.shape}")
    return mask.reshape(-1)


def check_number(op: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    if math.isnan(value):
        raise ValueError(f"{op}: {name} must not be NaN")
    return float(value)
