"""A safetensors file, read in parts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ._file import InputFile, check_range, writable_bytes
from .checkpoint import Checkpoint, StoredTensor
from .safetensors_header import header_length, parse_header

__all__ = ["SafetensorsFile"]


class SafetensorsFile(Checkpoint):
    """A safetensors file.

    Everything the header says is checked before anything is read: its length, keys that come twice,
    dtypes, shapes, and that the tensors fill the file without holes or overlaps.

    Attributes:
        metadata: Strings by name, as the file has them.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged; the message names the file, the tensor, what was expected
            and what came.

    Example:
        >>> import os, tempfile, torch
        >>> from safetensors.torch import save_file
        >>> from robustcore.merging.checkpoints import SafetensorsFile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "model.safetensors")
        ...     save_file({"weight": torch.arange(6.0).view(2, 3)}, path)
        ...     file = SafetensorsFile(path)
        ...     part = file.read("weight", 2, 5, torch.empty(3))
        ...     file.close()
        >>> part.tolist()
        [2.0, 3.0, 4.0]
    """

    metadata: Mapping[str, str]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = InputFile(path)
        self.name = self._file.path
        self.files = (self.name,)
        try:
            length = header_length(self.name, self._file.read_bytes(0, 8), self._file.size)
            text = self._file.read_bytes(8, length)
            header = parse_header(self.name, text, self._file.size - 8 - length)
        except BaseException:
            self._file.close()
            raise
        self.metadata = header.metadata
        self.aliases = {}
        self.tensors: dict[str, StoredTensor] = {}
        self._begin: dict[str, int] = {}
        for entry in header.entries:
            self.tensors[entry.tensor.key] = entry.tensor
            self._begin[entry.tensor.key] = 8 + length + entry.begin
        self._identity = self._file.identity(text)

    def read(self, key: str, start: int, stop: int, into: Tensor) -> Tensor:
        tensor = self.tensors[key]
        check_range(self.name, tensor, start, stop, into)
        offset = self._begin[key] + start * tensor.dtype.itemsize
        self._file.read_into(offset, writable_bytes(into))
        return into

    def identity(self) -> dict[str, Any]:
        return dict(self._identity)

    def close(self) -> None:
        self._file.close()
