"""What the commands share: where they print, and how they fail."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console

__all__ = [
    "CommandError",
    "Problems",
    "byte_progress",
    "check_device",
    "console",
    "error_console",
    "human_bytes",
    "print_json",
    "progress",
    "told_errors",
]

# Seconds between two lines of progress where stderr is no terminal.
_LINE_SECONDS = 10.0
_ERRORS = (ValueError, TypeError, OSError, IndexError, ModuleNotFoundError)


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


@contextlib.contextmanager
def byte_progress(width: float) -> Iterator[Callable[[str, int, int], None]]:
    """Like :func:`progress` for parameters of ``width`` bytes: with rate and time left.

    Where stderr is no terminal, there is a line now and then.
    """
    output = error_console()
    if not output.is_terminal:
        yield _Lines(width)
        return

    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=output,
        transient=True,
    ) as bar:
        task = bar.add_task("starting", total=None)
        before = ("", 0)

        def report(what: str, done: int, total: int) -> None:
            nonlocal before
            if what != before[0] or done < before[1]:  # another walk
                bar.reset(task, description=what, total=total * width)
            before = (what, done)
            bar.update(task, completed=done * width)

        yield report


class _Lines:
    """Progress as lines, not more often than a reader wants."""

    def __init__(self, width: float) -> None:
        self._width = width
        self._what, self._done, self._first = "", 0, 0
        self._start = self._last = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what or done < self._done:
            self._start, self._first = now, done
        self._what, self._done = what, done
        if now - self._last < _LINE_SECONDS or now == self._start:
            return
        self._last = now
        rate = (done - self._first) / (now - self._start)
        percent, speed = 100 * done / max(1, total), human_bytes(rate * self._width)
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 else ""
        print(f"{what}: {percent:.0f} %, {speed}/s{left}", file=sys.stderr, flush=True)


def human_bytes(count: float) -> str:
    """A number of bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


class Problems:
    """Everything that is wrong with a command line, told at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Keeps an error of the block for :meth:`check`."""
        try:
            yield
        except (CommandError, *_ERRORS) as error:
            self.found.append(error_text(error))

    def check(self) -> None:
        """Ends the command if there was anything."""
        if len(self.found) == 1:
            raise_text(self.found[0])
        if self.found:
            print("\n".join(self.found), file=sys.stderr, flush=True)
            raise CommandError(f"{len(self.found)} problems, listed above; nothing was written")


@contextlib.contextmanager
def told_errors() -> Iterator[None]:
    """Errors that a user can do something about end the command with what they say."""
    try:
        yield
    except BrokenPipeError:
        raise
    except _ERRORS as error:
        raise_text(error_text(error), error)


def error_text(error: Exception) -> str:
    """What an error says, without numbers of the system."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def raise_text(text: str, cause: Exception | None = None) -> None:
    """A CommandError: what has several lines goes to stderr first, as it is."""
    lines: Sequence[str] = text.splitlines()
    if len(lines) > 1:
        print(text, file=sys.stderr, flush=True)
        raise CommandError(f"{lines[0].rstrip(':')} (listed above)") from cause
    raise CommandError(text) from cause


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
