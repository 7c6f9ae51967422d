"""What the commands share: where they print, and how they fail."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

__all__ = [
    "CommandError",
    "check_device",
    "console",
    "error_console",
    "print_json",
    "progress",
]


class CommandError(Exception):
    """Ends the command: its message is the one line on stderr, the exit code 2."""


class _Console(Console):
    """Lets a closed pipe reach :func:`robustcore.cli.main.run`; rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console() -> Console:
    """For results, on stdout; made anew at each use because tests replace ``sys.stdout``."""
    return _Console(file=sys.stdout, highlight=False)


def error_console() -> Console:
    """For progress and everything that a script must not find among the results."""
    return _Console(file=sys.stderr, highlight=False)


@contextlib.contextmanager
def progress(*, lines: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Gives ``report(what, done, total)``, which draws a progress bar on stderr.

    Args:
        lines: Where stderr is no terminal, print a line for each step; otherwise nothing.
    """
    output = error_console()
    if not output.is_terminal:

        def print_line(what: str, done: int, total: int) -> None:
            if lines:
                print(f"[{done}/{total}] {what}", file=sys.stderr, flush=True)

        yield print_line
        return

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=output, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total
        )


def print_json(value: Any) -> None:
    """Prints JSON on stdout, unwrapped and without colours."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def check_device(device: str) -> None:
    """Raises CommandError unless ``device`` can be used here."""
    if device not in ("cpu", "cuda"):
        raise CommandError(f"--device must be cpu or cuda, got {device!r}")
    if device == "cpu":
        return
    import torch

    from .._library import core

    if not torch.cuda.is_available():
        raise CommandError("--device cuda: torch finds no CUDA device")
    if not core.build_information()["cuda"]:
        raise CommandError("--device cuda: this robustcore was built without CUDA kernels")
