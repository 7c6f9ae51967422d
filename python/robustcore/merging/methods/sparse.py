"""Methods that drop entries of task vectors, at random or by magnitude."""

from __future__ import annotations

from typing import Any

from ..recipe import Drop, Election, Recipe, Reduction, Rescale, Undecided, Window
from ._options import Weights, choice, count, depth_scale, fraction, number, task_weights

__all__ = [
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare",
    "dare_ties",
    "della",
    "magnitude_pruning",
]

_RESCALES = {"none": Rescale.NONE, "density": Rescale.DENSITY, "l1": Rescale.L1}
_SEEDS = 2**63 - 1


def _rescale(value: str) -> Rescale:
    return _RESCALES[choice("rescale", value, tuple(_RESCALES))]


def _elected(fields: dict[str, Any]) -> Recipe:
    """With the election of ``ties(mode="per_tensor")``."""
    return Recipe(
        election=Election.WEIGHTED_SUM,
        undecided=Undecided.POSITIVE,
        reduction=Reduction.WEIGHTED_MEAN,
        **fields,
    )


def _dare(
    tasks: int, density: float, seed: int, rescale: str, weights: Weights, scale: float, lines: Any
) -> dict[str, Any]:
    kept = fraction("density", density)
    if kept == 0:
        raise ValueError("density must be above 0, got 0")
    return {
        "drop": Drop(kept, count("seed", seed, 0, _SEEDS)),
        "rescale": _rescale(rescale),
        "weights": task_weights("weights", weights, tasks),
        "scale": number("scale", scale),
        "depth": depth_scale(lines, tasks),
    }


def dare(
    *,
    tasks: int,
    density: float = 0.1,
    seed: int = 0,
    rescale: str = "density",
    weights: Weights = 1.0,
    scale: float = 1.0,
    lines: Any = None,
) -> Recipe:
    """Drop entries at random, 1 - density of them, and rescale what stays (arXiv 2311.03099).

    ``rescale="l1"`` matches each tensor's L1 norm instead of dividing by the density.
    """
    return Recipe(**_dare(tasks, density, seed, rescale, weights, scale, lines))


def dare_ties(
    *,
    tasks: int,
    density: float = 0.1,
    seed: int = 0,
    rescale: str = "density",
    weights: Weights = 1.0,
    scale: float = 1.0,
    lines: Any = None,
) -> Recipe:
    """DARE, then the sign election of TIES with weighted votes."""
    return _elected(_dare(tasks, density, seed, rescale, weights, scale, lines))


def della(
    *,
    tasks: int,
    density: float = 0.5,
    epsilon: float = 0.1,
    seed: int = 0,
    rescale: str = "density",
    weights: Weights = 1.0,
    scale: float = 1.0,
    elect: bool = True,
    lines: Any = None,
) -> Recipe:
    """Drop entries with a chance by the rank of their magnitude in the row (arXiv 2406.11617).

    The chance to stay goes from density - epsilon for the smallest to density + epsilon for the
    largest entry of a row; rows of one entry are kept.
    """
    kept, spread = fraction("density", density), fraction("epsilon", epsilon)
    if kept - spread <= 0 or kept + spread > 1:
        raise ValueError(
            "density - epsilon must be above 0 and density + epsilon at most 1, got "
            f"{density!r} and {epsilon!r}"
        )
    if rescale == "l1":
        raise ValueError("rescale must be one of none, density, got 'l1'")
    fields: dict[str, Any] = {
        "drop": Drop(kept, count("seed", seed, 0, _SEEDS), spread),
        "rescale": _rescale(rescale),
        "weights": task_weights("weights", weights, tasks),
        "scale": number("scale", scale),
        "depth": depth_scale(lines, tasks),
    }
    return _elected(fields) if elect else Recipe(**fields)


def _breadcrumbs(
    tasks: int, density: float, gamma: float, weights: Weights, scale: float, lines: Any
) -> dict[str, Any]:
    return {
        "window": Window(fraction("density", density), top=fraction("gamma", gamma)),
        "weights": task_weights("weights", weights, tasks),
        "scale": number("scale", scale),
        "depth": depth_scale(lines, tasks),
    }


def breadcrumbs(
    *,
    tasks: int,
    density: float = 0.85,
    gamma: float = 0.01,
    weights: Weights = 1.0,
    scale: float = 1.0,
    lines: Any = None,
) -> Recipe:
    """Drop the largest int(gamma n) magnitudes of each tensor and keep the next int(density n)
    (arXiv 2312.06795)."""
    return Recipe(**_breadcrumbs(tasks, density, gamma, weights, scale, lines))


def breadcrumbs_ties(
    *,
    tasks: int,
    density: float = 0.85,
    gamma: float = 0.01,
    weights: Weights = 1.0,
    scale: float = 1.0,
    lines: Any = None,
) -> Recipe:
    """Breadcrumbs, then the sign election of TIES with weighted votes."""
    return _elected(_breadcrumbs(tasks, density, gamma, weights, scale, lines))


def magnitude_pruning(
    *,
    tasks: int,
    density: float = 0.2,
    rescale: str = "none",
    weights: Weights = 1.0,
    scale: float = 1.0,
    lines: Any = None,
) -> Recipe:
    """Keep the int(density n) largest magnitudes of each tensor of each task vector and add up."""
    return Recipe(
        window=Window(fraction("density", density)),
        rescale=_rescale(rescale),
        weights=task_weights("weights", weights, tasks),
        scale=number("scale", scale),
        reduction=Reduction.SUM,
        depth=depth_scale(lines, tasks),
    )
