"""Losses of linear heads in chunks of rows: the logits of a whole batch never exist.

A loss over ``features @ weight.T + bias`` looks at the logits of one row at a time, so a chunk of
rows is enough: its logits, their gradients, and what those add to the gradients of the head. What
a loss has to bring is one function of a chunk's logits; see ``_linear_gated_cross_entropy_op.py``::

    sums = HeadGradients(head, needs, absent)
    for rows, (logits,) in logit_chunks((head,), chunk_rows):
        losses[rows] = loss_of_chunk_with_gradient_over_logits(logits, target[rows])
        sums.add(rows, logits)
    grad_features, grad_weight, grad_bias = sums.finish()

The matrix products are torch's. Every sum runs over the chunks in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._checks import accumulate_dtype

__all__ = [
    "Head",
    "HeadGradients",
    "gradients_at_once",
    "logit_chunks",
    "logits_at_once",
    "rows_per_chunk",
    "take",
]

# What a chunk's logits may take, unless half the weights are more. Gradients overwrite them.
_LEAST_BUDGET = 48 << 20
# Rows of a chunk are a multiple of this, where there are as many.
_ROW_MULTIPLE = 64
# On the CPU logits are computed for a block of classes at a time, whose weights stay in the cache:
# with a few hundred rows that is up to 1.5 times as fast as one product. The other products gain
# nothing.
_BLOCK_BYTES = 4 << 20


class Head(NamedTuple):
    """A linear head: ``features [N, D]``, ``weight [C, D]``, ``bias [C]`` or None, of one dtype."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None

    @property
    def classes(self) -> int:
        return self.weight.shape[0]


def rows_per_chunk(heads: Sequence[Head], chunk_rows: int = 0) -> int:
    """Rows whose logits live at a time: ``chunk_rows``, or as many as the budget allows.

    The budget is 48 MiB, or half of what the heads' weights take, where that is more: a larger
    model gets larger chunks, whose products use the processor better, at a cost in proportion to
    its size.

    Args:
        heads: The heads.
        chunk_rows: The user's choice; 0 for none.
    """
    rows = heads[0].features.shape[0]
    if not chunk_rows:
        row_bytes = sum([head.classes * head.weight.element_size() for head in heads])
        if rows * row_bytes <= _LEAST_BUDGET:
            return max(1, rows)
        budget = max(_LEAST_BUDGET, sum(head.weight.nbytes for head in heads) // 2)
        chunk_rows = max(1, budget // row_bytes)
        if chunk_rows > _ROW_MULTIPLE:
            chunk_rows -= chunk_rows % _ROW_MULTIPLE
    return max(1, min(chunk_rows, rows))


def logit_chunks(heads: Sequence[Head], chunk_rows: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yields ``(rows, logits of each head)`` chunk by chunk.

    The logits are contiguous and lie in buffers that the next chunk uses again; until then the
    caller may overwrite them.
    """
    count = heads[0].features.shape[0]
    buffers = [head.weight.new_empty(min(chunk_rows, count), head.classes) for head in heads]
    for start in range(0, count, chunk_rows):
        rows = slice(start, min(start + chunk_rows, count))
        logits = [take(buffer, slice(0, rows.stop - start)) for buffer in buffers]
        for head, out in zip(heads, logits):
            _project(take(head.features, rows), head.weight, head.bias, out)
        yield rows, logits


def logits_at_once(head: Head) -> Tensor:
    """The logits of all rows."""
    if not _in_blocks(head.weight):
        return F.linear(*head)
    out = head.weight.new_empty(head.features.shape[0], head.classes)
    _project(*head, out)
    return out


class HeadGradients:
    """Collects the gradients of a head chunk by chunk; those of 16-bit weights in float32.

    Args:
        head: The head.
        needs: Whether features, weight and bias get a gradient.
        absent: Rows [N] that take no part, or None: their features may be anything, and the
            gradients of their logits must be 0.

    Attributes:
        wanted: Whether there is anything that the gradients of the logits are needed for.
    """

    def __init__(self, head: Head, needs: Sequence[bool], absent: Tensor | None) -> None:
        self._head, self._absent = head, absent
        features, weight, bias = head
        wide = accumulate_dtype(weight.dtype)
        # Without a single row nothing is ever written.
        make = weight.new_empty if features.shape[0] else weight.new_zeros
        self._features = make(features.shape) if needs[0] else None
        self._weight = make(weight.shape, dtype=wide) if needs[1] else None
        self._bias = make(head.classes, dtype=wide) if needs[2] and bias is not None else None
        self.wanted = not (self._features is self._weight is self._bias is None)

    def add(self, rows: slice, grad_logits: Tensor) -> None:
        """Adds what the chunk ``rows`` contributes; chunks come in order."""
        features, weight, _ = self._head
        first = rows.start == 0
        if self._features is not None:
            torch.mm(grad_logits, weight, out=take(self._features, rows))
        if self._bias is not None:
            if first:
                torch.sum(grad_logits, 0, dtype=self._bias.dtype, out=self._bias)
            else:
                self._bias += grad_logits.sum(0, dtype=self._bias.dtype)
        if self._weight is not None:
            chunk = take(features, rows)
            if self._absent is not None:
                chunk = _without(chunk, take(self._absent, rows))
            _add_product(self._weight, grad_logits, chunk, beta=0 if first else 1)

    def finish(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of features, weight and bias in their own dtype, None where not needed."""
        dtype = self._head.weight.dtype
        return (
            self._features,
            None if self._weight is None else self._weight.to(dtype),
            None if self._bias is None else self._bias.to(dtype),
        )


def gradients_at_once(
    head: Head, needs: Sequence[bool], absent: Tensor | None, grad_logits: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What :class:`HeadGradients` gives for a single chunk; small batches feel the difference."""
    features, weight, bias = head
    if weight.element_size() < 4:
        sums = HeadGradients(head, needs, absent)
        if sums.wanted:
            sums.add(slice(0, features.shape[0]), grad_logits)
        return sums.finish()
    of_features = of_weight = of_bias = None
    if needs[0]:
        of_features = torch.mm(grad_logits, weight)
    if needs[1]:
        present = features if absent is None else _without(features, absent)
        of_weight = torch.mm(grad_logits.t(), present)
    if needs[2] and bias is not None:
        of_bias = grad_logits.sum(0)
    return of_features, of_weight, of_bias


def take(tensor: Tensor, rows: slice) -> Tensor:
    """``tensor[rows]``, without the view where that is everything: small batches feel it."""
    return tensor if rows.stop - rows.start == tensor.shape[0] else tensor[rows]


def _without(features: Tensor, absent: Tensor) -> Tensor:
    """0 * NaN: what a row that does not count holds must not reach the weights."""
    return features.masked_fill(absent.unsqueeze(1), 0)


def _class_blocks(weight: Tensor) -> Iterator[slice]:
    classes, width = weight.shape
    block = max(1, _BLOCK_BYTES // max(1, width * weight.element_size()))
    for start in range(0, classes, block):
        yield slice(start, min(start + block, classes))


def _in_blocks(weight: Tensor) -> bool:
    return weight.is_cpu and weight.element_size() >= 4 and weight.nbytes > _BLOCK_BYTES


def _project(features: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if not _in_blocks(weight):
        _linear(features, weight, bias, out)
        return
    for block in _class_blocks(weight):
        _linear(features, weight[block], None if bias is None else bias[block], out[:, block])


def _linear(features: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(features, weight.t(), out=out)
    else:
        torch.addmm(bias, features, weight.t(), out=out)


def _add_product(total: Tensor, grad_logits: Tensor, features: Tensor, beta: int) -> None:
    """``total = beta * total + grad_logits.T @ features``; beta 0 ignores what total holds."""
    if total.dtype == features.dtype:
        total.addmm_(grad_logits.t(), features, beta=beta)
    elif total.is_cuda:
        torch.addmm(total, grad_logits.t(), features, out_dtype=total.dtype, beta=beta, out=total)
    else:
        wide = features.to(total.dtype)
        for block in _class_blocks(total):  # for the sake of memory
            part = grad_logits[:, block].t().to(total.dtype)
            total[block].addmm_(part, wide, beta=beta)
