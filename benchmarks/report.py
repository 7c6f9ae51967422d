"""One row of the report, and its file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .registry import Accuracy, Benchmark, Case

__all__ = ["accuracy_row", "assemble_row", "finite", "write_report"]

# Half a unit in the last place of float32: no rounded result can be expected to be better.
_ERROR_FLOOR = 2.0**-24


def assemble_row(
    benchmark: Benchmark,
    case: Case,
    results: Sequence[Mapping[str, Any]],
    skipped: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """Rates and ratios of one case, from the medians."""
    probes = {each["name"]: int(each["note"]) / each["median_s"] for each in _of(results, "probe")}
    operator = _of(results, "operator")[0]
    median = operator["median_s"]
    least = benchmark.least_bytes(case)
    rate = least.total / median
    return {
        "benchmark": benchmark.name,
        "family": benchmark.family,
        "operator": benchmark.operator,
        "operator_name": operator["name"],
        "size": case.size.label,
        "dimensions": dict(case.size.dimensions),
        "scale": case.size.scale,
        "passes": case.passes,
        "device": case.device,
        "dtype": str(case.size.dtype).removeprefix("torch."),
        "least_bytes": {"read": least.read, "written": least.written},
        "gb_per_s": rate / 1e9,
        "copy_gb_per_s": _scaled(probes.get("copy")),
        "read_gb_per_s": _scaled(probes.get("read")),
        "fraction_of_copy": rate / probes["copy"] if "copy" in probes else None,
        "fraction_of_read": least.read / median / probes["read"] if "read" in probes else None,
        "speedups": {
            each["name"]: each["median_s"] / median
            for each in results
            if each["kind"] not in ("operator", "probe")
        },
        "extra_bytes": {},
        "contestants": [dict(each) for each in results],
        "skipped": [dict(each) for each in skipped],
    }


def accuracy_row(name: str, accuracy: Accuracy) -> dict[str, Any]:
    """Errors of the operator and of the eager reference, with their ratios."""
    quantities = {
        quantity: {
            "operator_error": operator,
            "eager_error": eager,
            "ratio": operator / max(eager, _ERROR_FLOOR),
        }
        for quantity, (operator, eager) in accuracy.errors.items()
    }
    return {
        "benchmark": name,
        "size": accuracy.size,
        "quantities": quantities,
        "worst_ratio": max((each["ratio"] for each in quantities.values()), default=0.0),
    }


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """Writes the report whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    try:
        unfinished.write_text(json.dumps(finite(report), indent=1, allow_nan=False) + "\n")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """The same with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _of(results: Sequence[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    return [each for each in results if each["kind"] == kind]


def _scaled(bytes_per_second: float | None) -> float | None:
    return None if bytes_per_second is None else bytes_per_second / 1e9
