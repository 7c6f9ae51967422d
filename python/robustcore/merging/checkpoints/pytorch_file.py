"""A file of ``torch.save``, read in parts without loading it."""

from __future__ import annotations

import json
import mmap
import os
import re
import struct
import sys
import warnings
import zipfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._file import InputFile, check_range, writable_bytes
from ._tensors import copy_part, state_dict_in
from .checkpoint import Checkpoint, StateDictCheckpoint, StoredTensor

__all__ = ["PyTorchFile", "PyTorchFileInMemory", "open_pytorch_file"]

_ZIP = b"PK\x03\x04"
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


@dataclass(frozen=True)
class _Place:
    """Where a tensor is: ``begin`` in bytes, strides in elements."""

    begin: int
    strides: tuple[int, ...]
    is_contiguous: bool


class PyTorchFile(Checkpoint):
    """A state dict that ``torch.save`` wrote, or an object that holds one as ``"state_dict"``.

    Only names, shapes and places are loaded (``weights_only=True``: no code of the file is run).
    Weights are read from their place in the file. A tensor that is another name of the same weights
    (tied weights) is one of ``aliases``.

    Raises:
        OSError: The file cannot be read.
        TypeError: It holds something other than dense tensors by name.
        ValueError: It is damaged, holds code, or was not written by ``torch.save``; the message
            holds PyTorch's reason.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = InputFile(path)
        self.name = self._file.path
        self.files = (self.name,)
        try:
            tensors = state_dict_in(self.name, _load(self.name, "meta"))
            records = _records(self.name, self._file)
            self.tensors: dict[str, StoredTensor] = {}
            self.aliases: dict[str, str] = {}
            self._places: dict[str, _Place] = {}
            for key, tensor in tensors.items():
                self.tensors[key] = StoredTensor(key, tuple(tensor.shape), tensor.dtype)
                self._places[key] = self._place(key, tensor, records)
        except BaseException:
            self._file.close()
            raise
        first_at: dict[tuple[Any, ...], str] = {}
        for key in sorted(self.tensors):
            stored, place = self.tensors[key], self._places[key]
            if stored.numel:
                first = first_at.setdefault((place, stored.dtype, stored.shape), key)
                if first != key:
                    self.aliases[key] = first
        described = [
            (key, list(tensor.shape), str(tensor.dtype), self._places[key].begin)
            for key, tensor in self.tensors.items()
        ]
        self._identity = self._file.identity(json.dumps(described).encode())

    def _place(self, key: str, tensor: Tensor, records: dict[int, int]) -> _Place:
        if tensor.numel() == 0:
            return _Place(0, tensor.stride(), True)
        storage = tensor.untyped_storage()
        offset = getattr(storage, "_checkpoint_offset", None)
        if offset is None:
            raise ValueError(f"{self.name}: tensor {key!r}: must have data, got none in the file")
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in steps)
        end = (last + 1) * tensor.element_size()
        if records.get(offset, -1) < max(end, storage.nbytes()):
            raise ValueError(
                f"{self.name}: tensor {key!r}: must have {end} bytes at {offset}, got "
                f"{records.get(offset, 'no record there')}: the file is damaged"
            )
        begin = offset + tensor.storage_offset() * tensor.element_size()
        return _Place(begin, tensor.stride(), tensor.is_contiguous())

    def read(self, key: str, start: int, stop: int, into: Tensor) -> Tensor:
        tensor, place = self.tensors[key], self._places[key]
        check_range(self.name, tensor, start, stop, into)
        if start == stop:
            return into
        if place.is_contiguous:
            offset = place.begin + start * tensor.dtype.itemsize
            self._file.read_into(offset, writable_bytes(into))
        else:
            self._read_strided(tensor, place, start, into)
        return into

    def _read_strided(self, tensor: StoredTensor, place: _Place, start: int, into: Tensor) -> None:
        """Through a map of the file; what was copied leaves memory at once."""
        steps = zip(tensor.shape, place.strides, strict=True)
        count = 1 + sum((size - 1) * stride for size, stride in steps)
        nbytes = count * tensor.dtype.itemsize
        below = place.begin % mmap.ALLOCATIONGRANULARITY
        # A private map, so that it counts as writable memory, as tensors want it.
        pages = self._file.map(place.begin - below, below + nbytes)
        bits = _BITS[tensor.dtype.itemsize]  # not every dtype can be copied
        flat = torch.frombuffer(pages, dtype=bits, count=count, offset=below)
        whole = flat.as_strided(tensor.shape, place.strides)
        for _ in copy_part(whole, start, into.view(bits)):
            if hasattr(pages, "madvise"):
                pages.madvise(mmap.MADV_DONTNEED)
        del whole, flat  # the last that holds the pages takes the map with it

    def identity(self) -> dict[str, Any]:
        return dict(self._identity)

    def close(self) -> None:
        self._file.close()


class PyTorchFileInMemory(StateDictCheckpoint):
    """A file in PyTorch's old format, from before 1.6: it can only be loaded as a whole."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        file = InputFile(path)
        self._identity = file.identity(file.read_bytes(0, 1 << 16))
        file.close()
        warnings.warn(
            f"{file.path} is in PyTorch's old format, which cannot be read in parts: its "
            f"{file.size} bytes are loaded into memory; torch.save(torch.load(...)) converts it",
            stacklevel=3,
        )
        super().__init__(file.path, state_dict_in(file.path, _load(file.path, "cpu")))
        self.files = (file.path,)

    def identity(self) -> dict[str, Any]:
        return dict(self._identity)


def open_pytorch_file(path: str | os.PathLike[str]) -> PyTorchFile | PyTorchFileInMemory:
    """A file of ``torch.save`` in either format."""
    file = InputFile(path)
    start = file.read_bytes(0, len(_ZIP))
    file.close()
    return PyTorchFile(path) if start == _ZIP else PyTorchFileInMemory(path)


def _load(path: str, device: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about PyTorch's own deprecations
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except OSError:
            raise
        except Exception as error:  # whatever a damaged or hostile pickle leads to
            raise ValueError(
                f"{path}: must be a file of tensors that torch.save wrote, got: {_reason(error)}"
            ) from error


def _reason(error: Exception) -> str:
    """What PyTorch says, without its advice to run the code of the file."""
    text = str(error)
    found = re.search(
        r"WeightsUnpickler error: ([^\n]*?\.(?= )|[^\n]*)|Trying to load [^\n]*", text
    )
    if found:
        return found[1] or found[0]
    return (text.splitlines() or [type(error).__name__])[0].split(" In PyTorch 2.6,")[0]


def _records(name: str, file: InputFile) -> dict[int, int]:
    """Sizes of the records that are stored as they are, by where their data begin."""
    records = {}
    try:
        with zipfile.ZipFile(name) as archive:
            entries = archive.infolist()
            order = [entry for entry in entries if entry.filename.endswith("/byteorder")]
            if order and archive.read(order[0]).decode() != sys.byteorder:
                raise ValueError(f"its byte order is not {sys.byteorder}-endian")
        for entry in entries:
            head = file.read_bytes(entry.header_offset, 30)
            name_length, extra_length = struct.unpack("<HH", head[26:30])
            begin = entry.header_offset + 30 + name_length + extra_length
            whole = begin + entry.file_size <= file.size
            if entry.compress_type == zipfile.ZIP_STORED and whole:
                records[begin] = entry.file_size
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError) as error:
        raise ValueError(f"{name}: must be a whole file of torch.save, got: {error}") from None
    return records
