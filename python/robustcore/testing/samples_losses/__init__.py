"""Sample inputs of the losses: one module per operator, with a function ``case()``."""

from __future__ import annotations

import importlib
import pkgutil

from ..sample import OperatorCase

__all__ = ["operator_cases"]


def operator_cases() -> list[OperatorCase]:
    """The losses with their references, by name: every module here that has no underscore."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [
        importlib.import_module(f".{name}", __name__).case()
        for name in names
        if not name.startswith("_")
    ]
