"""Targets are data beside each benchmark; here they are held against a run, nothing hidden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Target", "evaluate_targets", "verdict"]

PASS, MISS, NOT_MEASURED = "PASS", "MISS", "NOT MEASURED"


@dataclass(frozen=True)
class Target:
    """A number to reach.

    Args:
        label: What is promised, in words.
        metric: ``speedup:<contestant kind or name>``, ``fraction_of_copy``, ``fraction_of_read``,
            ``extra_bytes``, ``memory_ratio:<contestant kind>`` (extra memory of the operator over
            that of the thriftiest contestant of the kind), ``count:<name>`` (of
            :meth:`Benchmark.counts`),
            ``memory_ratio_beside_gradients:<contestant kind>`` (the same without the gradients that
            every contestant returns) or ``error_ratio``.
        bound: The threshold.
        size: Label of the size; empty for ``error_ratio``, which takes the worst.
        passes: ``forward`` or ``forward+backward``.
        at_least: Whether the bound is a lower one.
        device: Kind of device the target is meant for; empty for any.
    """

    label: str
    metric: str
    bound: float
    size: str = ""
    passes: str = ""
    at_least: bool = True
    device: str = "cpu"


def verdict(value: float | None, bound: float, *, at_least: bool) -> str:
    """``PASS``, ``MISS`` or ``NOT MEASURED``."""
    if value is None:
        return NOT_MEASURED
    reached = value >= bound if at_least else value <= bound
    return PASS if reached else MISS


def evaluate_targets(
    name: str,
    targets: Sequence[Target],
    rows: Sequence[Mapping[str, Any]],
    accuracy: Sequence[Mapping[str, Any]],
    device: str,
) -> list[dict[str, Any]]:
    """Holds the targets of benchmark ``name`` against its rows of a report."""
    results = []
    for target in targets:
        if target.device not in ("", device):
            continue
        value = _measured(target, name, rows, accuracy)
        results.append(
            {
                "benchmark": name,
                **asdict(target),
                "value": value,
                "verdict": verdict(value, target.bound, at_least=target.at_least),
            }
        )
    return results


def _measured(
    target: Target,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    accuracy: Sequence[Mapping[str, Any]],
) -> float | None:
    if target.metric == "error_ratio":
        ratios = [row["worst_ratio"] for row in accuracy if row["benchmark"] == name]
        return max(ratios, default=None)
    for row in rows:
        if (row["benchmark"], row["size"], row["passes"]) == (name, target.size, target.passes):
            metric, _, kind = target.metric.partition(":")
            if metric == "speedup":
                return _best_speedup(row, kind)
            if metric == "count":
                return row["counts"].get(kind)
            if metric == "extra_bytes":
                return row["extra_bytes"].get(row["operator_name"])
            if metric == "memory_ratio":
                return _memory_ratio(row, kind, 0)
            if metric == "memory_ratio_beside_gradients":
                return _memory_ratio(row, kind, row["gradient_bytes"])
            return row[metric]
    return None


def _memory_ratio(row: Mapping[str, Any], kind: str, everyones: int) -> float | None:
    """Extra memory over that of the thriftiest contestant of that kind, less ``everyones``."""
    extra = row["extra_bytes"]
    others = [
        extra[contestant["name"]] - everyones
        for contestant in row["contestants"]
        if contestant["kind"] == kind and contestant["name"] in extra
    ]
    if row["operator_name"] not in extra or not others or min(others) <= 0:
        return None
    return max(0, extra[row["operator_name"]] - everyones) / min(others)


def _best_speedup(row: Mapping[str, Any], kind: str) -> float | None:
    """Against the fastest contestant of that kind, or the one of that name."""
    speedups = [
        row["speedups"][contestant["name"]]
        for contestant in row["contestants"]
        if kind in (contestant["kind"], contestant["name"])
        and contestant["name"] in row["speedups"]
    ]
    return min(speedups, default=None)
