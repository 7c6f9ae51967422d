"""Checkpoints of several files with an index that says which tensor is where."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Any, NoReturn

from torch import Tensor

from ._json_file import read_json_object
from .checkpoint import Checkpoint, StoredTensor
from .pytorch_file import open_pytorch_file
from .safetensors_file import SafetensorsFile

__all__ = ["ShardedCheckpoint"]

_MAXIMUM_LISTED = 20


class ShardedCheckpoint(Checkpoint):
    """The files of a ``model.safetensors.index.json`` or ``pytorch_model.bin.index.json``.

    Raises:
        OSError: The index or one of its files cannot be read.
        ValueError: The index is damaged; it names files or tensors that are not there, or the files
            hold tensors that it does not name.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        index, text = read_json_object(self.name)
        weights = self._weight_map(index)
        folder = os.path.dirname(self.name)
        self._index_sha256 = hashlib.sha256(text).hexdigest()
        self._parts: dict[str, Checkpoint] = {}
        try:
            for file in sorted(set(weights.values())):
                part = os.path.join(folder, file)
                is_safetensors = file.endswith(".safetensors")
                opened = SafetensorsFile(part) if is_safetensors else open_pytorch_file(part)
                self._parts[file] = opened
            self._check_tensors(weights)
        except BaseException:
            self.close()
            raise
        self._part_of = {key: self._parts[file] for key, file in weights.items()}
        self.tensors: dict[str, StoredTensor] = {
            key: part.tensors[key] for key, part in self._part_of.items()
        }
        self.aliases = {
            key: to for part in self._parts.values() for key, to in part.aliases.items()
        }
        self.is_resident = all(part.is_resident for part in self._parts.values())
        self.files = (self.name, *(file for part in self._parts.values() for file in part.files))

    def _weight_map(self, index: dict[str, Any]) -> dict[str, str]:
        weights = index.get("weight_map")
        if not isinstance(weights, dict) or not weights:
            self._fail(["weight_map must name a file for each tensor"])
        bad, missing = [], set()
        folder = os.path.dirname(self.name)
        for key, file in weights.items():
            if not isinstance(file, str) or not file or os.path.basename(file) != file:
                bad.append(f"tensor {key!r} must be in a file of the same folder, got {file!r}")
            elif not os.path.isfile(os.path.join(folder, file)):
                missing.add(f"the file {file!r} is missing")
        if bad or missing:
            self._fail([*bad, *sorted(missing)])
        return weights

    def _check_tensors(self, weights: dict[str, str]) -> None:
        found = [
            f"tensor {key!r} is not in {file!r}"
            for key, file in weights.items()
            if key not in self._parts[file].tensors
        ]
        for file, part in self._parts.items():
            found += [
                f"tensor {key!r} of {file!r} is not in the index"
                for key in part.tensors
                if weights.get(key) != file
            ]
        if found:
            self._fail(found)

    def _fail(self, found: Iterable[str]) -> NoReturn:
        lines = list(found)
        listed = lines[:_MAXIMUM_LISTED]
        if len(lines) > _MAXIMUM_LISTED:
            listed.append(f"and {len(lines) - _MAXIMUM_LISTED} more")
        raise ValueError(
            "\n".join([f"{self.name}: the index must fit its files:", *(f"  {x}" for x in listed)])
        )

    def read(self, key: str, start: int, stop: int, into: Tensor) -> Tensor:
        return self._part_of[key].read(key, start, stop, into)

    def identity(self) -> dict[str, Any]:
        parts = {file: part.identity() for file, part in self._parts.items()}
        return {
            "path": os.path.realpath(self.name),
            "index_sha256": self._index_sha256,
            "files": parts,
        }

    def close(self) -> None:
        for part in self._parts.values():
            part.close()
