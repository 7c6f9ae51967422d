"""The report as tables for the terminal."""

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
        console.print(_timings(name, [row for row in report["rows"] if row["benchmark"] == name]))
    if report["accuracy"]:
        console.print(_accuracy(report["accuracy"]))
    if report["targets"]:
        console.print(_targets(report["targets"], quick=report["quick"]))
    reasons = dict.fromkeys(
        (skipped["name"], skipped["reason"])
        for row in report["rows"]
        for skipped in row["skipped"]
    )
    for name, reason in reasons:
        console.print(Text(f"skipped {name}: {reason}", style="dim"))


def _timings(name: str, rows: list[Mapping[str, Any]]) -> Table:
    table = Table(title=name, title_justify="left", title_style="bold")
    table.add_column("size")
    table.add_column("contestant", overflow="fold")
    for heading in ("median", "quartiles", "GB/s", "of copy", "robustcore is", "extra memory"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_section()
        title = Text(f"{row['size']}\n{row['passes']}")
        if row["cache_resident"]:
            title.append("\nin cache", style="dim")
        bandwidths = {"copy": row["copy_gb_per_s"], "read": row["read_gb_per_s"]}
        for contestant in row["contestants"]:
            kind = contestant["kind"]
            of_operator = kind == "operator"
            rate = row["gb_per_s"] if of_operator else bandwidths.get(contestant["name"])
            speedup = row["speedups"].get(contestant["name"])
            table.add_row(
                title,
                contestant["name"],
                seconds(contestant["median_s"]),
                f"{seconds(contestant['first_quartile_s'])} - "
                f"{seconds(contestant['third_quartile_s'])}",
                "" if rate is None else f"{rate:.1f}",
                percent(row["fraction_of_copy"]) if of_operator else "",
                "" if speedup is None else f"{speedup:.2f}x as fast",
                mebibytes(row["extra_bytes"].get(contestant["name"])),
                style={"operator": "bold", "probe": "dim"}.get(kind),
            )
            title = Text("")
    return table


def _accuracy(rows: list[Mapping[str, Any]]) -> Table:
    table = Table(title="error against float64", title_justify="left", title_style="bold")
    for heading in ("benchmark", "size", "quantity"):
        table.add_column(heading)
    for heading in ("robustcore", "eager", "ratio"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_section()
        for quantity, errors in row["quantities"].items():
            table.add_row(
                row["benchmark"],
                row["size"],
                quantity,
                f"{errors['operator_error']:.2e}",
                f"{errors['eager_error']:.2e}",
                f"{errors['ratio']:.2f}",
            )
    return table


def _targets(targets: list[Mapping[str, Any]], *, quick: bool) -> Table:
    note = "targets (a quick run says nothing about speed)" if quick else "targets"
    table = Table(title=note, title_justify="left", title_style="bold")
    for heading in ("benchmark", "size", "target"):
        table.add_column(heading, overflow="fold")
    table.add_column("measured", justify="right")
    table.add_column("")
    styles = {"PASS": "green", "MISS": "bold red"}
    for target in targets:
        table.add_row(
            target["benchmark"],
            f"{target['size']} {target['passes']}".strip() or "worst of all",
            target["label"],
            _measured(target),
            Text(target["verdict"], style=styles.get(target["verdict"], "dim")),
        )
    return table


def _measured(target: Mapping[str, Any]) -> str:
    value = target["value"]
    if value is None:
        return "-"
    if target["metric"] == "extra_bytes":
        return f"{mebibytes(value)} of {mebibytes(target['bound'])}"
    if target["metric"].startswith("fraction"):
        return percent(value)
    return f"{value:.2f}x"


def seconds(value: float) -> str:
    """Three significant digits with a unit that fits."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def mebibytes(value: float | None) -> str:
    return "" if value is None else f"{value / (1 << 20):.1f} MiB"
