"""Run the experiments with progress bars, print the summary, write the report."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from .. import __version__
from . import noisy_labels, report, sequence_model, task_vectors
from .data import load_digits
from .training import Advance, reproducible

Experiment = tuple[str, str, int, Callable[[Advance], dict[str, Any]]]


def run(
    output_dir: str | os.PathLike[str],
    *,
    seeds: int,
    quick: bool,
    json_path: str | os.PathLike[str] | None,
    console: Console | None,
) -> dict[str, Any]:
    """See :func:`robustcore.demo.run_demo`."""
    console = console or Console()
    folder = Path(output_dir).absolute()
    json_file = None if json_path is None else Path(json_path).absolute()
    _check_writable(folder, json_file)

    start = time.perf_counter()
    results: dict[str, Any] = {"quick": quick}
    with reproducible():
        experiments = _experiments(seeds, quick)
        with _progress(console) as progress:
            bars = [
                progress.add_task(title, total=steps, start=False)
                for _, title, steps, _ in experiments
            ]
            for bar, (name, _, _, experiment) in zip(bars, experiments, strict=True):
                progress.start_task(bar)
                results[name] = experiment(functools.partial(progress.advance, bar))
                progress.stop_task(bar)
        results["machine"] = _machine()
    results["seconds"] = time.perf_counter() - start
    results["report"] = str(folder / "index.html")

    page = report.render(results)
    # The file may travel: it names the page relative to itself.
    portable = {**results, "report": "index.html"}
    numbers = json.dumps(portable, indent=1, allow_nan=False) + "\n"
    _write_folder(folder, {"index.html": page, "results.json": numbers})
    if json_file is not None:
        _write_file(json_file, numbers)
    _print_summary(console, results, folder / "index.html")
    return results


def _experiments(seeds: int, quick: bool) -> list[Experiment]:
    if quick:
        noisy = noisy_labels.Settings(seeds=seeds, epochs=4, width=128)
        merging = task_vectors.Settings(
            base_epochs=4, head_epochs=2, fine_tuning_epochs=3, width=128
        )
        sequence = sequence_model.Settings(epochs=2, repetitions=5)
    else:
        noisy = noisy_labels.Settings(seeds=seeds)
        merging = task_vectors.Settings()
        sequence = sequence_model.Settings()
    digits = load_digits()
    return [
        (
            "noisy_labels",
            "losses   noisy labels",
            noisy.steps,
            lambda advance: noisy_labels.run(digits, noisy, advance),
        ),
        (
            "task_vectors",
            "merging  task vectors",
            merging.steps,
            lambda advance: task_vectors.run(digits, merging, advance),
        ),
        (
            "sequence_model",
            "pcr      sequence model",
            sequence.steps,
            lambda advance: sequence_model.run(digits, sequence, advance),
        ),
    ]


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def _machine() -> dict[str, str]:
    versions = {
        name: metadata.version(package)
        for name, package in (
            ("PyTorch", "torch"),
            ("scikit-learn", "scikit-learn"),
            ("matplotlib", "matplotlib"),
        )
    }
    return {
        "robustcore": __version__,
        "Python": platform.python_version(),
        **versions,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": f"{os.cpu_count()} ({torch.get_num_threads()} used)",
        "finished": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _check_writable(folder: Path, json_file: Path | None) -> None:
    """Find out before the training, not after it, that the results cannot be written."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"run_demo: output_dir must be a folder, {folder} is a file")
    if json_file is not None and json_file.is_dir():
        raise IsADirectoryError(f"run_demo: json_path must be a file, {json_file} is a folder")
    for path in (folder, json_file):
        if path is None:
            continue
        existing = path
        while not existing.exists():
            existing = existing.parent
        if existing.is_file() and existing != path:
            raise NotADirectoryError(f"run_demo: {existing}, on the way to {path}, is a file")
        if not os.access(existing, os.W_OK):
            raise PermissionError(f"run_demo: {existing} is not writable")


@contextlib.contextmanager
def _created(folder: Path) -> Iterator[None]:
    """Make ``folder`` and its parents; on an error remove those that did not exist before."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _write_folder(folder: Path, files: dict[str, str]) -> None:
    """Write all files into a temporary folder beside ``folder``, then rename.

    A new folder appears at once with all of its files. In an existing one each file is replaced
    in one step and other files stay.
    """
    with _created(folder.parent):
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name, text in files.items():
                (staging / name).write_text(text, encoding="utf-8")
            if folder.exists():
                for name in files:
                    os.replace(staging / name, folder / name)
            else:
                # mkdtemp makes folders that only their owner can read.
                staging.chmod(0o777 & ~_umask())
                staging.rename(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _write_file(path: Path, text: str) -> None:
    with _created(path.parent):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with open(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _print_summary(console: Console, results: dict[str, Any], page: Path) -> None:
    noisy, merging = results["noisy_labels"], results["task_vectors"]
    sequence = results["sequence_model"]
    methods, detection = noisy["methods"], noisy["detection"]
    mean, stored = merging["mean_test_accuracy"], merging["bytes"]
    training, alone = sequence["training_seconds"], sequence["recurrence_seconds"]

    table = Table(title="robustcore demo", title_justify="left")
    table.add_column("experiment")
    table.add_column("method")
    table.add_column("result", justify="right")
    spread = report.with_spread
    wrong = report.percent(noisy["wrong_labels"]["mean"])
    table.add_row(
        f"losses: digits, {wrong} wrong labels\n(simulated annotators), test accuracy",
        "cross-entropy\nPi-DUAL",
        f"{spread(methods['cross_entropy']['test_accuracy'])} %\n"
        f"{spread(methods['pi_dual']['test_accuracy'])} %",
    )
    table.add_row(
        "finding the wrong labels, AUC",
        "cross-entropy\nPi-DUAL, log-probability\nPi-DUAL, gate",
        "\n".join(
            spread(detection[name], scale=1.0, digits=3)
            for name in (
                "cross_entropy_log_probability",
                "pi_dual_log_probability",
                "pi_dual_gate",
            )
        ),
        end_section=True,
    )
    table.add_row(
        f"merging: {len(merging['tasks'])} tasks,\nmean test accuracy and bytes stored",
        "separate models\ntask arithmetic\nTALL-masks",
        "\n".join(
            f"{report.percent(mean[kind])}   {report.size(stored[amount])}"
            for kind, amount in (
                ("single", "separate_models"),
                ("task_arithmetic", "task_arithmetic"),
                ("masked", "masked"),
            )
        ),
        end_section=True,
    )
    table.add_row(
        "pcr: pixel sequences,\nwhole training (recurrence alone)",
        "Python loop\nlinear_recurrence\nloop / operator",
        "\n".join(
            f"{report.seconds(training[name])} ({report.seconds(alone[name])})"
            for name in ("loop", "operator")
        )
        + f"\n{sequence['training_speedup']:.2f}× ({sequence['recurrence_speedup']:.1f}×)",
    )
    table.add_row(
        "largest difference of the losses", "", f"{sequence['largest_loss_difference']:.1e}"
    )
    console.print(table)
    # Unwrapped, so that the path can be copied.
    console.print(f"Finished in {results['seconds']:.0f} s. Report:", end=" ")
    console.print(str(page), soft_wrap=True, highlight=False)
