"""Named merging methods: each is a function from its options to a :class:`.recipe.Recipe`.

To add a method, write such a function in the module of its kind, with keyword-only options and a
docstring whose first line says what it does, and add it to ``METHODS``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..recipe import Recipe
from .arithmetic import linear, lines, task_arithmetic
from .consensus import consensus, consensus_ties
from .interpolation import rift, robust_weight_signature, slerp
from .sparse import breadcrumbs, breadcrumbs_ties, dare, dare_ties, della, magnitude_pruning
from .ties import ties

__all__ = ["METHODS", "make_recipe"]

METHODS: Mapping[str, Callable[..., Recipe]] = {
    "task_arithmetic": task_arithmetic,
    "linear": linear,
    "lines": lines,
    "slerp": slerp,
    "rift": rift,
    "rws": robust_weight_signature,
    "ties": ties,
    "dare": dare,
    "dare_ties": dare_ties,
    "della": della,
    "breadcrumbs": breadcrumbs,
    "breadcrumbs_ties": breadcrumbs_ties,
    "magnitude": magnitude_pruning,
    "consensus": consensus,
    "consensus_ties": consensus_ties,
}


def make_recipe(op: str, method: str, tasks: int, options: Mapping[str, Any]) -> Recipe:
    """The recipe of a named method.

    Raises:
        ValueError: There is no such method, or an option is out of range.
        TypeError: The method has no such option, or it has the wrong type.
    """
    if method not in METHODS:
        raise ValueError(f"{op}: method must be one of {', '.join(METHODS)}, got {method!r}")
    build = METHODS[method]
    known = [name for name in inspect.signature(build).parameters if name != "tasks"]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"{op}: {method} has the options {', '.join(known)}, got {unknown[0]!r}")
    try:
        return build(tasks=tasks, **options)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{op}: {error}") from None
