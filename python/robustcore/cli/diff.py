"""``robustcore diff``: what changed between two checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .output import (
    byte_progress,
    console,
    error_console,
    print_json,
    told_errors,
)
from .values import size_of

__all__ = ["diff"]

_LISTED = 20


def diff(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="A safetensors or PyTorch file, an index of shards, or a folder.",
            show_default=False,
        ),
    ],
    b: Annotated[
        str,
        typer.Argument(
            metavar="B", help="The same, or a LoRA adapter that is added to A.", show_default=False
        ),
    ],
    tensors: Annotated[
        int, typer.Option(help="How many tensors to list, those that changed most.")
    ] = _LISTED,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the layers (.svg, .png or .pdf).")
    ] = None,
    max_memory: Annotated[str, typer.Option(help="For all buffers.")] = "1GiB",
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 1 where the models differ.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every tensor.")] = False,
) -> None:
    """Show what changed from one model to another: layers, tensors, all weights."""
    memory = size_of("--max-memory", max_memory)
    with told_errors():
        if plot is not None:
            from .diff_plot import check_plot, plot_comparison

            check_plot(plot)
        from ..merging import compare

        with byte_progress(8) as report:
            found = compare(a, b, max_memory=memory, progress=report)
        if as_json:
            print_json(found.as_json())
        else:
            _print(found, tensors)
        if plot is not None:
            plot_comparison(found, plot)
            error_console().print(f"wrote {plot}", markup=False, soft_wrap=True)
    if exit_code and not found.is_equal:
        raise typer.Exit(1)


def _print(found: Any, count: int) -> None:
    output = console()
    if found.is_equal:
        output.print(f"equal: {found.total.parameters:,} parameters")
        return
    _table("layers", [*found.layers, found.total])
    changed = sorted(
        (entry for entry in found.tensors if entry.changed),
        key=lambda entry: (
            -entry.relative_norm if not math.isnan(entry.relative_norm) else -math.inf
        ),
    )
    if count > 0 and changed:
        shown = changed[:count]
        _table(f"tensors: {len(shown)} of {len(changed)} that changed, most first", shown)
    for buffer in found.buffers:
        if buffer.changed:
            output.print(
                f"buffer {buffer.name}: {buffer.changed:,} of {buffer.elements:,} changed",
                markup=False,
                soft_wrap=True,
            )
    for title, lines in (
        ("other shape or dtype", found.mismatches),
        ("only in A", found.missing),
        ("only in B", found.extra),
    ):
        _lines(title, lines)


def _lines(title: str, lines: Sequence[str]) -> None:
    output = console()
    if not lines:
        return
    output.print(f"{title}:")
    for line in lines[:_LISTED]:
        output.print(f"  {line}", markup=False, soft_wrap=True)
    if len(lines) > _LISTED:
        output.print(f"  and {len(lines) - _LISTED} more (--json has all)")


def _table(title: str, rows: Sequence[Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    for heading in ("parameters", "changed", "‖d‖", "‖d‖/‖a‖", "cosine", "max |d|"):
        table.add_column(heading, justify="right", no_wrap=True)
    broken = any(row.nonfinite for row in rows)
    if broken:
        table.add_column("not finite", justify="right")
    for row in rows:
        cells = [
            f"{row.parameters:,}",
            f"{100 * row.density:.4g} %",
            f"{row.norm:.4g}",
            f"{row.relative_norm:.3g}",
            f"{row.cosine:.6f}",
            f"{row.largest:.3g}",
        ]
        table.add_row(Text(row.name), *cells, *([f"{row.nonfinite:,}"] if broken else []))
    console().print(table)
