"""Whether tensors can be overwritten: found out before anything is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["overlapping", "placed_bytes", "refuse_overwriting"]


def refuse_overwriting(
    op: str, bases: Sequence[Tensor], merged: Sequence[Tensor], results: Sequence[Tensor]
) -> None:
    """ValueError unless every base tensor can hold its result and ``merged`` stays as it is.

    The results are written to a rehearsal of the memory: a buffer in which the tensors lie to each
    other as they really do. That is exact for tied, strided, expanded and interleaved tensors.
    """
    tensors = [*bases, *merged]
    for group in overlapping(tensors):
        own = [index for index in group if index < len(bases)]
        if not own or (len(group) == 1 and bases[own[0]].is_contiguous()):
            continue
        buffer, views = placed_bytes([tensors[index] for index in group])
        placed = dict(zip(group, views, strict=True))
        for index in own:
            _copy(op, placed[index], _bytes(results[index]))
        if not all(torch.equal(placed[index], _bytes(results[index])) for index in own):
            raise ValueError(
                f"{op}: tensors of base that share memory must have equal results where inplace "
                "is True; tie those of merged in the same way"
            )
        buffer.zero_()
        for index in own:
            placed[index].copy_(placed[index].new_ones(()))
        if any(placed[index].any() for index in group if index >= len(bases)):
            raise ValueError(f"{op}: base and merged must not share memory where inplace is True")


def overlapping(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Indices of tensors, grouped by byte ranges that overlap; empty tensors are left out."""
    ranges = [(*_range(tensor), i) for i, tensor in enumerate(tensors) if tensor.numel()]
    groups: list[list[int]] = []
    reached = -1
    for start, end, index in sorted(ranges):
        if start >= reached:
            groups.append([])
        groups[-1].append(index)
        reached = max(reached, end)
    return groups


def _range(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the first byte and of the one after the last."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in pairs)
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()


def placed_bytes(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The rehearsal: zeros, and the bytes in it of tensors that lie to each other as these do."""
    ranges = [_range(tensor) for tensor in tensors]
    start, end = min(first for first, _ in ranges), max(last for _, last in ranges)
    buffer = torch.zeros(end - start, dtype=torch.uint8, device=tensors[0].device)
    return buffer, [_placed(tensor, buffer, start) for tensor in tensors]


def _placed(tensor: Tensor, buffer: Tensor, start: int) -> Tensor:
    """The bytes of a tensor, with a last dimension for those of an element, in the rehearsal."""
    size = tensor.element_size()
    strides = [stride * size for stride in tensor.stride()]
    return buffer.as_strided((*tensor.shape, size), (*strides, 1), tensor.data_ptr() - start)


def _bytes(tensor: Tensor) -> Tensor:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return flat.view(*tensor.shape, tensor.element_size())


def _copy(op: str, target: Tensor, result: Tensor) -> None:
    try:
        target.copy_(result)
    except RuntimeError:  # elements of an expanded tensor lie at one place
        raise ValueError(
            f"{op}: a tensor of base must not overlap itself where inplace is True"
        ) from None
