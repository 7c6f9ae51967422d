"""Entry point: arguments, errors, exit codes.

Exit codes: 0 done; 1 a check failed (``selftest``); 2 an error, told in one line on stderr;
130 interrupted; 141 the reader of the output went away. ``--debug`` anywhere, or
``ROBUSTCORE_DEBUG=1``, shows the traceback of an error.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer

from .bench import bench
from .demo import demo
from .diff import diff
from .info import info
from .masks import masks
from .merge import merge
from .output import CommandError
from .selftest import selftest

__all__ = ["app", "main", "run"]

app = typer.Typer(
    name="robustcore",
    help="Fused CPU and CUDA operators for PyTorch: losses, model merging, parallel recurrences.",
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Examples:  robustcore selftest  |  robustcore bench losses --quick  |  robustcore demo",
)


def _version(value: bool) -> None:
    if value:
        print(f"robustcore {version()}")
        raise typer.Exit


def version() -> str:
    """The installed version; where robustcore runs from a checkout, that of the compiled core."""
    try:
        return metadata.version("robustcore")
    except metadata.PackageNotFoundError:
        from .._library import core

        return core.build_information()["version"]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


app.command()(info)
app.command()(selftest)
app.command()(bench)
app.command()(demo)
app.command()(merge)
app.add_typer(masks)
app.command()(diff)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; returns its exit code and never raises."""
    debug = "--debug" in arguments or os.environ.get("ROBUSTCORE_DEBUG", "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = typer.main.get_command(app).main(
            args=list(arguments), prog_name="robustcore", standalone_mode=False
        )
        sys.stdout.flush()
        # Some versions of typer turn an interrupt into this exit code themselves.
        return _fail("interrupted", 130) if code == 130 else int(code or 0)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        return _reader_went_away()
    except SystemExit as leave:
        # Likewise typer and rich, for a closed pipe.
        if isinstance(leave.__context__, BrokenPipeError):
            return _reader_went_away()
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except typer.Exit as leave:
        return leave.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _fail(_message(error), 2)


def _reader_went_away() -> int:
    # Whatever is still buffered has no reader either; the interpreter must not flush it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 141


def _message(error: Exception) -> str:
    if hasattr(error, "format_message"):  # a usage error, of click or of typer's copy of it
        return str(error.format_message())
    if isinstance(error, CommandError):
        return str(error)
    return (
        f"unexpected {type(error).__name__}: {error} (--debug shows the traceback)"
        if str(error)
        else f"unexpected {type(error).__name__} (--debug shows the traceback)"
    )


def _fail(message: str, code: int) -> int:
    # Joined: an error is one line, whatever the exception's own layout.
    line = " ".join(message.split())
    with contextlib.suppress(OSError):  # stderr is closed: the exit code has to say it
        print(f"robustcore: {line}", file=sys.stderr, flush=True)
    return code


def main() -> None:
    """The ``robustcore`` command."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
