"""What users type: sizes, dtypes, models with names, YAML values."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .output import CommandError

__all__ = ["assignments", "dtype_of", "named_models", "read_yaml", "size_of", "yaml_value"]

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "k": 1 << 10,
    "m": 1 << 20,
    "g": 1 << 30,
    "t": 1 << 40,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_DTYPES = ("float32", "float64", "bfloat16", "float16")
# Folders that many files have the same name in.
_USUAL = re.compile(
    r"(model|pytorch_model|adapter_model)(\.safetensors|\.bin|\.pt)?(\.index)?(\.json)?"
)


def size_of(option: str, value: Any) -> int:
    """A number of bytes: ``512MiB``, ``1.5 GB``, ``1073741824``."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(value).lower())
    if isinstance(value, bool) or match is None or match[2] not in _UNITS:
        raise CommandError(f"{option} must be a size like 512MiB or 2GB, got {value!r}")
    size = int(float(match[1]) * _UNITS[match[2]])
    if size < 1:
        raise CommandError(f"{option} must be above 0, got {value!r}")
    return size


def dtype_of(option: str, value: Any) -> Any:
    """A floating-point dtype of torch by name."""
    import torch

    if value not in _DTYPES:
        raise CommandError(f"{option} must be one of {', '.join(_DTYPES)}, got {value!r}")
    return getattr(torch, value)


def named_models(models: Sequence[str]) -> dict[str, str]:
    """Paths by task name, from ``name=path`` or paths that give the names.

    A file that is there is a path, even if its name has a ``=``.
    """
    named: dict[str, str] = {}
    unnamed: list[str] = []
    for model in models:
        name, equals, path = model.partition("=")
        if equals and not os.path.exists(model):
            if not name or not path:
                raise CommandError(f"a model must be PATH or NAME=PATH, got {model!r}")
            if name in named:
                raise CommandError(f"the task name {name!r} is given twice")
            named[name] = path
        else:
            unnamed.append(model)
            named[f"\0{len(unnamed)}"] = model
    taken = set(named)
    result = {}
    for name, path in named.items():
        if name.startswith("\0"):
            name = _free_name(_name_of(path), taken)
            taken.add(name)
        result[name] = path
    return result


def _name_of(path: str) -> str:
    """The file's name without its ending; where all files are called alike, the folder's."""
    path = os.path.normpath(path)
    base = os.path.basename(path)
    if _USUAL.fullmatch(base):
        base = os.path.basename(os.path.dirname(os.path.abspath(path))) or base
    elif not os.path.isdir(path):
        base = re.sub(r"(\.index\.json|\.safetensors|\.bin|\.pth|\.pt|\.ckpt)$", "", base)
    return base


def _free_name(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    return next(f"{name}-{n}" for n in range(2, len(taken) + 3) if f"{name}-{n}" not in taken)


def assignments(option: str, values: Sequence[str]) -> dict[str, Any]:
    """From ``key=value`` with YAML values, each key once."""
    found: dict[str, Any] = {}
    for text in values:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise CommandError(f"{option} must be key=value, got {text!r}")
        if key in found:
            raise CommandError(f"{option} {key} is given twice")
        found[key] = yaml_value(f"{option} {key}", value)
    return found


def yaml_value(option: str, text: str) -> Any:
    """A number, true or false, null, a list, a mapping, or else the text."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        fault = _fault(error)
        raise CommandError(f"{option} must be a YAML value, got {text!r}: {fault}") from None


def read_yaml(path: Path) -> Mapping[str, Any]:
    """A mapping with string keys, from a file."""
    import yaml

    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_loader())
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise CommandError(f"{path} must be UTF-8 text") from None
    except yaml.YAMLError as error:
        raise CommandError(f"{path} must be YAML: {_fault(error)}") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise CommandError(f"{path} must hold a mapping of options, got {type(value).__name__}")
    return value


def _fault(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f" in line {mark.line + 1}" if mark is not None else ""
    return f"{getattr(error, 'problem', None) or error}{place}"


def _loader() -> Any:
    """YAML 1.2's numbers and truth values (``1e-3`` is a number, ``no`` a word); keys once."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for index, key in enumerate(keys):
                if key in keys[:index]:
                    problem = f"the key {key!r} is there twice"
                    raise yaml.constructor.ConstructorError(
                        None, None, problem, node.value[index][0].start_mark
                    )
            return super().construct_mapping(node, deep)

    for tag, pattern, starts in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
        ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ):
        expression = re.compile(f"^(?:{pattern})$")
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", expression, starts)
    return Loader
