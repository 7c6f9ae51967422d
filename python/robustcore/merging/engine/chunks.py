"""How flat parameter space is cut: slices of tensors, and chunks of slices that fit in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .plan import MergedTensor

__all__ = ["BLOCK", "Chunk", "Slice", "cut"]

#: Slices are whole blocks of this many parameters, but for the last one of a tensor: kMergeBlock.
BLOCK = 4096


@dataclass(frozen=True)
class Slice:
    """Parameters ``[start, stop)`` of a tensor."""

    tensor: MergedTensor
    start: int
    stop: int

    @property
    def parameters(self) -> int:
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.stop == self.tensor.numel


@dataclass(frozen=True)
class Chunk:
    """Slices that are read, merged and written together."""

    index: int
    slices: tuple[Slice, ...]

    @property
    def parameters(self) -> int:
        return sum(piece.parameters for piece in self.slices)


def cut(
    tensors: Iterable[MergedTensor], preferred: int, largest: int, *, whole: bool, row: bool = False
) -> list[Chunk]:
    """Chunks of about ``preferred`` parameters.

    With ``whole``, tensors of up to ``largest`` parameters are not cut. With ``row``, tensors are
    cut between rows only.
    """
    chunks: list[Chunk] = []
    pending: list[Slice] = []
    held = 0

    def close() -> None:
        nonlocal pending, held
        if pending:
            chunks.append(Chunk(len(chunks), tuple(pending)))
        pending, held = [], 0

    for tensor in tensors:
        limit = largest if whole and tensor.numel <= largest else preferred
        for piece in _slices(tensor, limit, row):
            if held and held + piece.parameters > preferred:
                close()
            pending.append(piece)
            held += piece.parameters
    close()
    return chunks


def _slices(tensor: MergedTensor, limit: int, row: bool) -> Iterator[Slice]:
    step = max(BLOCK, limit // BLOCK * BLOCK)
    if row and tensor.numel:
        width = tensor.shape[-1] if len(tensor.shape) > 1 else tensor.numel
        # Whole rows, and whole blocks too where a few rows make one.
        unit = math.lcm(width, BLOCK)
        step = limit // unit * unit or max(1, limit // width) * width
    if tensor.numel <= max(limit, step):
        if tensor.numel:
            yield Slice(tensor, 0, tensor.numel)
        return
    for start in range(0, tensor.numel, step):
        yield Slice(tensor, start, min(tensor.numel, start + step))
