"""Errors in one form: ``operator: argument must be <expected>, got <what came>``."""

from __future__ import annotations

import builtins
import re
from types import TracebackType

import torch

__all__ = ["translated"]

_MARKER = re.compile(r"\[robustcore:(\w+)\] ([^\n]*)")


class _Translated:
    """Context manager: raises what csrc/common/errors.h marked as the exception it names.

    The stable ABI of torch turns every C++ exception into a RuntimeError with a source path.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is RuntimeError and (match := _MARKER.search(str(error))):
            name, message = match.groups()
            raise (getattr(builtins, name, None) or getattr(torch, name))(message) from None


translated = _Translated()
