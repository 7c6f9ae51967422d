"""The report as tables for the terminal, 80 columns wide.

``ratio`` is the time of a contestant over that of the operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["print_report"]


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Prints timings by operator, accuracy, and every target with its verdict."""
    machine = report["machine"]
    console.print(
        f"{machine.get('gpu', machine['cpu'])}, {report['threads']} threads, "
        f"torch {report['versions']['torch']}, {report['date']}",
        highlight=False,
    )
    for name in dict.fromkeys(row["benchmark"] for row in report["rows"]):
        console.print(Text(f"\n{name}", style="bold underline"))
        for row in report["rows"]:
            if row["benchmark"] == name:
                _print_row(row, console)
    if report["accuracy"]:
        console.print(_accuracy(report["accuracy"]))
    for name in dict.fromkeys(target["benchmark"] for target in report["targets"]):
        targets = [target for target in report["targets"] if target["benchmark"] == name]
        console.print(_targets(name, targets, quick=report["quick"]))
    reasons = dict.fromkeys(
        (skipped["name"], skipped["reason"]) for row in report["rows"] for skipped in row["skipped"]
    )
    for name, reason in reasons:
        console.print(Text(f"skipped {name}: {reason}", style="dim"))


def _print_row(row: Mapping[str, Any], console: Console) -> None:
    title = Text(f"\n{row['size']}  {row['passes']}", style="bold")
    if row["cache_resident"]:
        title.append("  (inputs stay in the cache)", style="not bold dim")
    console.print(title)
    table = _table()
    table.add_column("contestant", width=18, overflow="fold")
    for heading, width in (
        ("median", 8),
        ("quartiles", 18),
        ("GB/s", 5),
        ("of copy", 7),
        ("ratio", 6),
        ("memory", 9),
    ):
        table.add_column(heading, justify="right", width=width)
    bandwidths = {"copy": row["copy_gb_per_s"], "read": row["read_gb_per_s"]}
    for contestant in row["contestants"]:
        kind = contestant["kind"]
        of_operator = kind == "operator"
        rate = row["gb_per_s"] if of_operator else bandwidths.get(contestant["name"])
        speedup = row["speedups"].get(contestant["name"])
        table.add_row(
            contestant["name"],
            seconds(contestant["median_s"]),
            f"{seconds(contestant['first_quartile_s'])} - "
            f"{seconds(contestant['third_quartile_s'])}",
            "" if rate is None else f"{rate:.1f}",
            percent(row["fraction_of_copy"]) if of_operator else "",
            "" if speedup is None else times(speedup),
            mebibytes(row["extra_bytes"].get(contestant["name"])),
            style={"operator": "bold", "probe": "dim"}.get(kind),
        )
    console.print(table)


def _accuracy(rows: list[Mapping[str, Any]]) -> Table:
    table = _table("\nerror against float64, by norm")
    table.add_column("benchmark", min_width=19, overflow="fold")
    for heading in ("size", "quantity"):
        table.add_column(heading, overflow="fold")
    for heading in ("robustcore", "eager", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        for quantity, errors in row["quantities"].items():
            table.add_row(
                row["benchmark"].partition(".")[2],
                row["size"],
                quantity,
                f"{errors['operator_error']:.1e}",
                f"{errors['eager_error']:.1e}",
                f"{errors['ratio']:.2f}",
            )
    return table


def _targets(name: str, targets: list[Mapping[str, Any]], *, quick: bool) -> Table:
    note = " (a quick run says nothing about speed)" if quick else ""
    table = _table(f"\ntargets of {name}{note}")
    table.add_column("verdict", no_wrap=True)
    for heading in ("size", "target"):
        table.add_column(heading, overflow="fold")
    table.add_column("measured", justify="right", overflow="fold")
    styles = {"PASS": "green", "MISS": "bold red"}
    for target in targets:
        table.add_row(
            Text(target["verdict"], style=styles.get(target["verdict"], "dim")),
            f"{target['size']} {target['passes']}".strip() or "worst of all",
            target["label"],
            _measured(target),
        )
    return table


def _table(title: str | None = None) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold underline",
        box=None,
        padding=(0, 1, 0, 0),
        header_style="dim",
    )


def _measured(target: Mapping[str, Any]) -> str:
    value = target["value"]
    if value is None:
        return "-"
    if target["metric"] == "extra_bytes":
        return f"{mebibytes(value)} of {mebibytes(target['bound'])}"
    if target["metric"].startswith("fraction"):
        return percent(value)
    if target["metric"].startswith("count"):
        return f"{value:g}"
    if target["metric"].startswith("memory_ratio"):
        return f"{percent(value)} of {percent(target['bound'])}"
    return times(value)


def seconds(value: float) -> str:
    """Three significant digits with a unit that fits."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def times(value: float) -> str:
    return f"{value:.2f}x" if value < 100 else f"{value:.0f}x"


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def mebibytes(value: float | None) -> str:
    return "" if value is None else f"{value / (1 << 20):.1f} MiB"
