"""Walking over chunks: reading, computing and writing at the same time, in fixed memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Protocol

import torch
from torch import Tensor

from ..checkpoints import Checkpoint
from .chunks import Chunk, Slice
from .pieces import Pieces
from .plan import MergePlan

__all__ = ["BUFFER_SETS", "Sink", "Stream", "bytes_per_parameter"]

#: Chunks that are in memory at a time: one is read, one computed with, one written.
BUFFER_SETS = 3
# Slices begin aligned in a buffer: bytes that may be lost by that.
_SLACK = 1 << 16


class Sink(Protocol):
    """Where a merge writes to."""

    def place(self, key: str, start: int, stop: int) -> Tensor | None:
        """Memory that is the result's own, on the device of the merge, or None: then :meth:`write`
        is called."""

    def write(self, key: str, start: int, values: Tensor) -> None:
        """Elements from ``start`` of a tensor, row-major; called from one thread at a time."""


def bytes_per_parameter(plan: MergePlan) -> int:
    """Bytes that a parameter takes in the buffers of one chunk: what is read, and the result."""
    read = sum(_widest(plan, model) for model in plan.models)
    return read + max((tensor.dtype.itemsize for tensor in plan.tensors), default=0)


def _widest(plan: MergePlan, model: Checkpoint) -> int:
    """Bytes of a parameter in the buffers of a model; memory that exists anyway needs none."""
    if model.is_resident:
        return 0
    keys = [tensor.key for tensor in plan.tensors if tensor.key in model.tensors]
    return max((model.tensors[key].dtype.itemsize for key in keys), default=0)


class Stream:
    """Reads chunks of all models, one chunk ahead, and writes results behind.

    Args:
        capacity: The most parameters that a chunk has.
    """

    def __init__(self, plan: MergePlan, capacity: int, device: torch.device) -> None:
        self._plan = plan
        self._device = device
        self._vectors = [int(task.is_task_vector) for task in plan.tasks.values()]
        self._sets = [_Buffers(plan, capacity) for _ in range(BUFFER_SETS)]

    @property
    def set_bytes(self) -> int:
        """Bytes of one set of buffers when it is full."""
        return self._sets[0].size

    def walk(self, chunks: Sequence[Chunk]) -> Iterator[Pieces]:
        """The pieces of each chunk, for facts; a chunk's memory is used again after the next."""
        for _, pieces, _ in self._read_ahead(chunks):
            yield pieces

    def merge(
        self,
        chunks: Sequence[Chunk],
        compute: Callable[[Chunk, Pieces, list[Tensor]], None],
        sink: Sink,
        done: Callable[[Chunk], None],
    ) -> None:
        """Fills the result of every chunk by ``compute`` and writes it; ``done`` after each."""
        with ExitStack() as stack:
            writer = stack.enter_context(ThreadPoolExecutor(1, "robustcore-write"))
            pending: list[Future[None]] = []
            stack.callback(lambda: [future.cancel() for future in pending])
            for chunk, pieces, buffers in self._read_ahead(chunks):
                # The set's previous chunk was written before its buffers were read into again.
                placed = [sink.place(p.tensor.key, p.start, p.stop) for p in chunk.slices]
                out = buffers.results(chunk.slices, placed, self._device)
                compute(chunk, pieces, out)
                if all(place is not None for place in placed):
                    done(chunk)
                    continue
                buffers.busy = writer.submit(_write, chunk, out, sink, done)
                pending.append(buffers.busy)
                while pending and pending[0].done():  # a failed write ends the merge at once
                    pending.pop(0).result()
            for future in pending:
                future.result()

    def _read_ahead(self, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, Pieces, _Buffers]]:
        sets = itertools.cycle(self._sets)
        with ThreadPoolExecutor(1, "robustcore-read") as reader:
            following: Future[Pieces] | None = None
            ahead: tuple[Chunk, _Buffers] | None = None
            try:
                for chunk in chunks:
                    buffers = next(sets)
                    task = reader.submit(self._read, chunk, buffers)
                    if following is not None and ahead is not None:
                        yield ahead[0], following.result(), ahead[1]
                    following, ahead = task, (chunk, buffers)
                if following is not None and ahead is not None:
                    yield ahead[0], following.result(), ahead[1]
            finally:
                if following is not None:
                    following.cancel()

    def _read(self, chunk: Chunk, buffers: _Buffers) -> Pieces:
        buffers.wait()
        base: list[Tensor] = []
        tasks: list[Tensor] = []
        for index, model in enumerate(self._plan.models):
            buffers.rewind(index)
            for piece in chunk.slices:
                start = base[len(tasks) % len(chunk.slices)] if index else None
                values = self._read_slice(model, index, piece, start, buffers)
                (tasks if index else base).append(values.to(self._device, non_blocking=True))
        return Pieces(chunk.slices, base, tasks, self._vectors)

    def _read_slice(
        self, model: Checkpoint, index: int, piece: Slice, base: Tensor | None, buffers: _Buffers
    ) -> Tensor:
        key, stored = piece.tensor.key, piece.tensor.stored[index]
        present = max(0, min(piece.stop, stored) - piece.start)
        if present == piece.parameters:
            dtype = model.tensors[key].dtype
            into = buffers.take(index, present, dtype)
            return model.read(key, piece.start, piece.stop, into)
        # Rows that only other models have: nothing in the base, no change in a task.
        dtype = model.tensors[key].dtype if present or base is None else base.dtype
        if base is None or model.is_task_vector:
            values = torch.zeros(piece.parameters, dtype=dtype)
        else:
            values = base.cpu().to(dtype, copy=True)
        if present:
            part = model.read(key, piece.start, piece.start + present, values.new_empty(present))
            values[:present] = part
        return values


def _write(chunk: Chunk, out: Sequence[Tensor], sink: Sink, done: Callable[[Chunk], None]) -> None:
    for piece, values in zip(chunk.slices, out, strict=True):
        sink.write(piece.tensor.key, piece.start, values)
    done(chunk)


class _Buffers:
    """Memory for one chunk of every model and its result, used again and again."""

    def __init__(self, plan: MergePlan, capacity: int) -> None:
        self.busy: Future[None] | None = None
        self._models = list(plan.models)
        widths = [_widest(plan, model) for model in plan.models]
        widths.append(max((t.dtype.itemsize for t in plan.tensors), default=0))
        self._bytes = [torch.empty(0, dtype=torch.uint8) for _ in widths]
        self._sizes = [width * capacity + _SLACK for width in widths]
        self._used = [0] * len(widths)

    @property
    def size(self) -> int:
        return sum(self._sizes)

    def wait(self) -> None:
        """Until the results of the chunk that was here are written."""
        if self.busy is not None:
            self.busy.result()
            self.busy = None

    def rewind(self, index: int) -> None:
        self._used[index] = 0

    def take(self, index: int, count: int, dtype: torch.dtype) -> Tensor:
        """Memory for ``count`` elements of a model; what a resident model ignores is empty."""
        if index < len(self._models) and self._models[index].is_resident:
            return torch.empty(0, dtype=dtype)
        start = -(-self._used[index] // 64) * 64
        needed = start + count * dtype.itemsize
        if needed > self._bytes[index].numel():
            if start:
                return torch.empty(count, dtype=dtype)  # a chunk of many tiny tensors
            self._bytes[index] = torch.empty(max(needed, self._sizes[index]), dtype=torch.uint8)
        self._used[index] = needed
        return self._bytes[index][start:needed].view(dtype)

    def results(
        self, slices: Sequence[Slice], placed: Sequence[Tensor | None], device: torch.device
    ) -> list[Tensor]:
        index = len(self._models)
        self.rewind(index)
        results = []
        for piece, place in zip(slices, placed, strict=True):
            count, dtype = piece.parameters, piece.tensor.dtype
            if place is not None:
                results.append(place)
            elif device.type != "cpu":
                results.append(torch.empty(count, dtype=dtype, device=device))
            else:
                results.append(self.take(index, count, dtype))
        return results
