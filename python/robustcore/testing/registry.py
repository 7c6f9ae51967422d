"""The list of operators that tests, ``robustcore selftest`` and the benchmarks walk over."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator

from .sample import OperatorCase

__all__ = ["FAMILIES", "operators"]

FAMILIES = ("losses", "merging", "pcr")


def operators(family: str | None = None, name: str | None = None) -> Iterator[OperatorCase]:
    """Yields the operators of one family, or of all.

    Args:
        family: ``losses``, ``merging`` or ``pcr``; all when None.
        name: Only the operator of this name.

    Raises:
        ValueError: If there is no such family or operator; the message lists those that exist.

    Example:
        >>> from robustcore.testing import operators
        >>> "gated_cross_entropy" in [case.name for case in operators("losses")]
        True
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    cases = [case for each in FAMILIES if family in (None, each) for case in _cases_of_family(each)]
    if name is not None and name not in [case.name for case in cases]:
        known = ", ".join(sorted(case.name for case in cases)) or "none"
        raise ValueError(f"operator must be one of {known}, got {name!r}")
    for case in cases:
        if name in (None, case.name):
            yield case


def _cases_of_family(family: str) -> list[OperatorCase]:
    module = f"{__package__}.samples_{family}"
    if importlib.util.find_spec(module) is None:
        return []
    return importlib.import_module(module).operator_cases()
