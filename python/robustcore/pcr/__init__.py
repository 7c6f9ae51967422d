"""Parallel cyclic reduction: linear recurrences over time."""

from .layer import LinearRecurrence
from .linear_recurrence import linear_recurrence

__all__ = ["LinearRecurrence", "linear_recurrence"]
