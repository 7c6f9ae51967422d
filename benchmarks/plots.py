"""The report as a picture: how many times faster the operator is than each contestant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["MissingMatplotlib", "check_matplotlib", "plot_report"]

_FORMATS = (".svg", ".png", ".pdf")


class MissingMatplotlib(Exception):
    """matplotlib is not installed; the message says how to get it."""


def check_matplotlib(path: Path) -> None:
    """Raises unless :func:`plot_report` can write ``path``.

    Raises:
        MissingMatplotlib: If matplotlib is not installed.
        ValueError: If the suffix is none of .svg, .png and .pdf.
    """
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"the file name must end in {', '.join(_FORMATS)}, got {path.name!r}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingMatplotlib("plots need matplotlib: pip install 'robustcore[bench]'") from None


def plot_report(report: Mapping[str, Any], path: Path) -> None:
    """Draws horizontal bars, one panel per operator; the suffix of ``path`` chooses the format.

    Raises:
        MissingMatplotlib, ValueError: See :func:`check_matplotlib`.
    """
    check_matplotlib(path)
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["benchmark"] for row in report["rows"]))
    rows_of = {name: [r for r in report["rows"] if r["benchmark"] == name] for name in names}
    bars = {name: _bars(rows) for name, rows in rows_of.items()}
    heights = [0.9 + 0.26 * len(bars[name]) for name in names]
    # Figure, not pyplot: no display and no global state.
    figure = Figure(figsize=(8.5, sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(len(names), 1, squeeze=False, height_ratios=heights)[:, 0]
    kinds = ("eager", "compiled", "peer")
    colours = dict(zip(kinds, ("#4c72b0", "#dd8452", "#55a868")))
    for axis, name in zip(axes, names):
        labels = [label for label, _, _ in bars[name]]
        values = [value for _, _, value in bars[name]]
        axis.barh(labels, values, color=[colours[kind] for _, kind, _ in bars[name]])
        for position, value in enumerate(values):
            axis.annotate(
                f"{value:.1f}x",
                (value, position),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xlim(min([0.5, *values]) * 0.9, max([2.0, *values]) * 2)
        axis.invert_yaxis()
        axis.tick_params(labelsize=8)
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_xlabel("time of the contestant / time of robustcore", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    machine = report["machine"]
    figure.suptitle(
        f"{machine.get('gpu', machine['cpu'])}, {report['threads']} threads, "
        f"torch {report['versions']['torch']}",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _bars(rows: list[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    return [
        (
            f"{row['size']} {row['passes']}: {contestant['name']}",
            contestant["kind"],
            row["speedups"][contestant["name"]],
        )
        for row in rows
        for contestant in row["contestants"]
        if contestant["name"] in row["speedups"]
    ]
