"""JSON files beside weights, checked."""

from __future__ import annotations

import json
import os
from typing import Any

__all__ = ["read_json_object"]


def read_json_object(path: str | os.PathLike[str]) -> tuple[dict[str, Any], bytes]:
    """The object in a file, and its bytes.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a JSON object, or has a key twice.
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        text = file.read()

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {twice!r} twice")
        return found

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: must be a JSON object, got {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name}: must be a JSON object, got {type(value).__name__}")
    return value, text
