"""Runs gathered into one result: numbers for JSON, a table, a plot."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import robustcore

from .methods import METHODS

MEASURES = ("test_accuracy", "memorised_wrong_labels", "detection_auc")


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None for a single value) and the values themselves."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "per_seed": list(values),
    }


def gather(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Per method, from the numbers of its seeds (in the same order for every method)."""
    methods: dict[str, Any] = {}
    for name, seeds in runs.items():
        spec = METHODS[name]
        method: dict[str, Any] = {
            "title": spec.title,
            "privileged_information": spec.privileged or None,
            "values": seeds[0]["values"],
        }
        for measure in (*MEASURES, "milliseconds_per_step"):
            values = [run[measure] for run in seeds]
            method[measure] = None if None in values else summary(values)
        if "ce" in runs:
            # Seed by seed: those runs were neighbours in time.
            method["step_time_vs_ce"] = statistics.median(
                run["milliseconds_per_step"] / plain["milliseconds_per_step"]
                for run, plain in zip(seeds, runs["ce"], strict=True)
            )
            method["beats_ce_beyond_spread"] = _beyond_spread(
                [run["test_accuracy"] for run in seeds],
                [run["test_accuracy"] for run in runs["ce"]],
            )
        methods[name] = method
    return methods


def _beyond_spread(values: list[float], plain: list[float]) -> bool | None:
    """Whether mean minus standard deviation is above cross-entropy's mean plus its own."""
    if len(values) < 2:
        return None
    low = statistics.fmean(values) - statistics.stdev(values)
    return low > statistics.fmean(plain) + statistics.stdev(plain)


def machine() -> dict[str, str]:
    processor = platform.processor() or platform.machine()
    cpu_facts = Path("/proc/cpuinfo")
    if cpu_facts.is_file():
        for line in cpu_facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    facts = {
        "processor": processor,
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "robustcore": robustcore.__version__,
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _text(value: dict[str, Any] | None, scale: float, digits: int) -> str:
    if value is None:
        return "–"
    text = f"{scale * value['mean']:.{digits}f}"
    return text if value["std"] is None else f"{text} ± {scale * value['std']:.{digits}f}"


COLUMNS = ("method", "knows", "test accuracy, %", "memorised, %", "AUC", "step time", "beats ce")


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The cells of the table, by column of COLUMNS."""
    cells = []
    for name, method in result["methods"].items():
        ratio, beats = method.get("step_time_vs_ce"), method.get("beats_ce_beyond_spread")
        cells.append(
            (
                name,
                method["privileged_information"] or "",
                _text(method["test_accuracy"], 100, 1),
                _text(method["memorised_wrong_labels"], 100, 1),
                _text(method["detection_auc"], 1, 3),
                "–" if ratio is None else f"{ratio:.2f}×",
                "" if name == "ce" or beats is None else "yes" if beats else "no",
            )
        )
    return cells


def table(result: dict[str, Any]) -> Table:
    share = 100 * result["wrong_labels"]
    title = f"CIFAR-10N, {result['labels']} labels ({share:.1f} % wrong), seeds: {result['seeds']}"
    printed = Table(title=title, title_justify="left")
    for number, column in enumerate(COLUMNS):
        printed.add_column(column, justify="left" if number < 2 else "right")
    for cells in rows(result):
        printed.add_row(*cells)
    return printed


def markdown(result: dict[str, Any]) -> str:
    lines = [COLUMNS, ("---", "---", *["---:"] * (len(COLUMNS) - 2)), *rows(result)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def plot(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    methods = result["methods"]
    names = list(methods)
    figure = Figure(figsize=(11, 0.7 + 0.34 * len(names) + 0.8), layout="constrained")
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    titles = ("test accuracy, %", "wrong labels memorised, %", "detection AUC")
    for axes, measure, title in zip(panels, MEASURES, titles):
        scale = 1 if measure == "detection_auc" else 100
        for row, name in enumerate(names):
            value = methods[name][measure]
            if value is None:
                continue
            colour = "tab:blue" if methods[name]["privileged_information"] else "tab:green"
            axes.errorbar(
                scale * value["mean"],
                row,
                xerr=scale * (value["std"] or 0),
                fmt="o",
                capsize=3,
                color="tab:orange" if name == "ce" else colour,
            )
        plain = methods.get("ce", {}).get(measure)
        if plain is not None:
            axes.axvline(scale * plain["mean"], color="tab:orange", linestyle=":")
        axes.set(xlabel=title)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    share = 100 * result["wrong_labels"]
    figure.suptitle(
        f"CIFAR-10N, {result['labels']} labels ({share:.0f} % wrong): mean and standard deviation "
        f"over {result['seeds']} seeds; blue: with privileged information",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
