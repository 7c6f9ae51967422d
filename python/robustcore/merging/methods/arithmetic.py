"""Sums of task vectors."""

from __future__ import annotations

from typing import Any

from ..recipe import DepthScale, Recipe, Reduction
from ._options import Weights, depth_scale, number, sum_scale, task_weights

__all__ = ["linear", "lines", "task_arithmetic"]


def task_arithmetic(
    *, tasks: int, scale: float | None = None, weights: Weights = 1.0, lines: Any = None
) -> Recipe:
    """theta_0 + scale sum_t w_t tau_t (arXiv 2212.04089); a negative scale takes abilities away.

    The scale is 0.3 unless given, with ``lines`` 1.
    """
    return Recipe(
        weights=task_weights("weights", weights, tasks),
        scale=sum_scale(scale, lines),
        depth=depth_scale(lines, tasks),
    )


def linear(*, tasks: int, weights: Weights | None = None, lines: Any = None) -> Recipe:
    """theta_0 + sum_t w_t tau_t, by default the mean of the fine-tuned models (a model soup)."""
    given = 1.0 / tasks if weights is None else task_weights("weights", weights, tasks)
    return Recipe(weights=given, reduction=Reduction.SUM, depth=depth_scale(lines, tasks))


def lines(
    *,
    tasks: int,
    alpha: float | None = None,
    beta: float = 1.0,
    blocks: str | None = None,
    weights: Weights = 1.0,
) -> Recipe:
    """Task arithmetic scaled by depth (LiNeS, arXiv 2410.17146): by alpha + beta l / (L - 1).

    One task: alpha in [0, 1] keeps what the base could (beta is 1 - alpha unless given). Several:
    alpha follows from norms unless given, and beta is searched over 0.1 ... 1.
    """
    return Recipe(
        weights=task_weights("weights", weights, tasks),
        depth=DepthScale(
            None if alpha is None else number("alpha", alpha), number("beta", beta), blocks
        ),
    )
