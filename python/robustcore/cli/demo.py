"""``robustcore demo``: the main job on real data, with an HTML report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .output import CommandError

__all__ = ["demo"]


def demo(
    output: Annotated[Path, typer.Option("--output", help="Folder for the report.")] = Path(
        "demo-report"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps of each part; shows that it runs.")
    ] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write the numbers as JSON.")
    ] = None,
) -> None:
    """Train on handwritten digits with all three families and write a report."""
    try:
        from ..demo import run_demo

        run_demo(output_dir=output, quick=quick, json_path=json_path)
    except ModuleNotFoundError as error:
        if error.name == "robustcore.demo":
            raise CommandError("this installation of robustcore has no demo") from error
        if error.name is None:  # the demo's own sentence about what is missing
            raise CommandError(str(error)) from error
        if error.name.startswith("robustcore"):
            raise
        raise CommandError(
            f"the demo needs {error.name}: pip install 'robustcore[demo]'"
        ) from error
    except OSError as error:
        raise CommandError(f"cannot write {error.filename or output}: {error.strerror}") from error
