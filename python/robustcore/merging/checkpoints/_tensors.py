"""Which tensors a loaded object holds, and parts of tensors that are not in order in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["copy_part", "state_dict_in"]

#: Under these names training scripts keep the weights beside other things.
_NESTED = ("state_dict", "model_state_dict", "model")
_MAXIMUM_LISTED = 20


def state_dict_in(name: str, value: Any) -> dict[str, Tensor]:
    """The state dict that ``value`` is, or holds under ``"state_dict"`` and the like.

    Raises:
        TypeError: It holds something that is not a dense tensor.
    """
    if isinstance(value, Mapping):
        nested = [key for key in _NESTED if isinstance(value.get(key), Mapping)]
        if len(nested) > 1:
            raise TypeError(f"{name}: must hold one state dict, got {', '.join(nested)}")
        if nested and not any(isinstance(entry, Tensor) for entry in value.values()):
            value = value[nested[0]]
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: must be a state dict, got {type(value).__name__}")
    found = []
    for key, entry in value.items():
        if not isinstance(key, str):
            found.append(f"key {key!r}, which is not a string")
        elif not isinstance(entry, Tensor):
            found.append(f"{key!r}: {type(entry).__name__}")
        elif problem := _problem(entry):
            found.append(f"{key!r}: {problem}")
    if found:
        listed = [f"  {line}" for line in found[:_MAXIMUM_LISTED]]
        if len(found) > _MAXIMUM_LISTED:
            listed.append(f"  and {len(found) - _MAXIMUM_LISTED} more")
        raise TypeError("\n".join([f"{name}: must hold dense tensors by name, got", *listed]))
    return dict(value)


def _problem(tensor: Tensor) -> str | None:
    if tensor.layout is not torch.strided:
        return f"a tensor with layout {tensor.layout}; convert it with to_dense()"
    if tensor.is_quantized:
        return f"a quantized tensor ({tensor.dtype}); convert it with dequantize()"
    if tensor.is_conj() or tensor.is_neg():
        return "a lazily conjugated or negated tensor; convert it with resolve_conj().resolve_neg()"
    return None


def copy_part(source: Tensor, start: int, into: Tensor) -> Iterator[Tensor]:
    """Copies elements from ``start`` of a tensor of any strides, in row-major order, to ``into``.

    Yields every rectangle of ``source`` that was copied, after that.
    """
    position = 0
    for rectangle in _rectangles(source, start, start + len(into)):
        count = rectangle.numel()
        target = into[position : position + count].view(rectangle.shape)
        yield from _copy_rectangle(rectangle, target)
        position += count


def _rectangles(source: Tensor, start: int, stop: int) -> Iterator[Tensor]:
    """Parts of a tensor that together are a range of its row-major order."""
    if start == stop:
        return
    if source.dim() == 0:
        yield source
        return
    row = source[0].numel()
    first, last = -(-start // row), stop // row  # whole rows
    if first > last:  # inside one row
        yield from _rectangles(source[last], start - last * row, stop - last * row)
        return
    if start < first * row:
        yield from _rectangles(source[first - 1], start - (first - 1) * row, row)
    if first < last:
        yield source[first:last]
    if last * row < stop:
        yield from _rectangles(source[last], 0, stop - last * row)


#: A piece of a file that is in memory at a time.
_MAXIMUM_SPAN = 1 << 24


def _copy_rectangle(source: Tensor, target: Tensor) -> Iterator[Tensor]:
    steps = [
        (size - 1) * stride for size, stride in zip(source.shape, source.stride(), strict=True)
    ]
    if sum(steps) * source.element_size() > _MAXIMUM_SPAN:
        widest = max(range(source.dim()), key=steps.__getitem__)
        middle = source.shape[widest] // 2
        for begin, length in ((0, middle), (middle, source.shape[widest] - middle)):
            yield from _copy_rectangle(
                source.narrow(widest, begin, length), target.narrow(widest, begin, length)
            )
        return
    target.copy_(source)
    yield source
