"""Parallel cyclic reduction: linear recurrences over time."""

from .linear_recurrence import linear_recurrence

__all__ = ["linear_recurrence"]
