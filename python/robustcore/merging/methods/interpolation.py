"""Two models: along a line, along an arc, or a signature taken from one."""

from __future__ import annotations

import math
from typing import Any

from ..recipe import Mixing, Recipe
from ._options import depth_scale, fraction, number

__all__ = ["rift", "robust_weight_signature", "slerp"]


def rift(*, tasks: int, alpha: float = 0.5) -> Recipe:
    """(1 - alpha) theta_robust + alpha theta_finetuned, the robust model being the base (arXiv
    2308.02533)."""
    _only("rift", tasks, 1)
    return Recipe(scale=fraction("alpha", alpha))


def slerp(*, tasks: int, t: float = 0.5, parallel: float = 0.9995) -> Recipe:
    """From the base (t = 0) to the other model (t = 1) along an arc, tensor by tensor.

    Directions whose cosine is above ``parallel`` are interpolated along a line, and so is a tensor
    of zeros.
    """
    _only("slerp", tasks, 1)
    place, limit = fraction("t", t), fraction("parallel", parallel)

    def coefficients(products: list[list[float]]) -> tuple[float, list[float]]:
        norms = math.sqrt(products[0][0]) * math.sqrt(products[1][1])
        cosine = products[0][1] / norms if norms > 0 else 1.0
        if not abs(cosine) <= limit:
            return 1.0, [place]
        angle = math.acos(cosine)
        first = math.sin((1 - place) * angle) / math.sin(angle)
        second = math.sin(place * angle) / math.sin(angle)
        # first theta_0 + second theta_1 = (first + second) theta_0 + second tau
        return first + second, [second]

    return Recipe(mixing=Mixing(f"slerp {place!r} {limit!r}", False, coefficients))


def robust_weight_signature(*, tasks: int, scale: float = 1.0, lines: Any = None) -> Recipe:
    """Adds tau_robust minus its projection on tau_clean, tensor by tensor (arXiv 2302.12480).

    The tasks are the robust and the clean model, in this order.
    """
    _only("rws", tasks, 2)

    def coefficients(products: list[list[float]]) -> tuple[float, list[float]]:
        clean = products[1][1]
        return 1.0, [1.0, -products[0][1] / clean if clean > 0 else 0.0]

    return Recipe(
        mixing=Mixing("rws", True, coefficients),
        scale=number("scale", scale),
        depth=depth_scale(lines, tasks),
    )


def _only(method: str, tasks: int, expected: int) -> None:
    if tasks != expected:
        models = "1 model" if expected == 1 else f"{expected} models"
        raise ValueError(f"{method} takes {models} besides the base, got {tasks}")
