"""Reading parts of a file into the memory of tensors."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from typing import Any

import torch
from torch import Tensor

from .checkpoint import StoredTensor

__all__ = ["InputFile", "check_range", "writable_bytes"]


class InputFile:
    """A file that is read by position, from any number of threads.

    Raises:
        OSError: It cannot be opened, or is a folder.
        ValueError: It is not a regular file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._descriptor = -1
        if os.path.isdir(self.path):
            raise IsADirectoryError(errno.EISDIR, "must be a file", self.path)
        if not os.path.isfile(self.path):
            os.stat(self.path)  # a missing file is an OSError with its own message
            raise ValueError(f"{self.path}: must be a regular file")
        self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        facts = os.fstat(self._descriptor)
        self.size = facts.st_size
        self._modified = facts.st_mtime_ns
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def read_bytes(self, offset: int, count: int) -> bytes:
        """At most ``count`` bytes from ``offset``; fewer only at the end of the file."""
        parts = []
        while count > 0:
            part = os.pread(self._descriptor, min(count, 1 << 30), offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            count -= len(part)
        return b"".join(parts)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fills ``target`` with the bytes from ``offset`` on."""
        done = 0
        while done < len(target):
            count = os.preadv(self._descriptor, [target[done:]], offset + done)
            if count == 0:
                raise OSError(
                    f"{self.path}: must have {self.size} bytes as when it was opened, got "
                    f"{os.fstat(self._descriptor).st_size}: it was changed while it was read"
                )
            done += count

    def map(self, offset: int, count: int) -> mmap.mmap:
        """A private map of a part; ``offset`` must be a multiple of the system's granularity."""
        return mmap.mmap(self._descriptor, count, offset=offset, access=mmap.ACCESS_COPY)

    def identity(self, described_by: bytes) -> dict[str, Any]:
        """Where the file is, size, time of its last change, and SHA-256 of its description."""
        return {
            "path": os.path.realpath(self.path),
            "size": self.size,
            "mtime_ns": self._modified,
            "header_sha256": hashlib.sha256(described_by).hexdigest(),
        }

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


def check_range(name: str, tensor: StoredTensor, start: int, stop: int, into: Tensor) -> None:
    """What :meth:`Checkpoint.read` is given must be a part of the tensor and fit it."""
    if not 0 <= start <= stop <= tensor.numel:
        raise ValueError(
            f"{name}: tensor {tensor.key!r}: the range must lie in [0, {tensor.numel}), got "
            f"[{start}, {stop})"
        )
    expected = (tensor.dtype, (stop - start,), "cpu", True)
    if (into.dtype, tuple(into.shape), into.device.type, into.is_contiguous()) != expected:
        raise ValueError(
            f"{name}: tensor {tensor.key!r}: into must be a contiguous CPU tensor of "
            f"{stop - start} elements of {tensor.dtype}, got {tuple(into.shape)} of {into.dtype} "
            f"on {into.device}"
        )


def writable_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, not a copy."""
    if tensor.numel() == 0:
        return memoryview(bytearray())
    return memoryview(tensor.detach().view(torch.uint8).numpy().data)
