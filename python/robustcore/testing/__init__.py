"""Property-testing an implementation against robustcore's references.

:func:`operators` lists every operator with its reference and sample inputs;
:func:`assert_matches` compares results and names the worst index.
"""

from __future__ import annotations

from .check import Finding, check_sample
from .comparison import Comparison, assert_matches, compare, error_against
from .registry import FAMILIES, operators
from .sample import OperatorCase, Sample, map_tensors, named_tensors

__all__ = [
    "FAMILIES",
    "Comparison",
    "Finding",
    "OperatorCase",
    "Sample",
    "assert_matches",
    "check_sample",
    "compare",
    "error_against",
    "map_tensors",
    "named_tensors",
    "operators",
]
