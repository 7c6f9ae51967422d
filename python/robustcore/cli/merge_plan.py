"""Tables of ``robustcore merge``: the plan, and the methods."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from .output import console, human_bytes

__all__ = ["method_rows", "print_methods", "print_plan"]

_LISTED = 20


def method_rows() -> list[dict[str, Any]]:
    """Every method: name, what it does, its options with their defaults."""
    from ..merging.methods import METHODS

    rows = []
    for name, build in METHODS.items():
        first = (inspect.getdoc(build) or "").split("\n\n")[0]
        options = {
            key: parameter.default
            for key, parameter in inspect.signature(build).parameters.items()
            if key != "tasks"
        }
        rows.append({"name": name, "what": " ".join(first.split()), "options": options})
    return rows


def print_methods(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table

    table = Table(title="methods", title_justify="left", show_lines=True)
    table.add_column("method", no_wrap=True)
    table.add_column("what it does", overflow="fold", ratio=3)
    table.add_column("options and defaults", overflow="fold", ratio=2)
    for row in rows:
        options = ", ".join(f"{key}={_shown(value)}" for key, value in row["options"].items())
        table.add_row(row["name"], _plain(row["what"]), _plain(options))
    console().print(table)


def print_plan(facts: Mapping[str, Any]) -> None:
    from rich.table import Table

    output = console()
    general = Table(show_header=False, title="plan: nothing was written", title_justify="left")
    general.add_column(no_wrap=True)
    general.add_column(overflow="fold")
    for name, value in _general(facts):
        general.add_row(name, _plain(value))
    output.print(general)

    models = Table(title="models", title_justify="left")
    for heading in ("name", "path", "kind", "tensors", "parameters", "dtypes"):
        models.add_column(heading, overflow="fold")
    for model in facts["models"]:
        texts = (model["name"], model["path"], model["kind"])
        models.add_row(
            *map(_plain, texts),
            str(model["tensors"]),
            f"{model['parameters']:,}",
            ", ".join(model["dtypes"]),
        )
    output.print(models)

    if facts["mismatches"]:
        table = Table(title="differences from the base", title_justify="left")
        table.add_column("difference", overflow="fold")
        table.add_column("what is done")
        for entry in facts["mismatches"][:_LISTED]:
            table.add_row(_plain(entry["difference"]), entry["action"])
        if len(facts["mismatches"]) > _LISTED:
            table.add_row(f"and {len(facts['mismatches']) - _LISTED} more (--json has all)", "")
        output.print(table)

    if facts["blocks"]:
        table = Table(title="blocks of LiNeS", title_justify="left")
        for heading in ("block", "tensors", "scale"):
            table.add_column(heading)
        for row in facts["blocks"]:
            scale = f"alpha + {row['added_to_alpha']:.4g}" if row["added_to_alpha"] else "alpha"
            table.add_row(_plain(row["block"]), str(row["tensors"]), scale)
        output.print(table)


def _general(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    tensors = facts["tensors"]
    options = ", ".join(f"{key}={_shown(value)}" for key, value in facts["options"].items())
    rows = [
        ("method", f"{facts['method']} ({options})" if options else facts["method"]),
        ("output", facts["output"] or "not given"),
        (
            "tensors",
            f"{tensors['merged']} merged ({facts['parameters']:,} parameters), "
            f"{tensors['carried']} carried from the base, {tensors['tied']} tied",
        ),
        (
            "to read",
            f"{human_bytes(facts['bytes_read'])} ({facts['walks']:.3g} walks over all weights)",
        ),
        ("to write", human_bytes(facts["bytes_written"])),
        ("free on the disk", human_bytes(facts["free_disk_bytes"])),
        ("peak memory", _memory(facts)),
        (
            "time",
            f"about {_duration(facts['estimated_seconds'])}: an estimate from "
            f"{human_bytes(facts['sampled_bytes'])} that were read and merged in "
            f"{facts['sampled_seconds']:.2g} s; writing is not in it",
        ),
    ]
    return rows


def _memory(facts: Mapping[str, Any]) -> str:
    own = facts["interpreter_bytes"]
    more = f" besides the {human_bytes(own)} of this process now" if own else ""
    return f"{human_bytes(facts['buffer_bytes'])} of buffers{more}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return repr(value)


def _plain(text: str) -> Any:
    """Text in which brackets are brackets."""
    from rich.text import Text

    return Text(text)
