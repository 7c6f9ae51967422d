"""Consensus Merging: only parameters that several TALL-masks keep (arXiv 2405.07813)."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..recipe import Consensus, Recipe
from ._options import Weights, choice, count, depth_scale, fraction, number, sum_scale, task_weights
from .ties import ties

__all__ = ["consensus", "consensus_ties"]


def _consensus(tasks: int, lambdas: Weights, k: int, comparison: str) -> Consensus:
    given = task_weights("lambdas", lambdas, tasks)
    values = given if isinstance(given, tuple) else (given,)
    if any(value <= 0 for value in values):
        raise ValueError(f"lambdas must be positive, got {lambdas!r}")
    return Consensus(
        values, count("k", k, 0, tasks), choice("comparison", comparison, ("strict", "paper"))
    )


def consensus(
    *,
    tasks: int,
    lambdas: Weights = 0.4,
    k: int = 2,
    scale: float | None = None,
    comparison: str = "strict",
    lines: Any = None,
) -> Recipe:
    """Task arithmetic on the parameters that at least k TALL-masks keep (arXiv 2405.07813).

    The scale is 0.3 unless given, with ``lines`` 1.
    """
    return Recipe(
        consensus=_consensus(tasks, lambdas, k, comparison),
        scale=sum_scale(scale, lines),
        depth=depth_scale(lines, tasks),
    )


def consensus_ties(
    *,
    tasks: int,
    lambdas: Weights = 0.4,
    k: int = 2,
    density: float = 0.2,
    scale: float = 1.0,
    comparison: str = "strict",
    lines: Any = None,
) -> Recipe:
    """Consensus on the multi-task vector of TIES (global, merged by sum)."""
    vector = ties(tasks=tasks, density=fraction("density", density), merge="sum")
    return dataclasses.replace(
        vector,
        consensus=_consensus(tasks, lambdas, k, comparison),
        scale=number("scale", scale),
        depth=depth_scale(lines, tasks),
    )
