"""What the commands share: where they print, and how they fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

__all__ = ["CommandError", "check_device", "console", "error_console", "print_json", "write_json"]


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


def print_json(value: Any) -> None:
    """Prints JSON on stdout, unwrapped and without colours."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_json(value: Any, path: Path) -> None:
    """Writes JSON into a file.

    Raises:
        CommandError: If the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from error


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
