"""``robustcore bench``: the benchmarks with progress, tables, JSON and a plot."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from .output import CommandError, check_device, console, error_console, print_json, progress

__all__ = ["bench", "load_benchmarks"]


def bench(
    family: Annotated[
        str | None, typer.Argument(help="losses, merging or pcr; all when left out.")
    ] = None,
    operator: Annotated[str | None, typer.Argument(help="One operator of it.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes only; shows that it runs.")
    ] = False,
    json_path: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Write the report: a file.json, a folder for <machine>.json, - for stdout.",
        ),
    ] = None,
    plot_path: Annotated[
        Path | None, typer.Option("--plot", help="Draw the speedups (.svg, .png or .pdf).")
    ] = None,
) -> None:
    """Time the operators against eager PyTorch, torch.compile and public peers.

    In a checkout, a complete run without --json writes benchmarks/results/<machine>.json.
    """
    check_device(device)
    benchmarks = load_benchmarks()
    try:
        selected = benchmarks.select_benchmarks(family, operator)
    except ValueError as error:
        raise CommandError(str(error)) from error
    from robustcore.benchmarks.machine import result_file_name
    from robustcore.benchmarks.plots import MissingMatplotlib, check_matplotlib, plot_report
    from robustcore.benchmarks.report import finite, write_report
    from robustcore.benchmarks.tables import print_report

    # All of this is checked now, not after minutes of measuring.
    if plot_path is not None:
        try:
            check_matplotlib(plot_path)
        except (MissingMatplotlib, ValueError) as error:
            raise CommandError(f"--plot: {error}") from error
        _check_writable(plot_path)
    if json_path is None and not (family or quick):
        json_path = _results_folder(benchmarks)
    to_stdout = json_path is not None and str(json_path) == "-"
    if json_path is not None and not to_stdout:
        _check_writable(json_path)
    with progress(lines=True) as step:
        report = benchmarks.run_benchmarks(selected, benchmarks.Settings(device, quick, step))
    print_report(report, error_console() if to_stdout else console())
    if to_stdout:
        print_json(finite(report))
    elif json_path is not None:
        if _is_folder(json_path):
            json_path = json_path / result_file_name(report)
        write_report(report, json_path)
        error_console().print(f"wrote {json_path}", markup=False)
    if plot_path is not None:
        plot_report(report, plot_path)
        error_console().print(f"wrote {plot_path}", markup=False)


def load_benchmarks() -> ModuleType:
    """``robustcore.benchmarks``: as installed, or the folder ``benchmarks`` of the checkout.

    Raises:
        CommandError: If there is neither.
    """
    name = "robustcore.benchmarks"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return importlib.import_module(name)
    folder = Path(__file__).resolve().parents[3] / "benchmarks"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None or not (folder / "__init__.py").is_file():
        raise CommandError("this installation of robustcore has no benchmarks")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    # As an import would have done.
    sys.modules["robustcore"].benchmarks = module  # type: ignore[attr-defined]
    return module


def _results_folder(benchmarks: ModuleType) -> Path | None:
    """Where a checkout keeps its results; None for an installed copy."""
    folder = Path(str(benchmarks.__file__)).resolve().parent
    return folder / "results" if (folder.parent / "pyproject.toml").is_file() else None


def _is_folder(path: Path) -> bool:
    return path.is_dir() or not path.suffix


def _check_writable(path: Path) -> None:
    try:
        if _is_folder(path):
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
        if path.stat().st_size == 0:
            path.unlink()
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from error
