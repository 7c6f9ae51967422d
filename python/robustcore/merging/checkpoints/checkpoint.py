"""What a merge reads from: named tensors of which any part can be read into given memory."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Checkpoint", "StateDictCheckpoint", "StoredTensor"]


@dataclass(frozen=True)
class StoredTensor:
    """Name, shape and dtype of a stored tensor."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class Checkpoint(abc.ABC):
    """Tensors by name, read in parts; nothing but the parts asked for is held in memory.

    Attributes:
        name: What messages call it: a path, or the name of an argument.
        tensors: All tensors, by key.
        aliases: Keys that are other names of a tensor in ``tensors`` (tied weights), by key.
        is_task_vector: Its floating-point tensors are differences from a base and not weights
            (LoRA adapters); tensors of the base that it does not have are zero.
        is_resident: Parts are views of memory that exists anyway: reading costs nothing.
        files: Paths of the files that it reads: none of them may be written to.
        working_memory: Bytes that a read may hold beyond what it was given, in each thread.
    """

    name: str
    tensors: Mapping[str, StoredTensor]
    aliases: Mapping[str, str]
    is_task_vector: bool = False
    is_resident: bool = False
    files: Sequence[str] = ()
    working_memory: int = 0

    @abc.abstractmethod
    def read(self, key: str, start: int, stop: int, into: Tensor) -> Tensor:
        """Elements ``[start, stop)`` of a tensor, row-major, in its stored dtype.

        Args:
            key: One of ``tensors``.
            into: A one-dimensional CPU tensor of ``stop - start`` elements of the stored dtype that
                may be used to hold them.

        Returns:
            ``into``, or a view of memory that holds the elements already.

        Safe to call from several threads.
        """

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """Facts, for JSON, that change when the contents may have: a journal compares them."""

    def close(self) -> None:  # noqa: B027 (nothing to give back is the usual case)
        """Gives back files and maps; later reads fail."""


class StateDictCheckpoint(Checkpoint):
    """A state dict in memory."""

    is_resident = True

    def __init__(
        self, name: str, tensors: Mapping[str, Tensor], *, is_task_vector: bool = False
    ) -> None:
        self.name = name
        self.is_task_vector = is_task_vector
        self._values: dict[str, Tensor] = {}
        self.tensors = {}
        self.aliases = {}
        first_at: dict[tuple[Any, ...], str] = {}
        for key in sorted(tensors):
            value = tensors[key].detach()
            place = (value.data_ptr(), value.dtype, value.shape, value.stride(), value.device)
            if value.numel() and place in first_at:
                self.aliases[key] = first_at[place]
            else:
                first_at[place] = key
            # A copy only where elements are not in order already.
            self._values[key] = value.contiguous().reshape(-1)
            self.tensors[key] = StoredTensor(key, tuple(value.shape), value.dtype)

    @property
    def device(self) -> torch.device:
        """Where the tensors are: the CPU where there is none."""
        return next((value.device for value in self._values.values()), torch.device("cpu"))

    def read(self, key: str, start: int, stop: int, into: Tensor) -> Tensor:
        return self._values[key][start:stop]

    def identity(self) -> dict[str, Any]:
        return {"memory": self.name}
