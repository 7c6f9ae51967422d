"""Seeds gathered into one result: numbers for JSON, a table, a plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifar10n_training.results import machine
from rich.table import Table

from robustcore.demo.training import summary

from .methods import METHODS

__all__ = ["gather", "machine", "markdown", "plot", "table"]

COLUMNS = ("method", "of single models, %", "accuracy, %", "gain on its baseline", "MB", "beyond")


def gather(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Per method, over seeds: accuracies, gain on the baseline, choices, bytes.

    Normalised accuracy is the mean over tasks of accuracy / accuracy of the task's single model.
    """
    normalised = {name: [_normalised(seed, name) for seed in seeds] for name in METHODS}
    methods: dict[str, Any] = {}
    for name, method in METHODS.items():
        runs = [seed["methods"][name] for seed in seeds]
        tasks = list(runs[0]["test_accuracy"])
        methods[name] = {
            "title": method.title,
            "normalised_accuracy": summary(normalised[name]),
            "test_accuracy": summary(
                [statistics.fmean(run["test_accuracy"].values()) for run in runs]
            ),
            "tasks": {
                task: summary([run["test_accuracy"][task] for run in runs]) for task in tasks
            },
            "bytes": round(statistics.fmean(run["bytes"] for run in runs)),
            "chosen": [run.get("chosen") for run in runs],
            "validation": [run.get("validation") for run in runs],
        }
        if method.baseline is not None:
            plain = normalised[method.baseline]
            gains = [own - other for own, other in zip(normalised[name], plain, strict=True)]
            methods[name] |= {
                "baseline": method.baseline,
                "gain": summary(gains),
                "beats_baseline_beyond_spread": _beyond_spread(normalised[name], plain),
            }
    return methods


def _normalised(seed: dict[str, Any], name: str) -> float:
    single = seed["methods"]["single"]["test_accuracy"]
    found = seed["methods"][name]["test_accuracy"]
    return statistics.fmean(found[task] / single[task] for task in single)


def _beyond_spread(values: list[float], plain: list[float]) -> bool | None:
    """Whether mean minus standard deviation is above the baseline's mean plus its own."""
    if len(values) < 2:
        return None
    low = statistics.fmean(values) - statistics.stdev(values)
    return low > statistics.fmean(plain) + statistics.stdev(plain)


def _text(value: dict[str, Any], sign: str = "") -> str:
    text = f"{100 * value['mean']:{sign}.1f}"
    return text if value["std"] is None else f"{text} ± {100 * value['std']:.1f}"


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The cells of the table, by column of COLUMNS."""
    cells = []
    for method in result["methods"].values():
        beats = method.get("beats_baseline_beyond_spread")
        cells.append(
            (
                method["title"],
                _text(method["normalised_accuracy"]),
                _text(method["test_accuracy"]),
                _text(method["gain"], "+") if "gain" in method else "",
                f"{method['bytes'] / 1e6:.2f}",
                "" if beats is None else "yes" if beats else "no",
            )
        )
    return cells


def table(result: dict[str, Any]) -> Table:
    title = f"{result['tasks']} tasks on digits, test images, seeds: {result['seeds']}"
    printed = Table(title=title, title_justify="left")
    for number, column in enumerate(COLUMNS):
        printed.add_column(column, justify="left" if number == 0 else "right")
    for cells in rows(result):
        printed.add_row(*cells)
    return printed


def markdown(result: dict[str, Any]) -> str:
    lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *rows(result)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Normalised accuracy of each method, and against what has to be stored."""
    from matplotlib.figure import Figure

    methods = list(result["methods"].values())
    figure = Figure(figsize=(11, 0.9 + 0.32 * len(methods)), layout="constrained")
    bars, against = figure.subplots(1, 2, width_ratios=(3, 2))
    for row, method in enumerate(methods):
        value = method["normalised_accuracy"]
        by_task = METHODS[list(result["methods"])[row]].by_task
        colour = "tab:green" if by_task else "tab:blue" if "gain" in method else "tab:orange"
        style = {"fmt": "o", "capsize": 3, "color": colour}
        mean, spread = 100 * value["mean"], 100 * (value["std"] or 0)
        bars.errorbar(mean, row, xerr=spread, **style)
        against.errorbar(method["bytes"] / 1e6, mean, yerr=spread, **style)
    bars.set_yticks(range(len(methods)), [method["title"] for method in methods])
    bars.invert_yaxis()
    bars.set(xlabel="accuracy, % of the single models'")
    against.set(xlabel="stored, MB", ylabel="accuracy, % of the single models'")
    for axes in (bars, against):
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"{result['tasks']} tasks, mean and standard deviation over {result['seeds']} seeds; "
        "blue: improves on another method, green: a network per task",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
