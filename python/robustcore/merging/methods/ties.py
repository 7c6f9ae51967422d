"""TIES: trim, elect signs, merge what agrees (arXiv 2306.01708), in three versions."""

from __future__ import annotations

from typing import Any

from ..recipe import Election, Recipe, Reduction, Undecided, Window
from ._options import Weights, choice, depth_scale, fraction, number, task_weights

__all__ = ["ties", "ties_of"]

_MODES = ("global", "per_tensor", "lora")
_REDUCTIONS = {
    "mean": Reduction.MEAN,
    "sum": Reduction.SUM,
    "max": Reduction.LARGEST,
}


def ties(
    *,
    tasks: int,
    mode: str = "global",
    density: float = 0.2,
    scale: float = 1.0,
    weights: Weights = 1.0,
    merge: str = "mean",
    lines: Any = None,
) -> Recipe:
    """Trim, elect a sign per parameter, merge the entries that agree with it (arXiv 2306.01708).

    ``mode="global"``: as the authors' code: magnitudes are ranked over the whole model, ties stay,
    votes are unweighted, what cancels out takes the sign of the majority. ``"per_tensor"``: exactly
    int(density n) stay in each tensor, votes are weighted, the sum is divided by the weights that
    agree. ``"lora"``: the same trim, unweighted votes, weighted sum divided by their number.
    ``merge`` (global only): mean, sum or max.
    """
    return ties_of(
        Window(
            fraction("density", density),
            scope="model" if mode == "global" else "tensor",
            exact=mode != "global",
        ),
        mode=mode,
        merge=merge,
        weights=task_weights("weights", weights, tasks),
        scale=number("scale", scale),
        depth=depth_scale(lines, tasks),
    )


def ties_of(window: Window | None, *, mode: str, merge: str, **fields: Any) -> Recipe:
    choice("mode", mode, _MODES)
    choice("merge", merge, tuple(_REDUCTIONS))
    if mode == "global":
        return Recipe(
            window=window,
            election=Election.SUM,
            undecided=Undecided.MAJORITY,
            reduction=_REDUCTIONS[merge],
            **fields,
        )
    if merge != "mean":
        raise ValueError(f"merge must be mean where mode is {mode}, got {merge!r}")
    weighted = mode == "per_tensor"
    return Recipe(
        window=window,
        election=Election.WEIGHTED_SUM if weighted else Election.SUM,
        undecided=Undecided.POSITIVE,
        reduction=Reduction.WEIGHTED_MEAN if weighted else Reduction.MEAN,
        **fields,
    )
