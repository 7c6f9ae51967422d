"""Histogram and ROC curve of a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._scores import Scores, optional_module
from .metrics import ranks

if TYPE_CHECKING:
    from .report import DetectionReport

__all__ = ["draw"]

_OP = "DetectionReport.plot"
_BINS = 60


def draw(report: DetectionReport, scores: Scores, path: Path) -> Path:
    # Not pyplot: a library leaves the user's figures and backend alone.
    figure_module = optional_module(_OP, "matplotlib.figure")
    curve = report.auc is not None
    figure = figure_module.Figure(figsize=(9.0 if curve else 5.0, 3.6), layout="constrained")
    _histogram(figure.add_subplot(1, 2 if curve else 1, 1), report, scores)
    if curve:
        _receiver_operating_characteristic(figure.add_subplot(1, 2, 2), report, scores)
    # The software's name and the date would make every file a different one.
    figure.savefig(path, metadata={"Date": None} if path.suffix in (".svg", ".pdf") else None)
    return path


def _histogram(axes: Any, report: DetectionReport, scores: Scores) -> None:
    values = scores.sign * scores.values
    finite = np.isfinite(values)
    groups = [("labels", "tab:blue", finite)]
    if scores.wrong is not None:
        groups = [
            ("right labels", "tab:green", finite & ~scores.wrong),
            ("wrong labels", "tab:red", finite & scores.wrong),
        ]
    edges = np.histogram_bin_edges(values[finite], bins=_BINS)
    for label, colour, rows in groups:
        counts, _ = np.histogram(values[rows], bins=edges)
        axes.stairs(counts, edges, fill=True, alpha=0.55, color=colour, label=label)
    if np.isfinite(report.threshold):
        axes.axvline(report.threshold, color="black", linestyle="--", label="threshold")
    axes.set(xlabel=report.name, ylabel="labels", yscale="log")
    axes.set_ylim(bottom=0.8)
    axes.legend()


def _receiver_operating_characteristic(axes: Any, report: DetectionReport, scores: Scores) -> None:
    metrics = optional_module(_OP, "sklearn.metrics")
    false_positives, true_positives, _ = metrics.roc_curve(
        scores.wrong, ranks(_OP, scores.values), drop_intermediate=True
    )
    axes.plot(false_positives, true_positives, color="tab:blue", label=f"AUC {report.auc:.3f}")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    quality = report.quality
    if quality is not None and quality.recall is not None:
        right = quality.count - quality.wrong
        axes.plot(
            [(quality.flagged - quality.found) / right],
            [quality.recall],
            "o",
            color="black",
            label="threshold",
        )
    axes.set(
        xlabel="right labels flagged", ylabel="wrong labels found", xlim=(-0.02, 1), ylim=(0, 1.02)
    )
    axes.legend(loc="lower right")
