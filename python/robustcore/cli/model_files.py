"""The models that commands read."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .output import CommandError, Problems

__all__ = ["check_new_file", "open_models", "same_files"]


def open_models(
    base: str, finetuned: Mapping[str, str], problems: Problems, stack: contextlib.ExitStack
) -> tuple[Any, dict[str, Any]]:
    """Opens all models that can be opened; what is wrong with the others goes to ``problems``.

    Returns:
        The base, or None, and the others by name. ``stack`` closes them.
    """
    from ..merging.checkpoints import open_checkpoint

    first = None
    with problems.collect():
        first = open_checkpoint(base, "base")
        stack.callback(first.close)
    models = {}
    for name, path in finetuned.items():
        with problems.collect():
            models[name] = open_checkpoint(path, name)
            stack.callback(models[name].close)
    opened = [("base", first)] if first is not None else []
    problems.found += same_files([*opened, *((repr(name), m) for name, m in models.items())])
    return first, models


def same_files(models: Iterable[tuple[str, Any]]) -> list[str]:
    """Models that are one and the same file, one line each."""
    found = []
    first_of: dict[frozenset[tuple[int, int]], str] = {}
    for name, model in models:
        places = frozenset((os.stat(file).st_dev, os.stat(file).st_ino) for file in model.files)
        other = first_of.setdefault(places, name)
        if other != name:
            found.append(f"{other} and {name} must be different models, got one: {model.name}")
    return found


def check_new_file(path: str, size: int, inputs: Sequence[str], overwrite: bool) -> None:
    """A file of ``size`` bytes can be written there, and it is none of the inputs.

    Raises:
        CommandError: It cannot; says why.
    """
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise CommandError(f"{folder}: the folder of the output must exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CommandError(f"{folder}: the folder of the output must be writable")
    if os.path.exists(target):
        if not os.path.isfile(target):
            raise CommandError(f"{path}: the output must be a file")
        if any(os.path.samefile(name, target) for name in inputs):
            raise CommandError(f"{path}: the output must not be a file that is read")
        if not overwrite:
            raise CommandError(f"{path}: the output exists; --overwrite replaces it")
    free = shutil.disk_usage(folder).free
    if size > free:
        raise CommandError(f"the output needs {size} bytes in {folder}, where {free} are free")
