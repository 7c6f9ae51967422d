"""Tables of ``robustcore masks``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .output import console, human_bytes

__all__ = ["print_built", "print_inspected"]

_MAXIMUM_COLUMNS = 12


def print_built(facts: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    output = console()
    table = Table(title=f"share kept of {facts['parameters']:,}", title_justify="left")
    table.add_column("task", overflow="fold")
    for value in facts["lambdas"]:
        table.add_column(f"λ = {value:g}", justify="right")
    for name, row in zip(facts["tasks"], facts["densities"], strict=True):
        table.add_row(Text(name), *(f"{density:.4f}" for density in row))
    output.print(table)
    if facts["output"] is not None:
        what = "a consensus mask" if facts["consensus"] else f"{len(facts['tasks'])} masks"
        output.print(
            f"wrote {facts['output']}: {what}, {human_bytes(facts['bytes'])}",
            markup=False,
            soft_wrap=True,
        )
    if facts["merged_output"] is not None:
        output.print(
            f"wrote {facts['merged_output']}: the multi-task vector", markup=False, soft_wrap=True
        )


def print_inspected(facts: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    output = console()
    general = Table(show_header=False, title=Text(facts["file"]), title_justify="left")
    consensus = "no"
    if facts["consensus"]:
        consensus = f"what at least {facts['consensus']} of {', '.join(facts['sources'])} keep"
    per = facts["bytes_per_parameter_and_task"]
    for name, value in (
        ("parameters", f"{facts['parameters']:,} in {facts['tensors']} tensors"),
        ("size", human_bytes(facts["bytes"])),
        ("bytes per parameter and task", "-" if per is None else f"{per:.5f}"),
        ("comparison", facts["comparison"]),
        ("consensus", consensus),
        ("models in the file", ", ".join(facts["embedded"]) or "none"),
        ("SHA-256 of the base", facts["base_sha256"] or "not known"),
        ("SHA-256 of the vector", facts["merged_sha256"] or "not known"),
    ):
        general.add_row(name, Text(value))
    output.print(general)

    tasks = Table(title="tasks", title_justify="left")
    for heading in ("task", "λ", "kept", "density"):
        tasks.add_column(heading)
    for task in facts["tasks"]:
        value = "-" if task["lambda"] is None else f"{task['lambda']:g}"
        tasks.add_row(Text(task["name"]), value, f"{task['kept']:,}", f"{task['density']:.4f}")
    output.print(tasks)

    total = max(1, facts["parameters"])
    names = [task["name"] for task in facts["tasks"]]
    if 1 < len(names) <= _MAXIMUM_COLUMNS:
        overlap = Table(title="share of parameters that both keep", title_justify="left")
        overlap.add_column("")
        for name in names:
            overlap.add_column(Text(name), justify="right")
        for name, row in zip(names, facts["overlap"], strict=True):
            overlap.add_row(Text(name), *(f"{count / total:.4f}" for count in row))
        output.print(overlap)

    histogram = Table(title="how many tasks keep a parameter", title_justify="left")
    for heading in ("tasks", "parameters", "share"):
        histogram.add_column(heading, justify="right")
    for count, parameters in enumerate(facts["histogram"]):
        histogram.add_row(str(count), f"{parameters:,}", f"{parameters / total:.4f}")
    output.print(histogram)
