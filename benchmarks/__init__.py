"""The benchmarks: one file per operator, named as the operator, and the harness they share.

Run them with ``robustcore bench``, or ``python -m benchmarks`` in the repository. Read
:mod:`.timing` for how a number comes about, :mod:`.memory` for memory, :mod:`.bandwidth` for the
copy that all GB/s are compared with.
"""

from __future__ import annotations

from .registry import all_benchmarks, select_benchmarks
from .runner import Settings, run_benchmarks

__all__ = ["Settings", "all_benchmarks", "run_benchmarks", "select_benchmarks"]
