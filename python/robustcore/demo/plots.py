"""The figures of the report, as inline SVG that follows the page's light or dark colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Readable on white and on near-black alike.
BLUE, ORANGE, GREEN, GREY, RED = "#3d85d0", "#e07b2e", "#35a06a", "#8c8f96", "#d9534f"
# Text and axes are drawn in this colour, which the page then replaces by its own.
_INK = "#010203"
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "lines.linewidth": 1.6,
}
# As wide as a phone, so that the letters stay readable there.
_SIZE = (4.4, 2.9)


class Drawing:
    """One figure: ``axes`` to draw on, ``svg`` once the ``with`` block is over."""

    def __init__(self, figure: Figure, axes: Axes) -> None:
        self.figure, self.axes, self.svg = figure, axes, ""


@contextmanager
def drawing(name: str, description: str, size: tuple[float, float] = _SIZE) -> Iterator[Drawing]:
    """A figure without any global state of pyplot; ``name`` keeps its element ids apart."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        one = Drawing(figure, figure.add_subplot())
        yield one
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        one.svg = _inline(buffer.getvalue(), name, description)


def _inline(document: str, name: str, description: str) -> str:
    """Keep the <svg> element of a standalone file and make it fit a page."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
    # Groups such as axes_1 carry the same id in every figure.
    for identifier in set(re.findall(r'id="([^"]+)"', svg)):
        svg = re.sub(rf'(id="|#){re.escape(identifier)}(?=["\)])', rf"\1{name}-{identifier}", svg)
    # One typeface with the rest of the page: leave only the size of each text's font.
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", svg)
    return svg.replace(_INK, "currentColor")


def noisy_label_figures(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Test accuracy per epoch; the two scores that find wrong labels. (SVG, caption) pairs."""
    methods = results["methods"]
    epochs = range(1, results["epochs"] + 1)
    with drawing("accuracy", "Test accuracy after each epoch") as curves:
        colours = {"pi_dual": BLUE, "cross_entropy": ORANGE, "majority": GREY, "true_labels": GREEN}
        for name, colour in colours.items():
            curve = methods[name]["curve"]
            reference = name in ("majority", "true_labels")
            curves.axes.plot(
                epochs,
                curve["mean"],
                color=colour,
                label=methods[name]["label"],
                linestyle=":" if reference else "-",
            )
            if not reference:
                curves.axes.fill_between(
                    epochs, curve["low"], curve["high"], color=colour, alpha=0.22, linewidth=0
                )
        curves.axes.set(xlabel="epoch", ylabel="test accuracy", ylim=(None, 1.0))
        curves.axes.legend(loc="lower left")

    figures = [
        (
            curves.svg,
            "Test accuracy after each epoch: mean over the seeds; the bands reach from the lowest "
            "to the highest seed. Dotted: for reference, with labels the other two do not get.",
        )
    ]
    labels = {
        "log_probability": ("log-probability of the given label", "Log-probability that Pi-DUAL's "
                            "classifier gives to the label it was trained on (cut at −15)."),
        "gate": ("gate γ", "Share γ of the label that the gate leaves to the noise network."),
    }  # fmt: skip
    for name, (label, caption) in labels.items():
        histogram = results["histograms"][name]
        with drawing(f"histogram-{name}", f"Histogram of the {label}") as scores:
            for kind, colour in (("right", GREEN), ("wrong", RED)):
                scores.axes.stairs(
                    histogram[kind],
                    histogram["edges"],
                    fill=True,
                    color=colour,
                    alpha=0.55,
                    label=f"{kind} labels",
                )
            scores.axes.set(xlabel=label, ylabel="labels, all seeds", yscale="log")
            scores.axes.set_ylim(bottom=0.8)
            scores.axes.legend(loc="upper center")
        figures.append((scores.svg, caption + " The vertical axis is logarithmic."))
    return figures


def task_vector_figures(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Accuracy per task and way of merging; by how many tasks each parameter is kept."""
    tasks = results["tasks"]
    kinds = {
        "single": ("separate models", GREEN),
        "task_arithmetic": ("task arithmetic", ORANGE),
        "masked": ("TALL-masks", BLUE),
    }
    with drawing("tasks", "Test accuracy on each task", size=(4.4, 3.7)) as bars:
        height = 0.26
        for index, (kind, (label, colour)) in enumerate(kinds.items()):
            bars.axes.barh(
                [row + (index - 1) * height for row in range(len(tasks))],
                [task["test_accuracy"][kind] for task in tasks],
                height=height,
                color=colour,
                label=label,
            )
        bars.axes.set_yticks(range(len(tasks)), [task["title"] for task in tasks])
        bars.axes.invert_yaxis()
        lowest = min(task["test_accuracy"][kind] for task in tasks for kind in kinds)
        bars.axes.set(xlabel="test accuracy", xlim=(max(0.0, lowest - 0.1), 1.0))
        bars.figure.legend(loc="outside upper center", ncols=3, handlelength=1, columnspacing=1)

    counts = results["kept_by_tasks"]
    with drawing("kept", "Number of tasks that keep each parameter", size=(4.4, 3.7)) as kept:
        share = [100.0 * count / results["parameters"] for count in counts]
        drawn = kept.axes.bar(range(len(counts)), share, color=BLUE)
        kept.axes.bar_label(drawn, fmt="%.0f", fontsize=8, padding=1)
        kept.axes.set_xticks(range(len(counts)))
        kept.axes.set(xlabel="tasks that keep the parameter", ylabel="% of parameters")
    return [
        (
            bars.svg,
            "Test accuracy on each task; the axis does not start at zero.",
        ),
        (
            kept.svg,
            "How many of the tasks keep each parameter of the merged vector, with the λ chosen for "
            "each task. 0: no task needs it; 1: it serves a single task.",
        ),
    ]


def sequence_model_figures(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Both loss curves on top of each other; the difference between them."""
    losses = results["losses"]
    steps = range(1, len(losses["loop"]) + 1)
    with drawing("losses", "Training loss of both runs") as curves:
        curves.axes.plot(
            steps, losses["loop"], color=ORANGE, linewidth=3.0, alpha=0.55, label="Python loop"
        )
        curves.axes.plot(
            steps, losses["operator"], color=BLUE, linewidth=0.8, label="linear_recurrence"
        )
        curves.axes.set(xlabel="optimiser step", ylabel="training loss", ylim=(0, None))
        curves.axes.legend()
    with drawing("difference", "Difference of the two training losses") as difference:
        # A logarithmic axis has no place for the steps at which both losses are the same.
        positive = [value or math.nan for value in results["loss_difference"]]
        difference.axes.plot(steps, positive, ".", markersize=2.2, color=GREY)
        difference.axes.set(xlabel="optimiser step", ylabel="difference of the losses")
        if results["largest_loss_difference"] > 0:
            difference.axes.set_yscale("log")
    return [
        (curves.svg, "Training loss of the two runs, drawn over each other."),
        (
            difference.svg,
            "Absolute difference of the two losses at each step. It stems from rounding, which "
            "training carries along; steps with no difference at all are not drawn.",
        ),
    ]
