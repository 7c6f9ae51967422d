"""What losses with numbers per training example share: ranges, updates from batches."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_int64

__all__ = ["example_range", "in_recomputation", "last_values"]


def in_recomputation() -> bool:
    """Whether this runs inside a backward pass, as activation checkpointing does it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def last_values(state: Tensor, index: Tensor, values: Tensor, ignored: Tensor) -> Tensor:
    """What ``state[index]`` is to become: of each index the value of its last row that counts.

    Rows of one index have the same result, so that ``state.scatter_`` with it is deterministic on
    every device, and none of this needs a synchronisation. Where no row of an index counts, it is
    what ``state`` holds.

    Args:
        state: Shape ``(M,)``.
        index: In ``[0, M)``, any shape.
        values: Shape of ``index``.
        ignored: Which rows do not count, shape of ``index``.
    """
    shape, index, values = index.shape, index.reshape(-1), values.reshape(-1)
    if index.numel() == 0:
        return values.reshape(shape)
    # Ignored rows sort behind all others.
    ordered, rows = index.masked_fill(ignored.reshape(-1), state.numel()).sort(stable=True)
    # The last row with this index that is not ignored, if there is one.
    last = (torch.searchsorted(ordered, index, right=True) - 1).clamp_min(0)
    written = ordered[last] == index
    return torch.where(written, values[rows[last]], state[index]).reshape(shape)


def example_range(
    name: str, num_examples: int, num_classes: int, start: int, stop: int | None
) -> tuple[int, int]:
    """Checks the sizes of a module that keeps numbers per example; its range of examples."""
    for argument, value in (("num_examples", num_examples), ("num_classes", num_classes)):
        check_int64(name, argument, value)
        if value < 1:
            raise ValueError(f"{name}: {argument} must be positive, got {value}")
    check_int64(name, "start", start)
    stop = num_examples if stop is None else stop
    check_int64(name, "stop", stop)
    if not 0 <= start <= stop <= num_examples:
        raise ValueError(
            f"{name}: start and stop must be ascending in [0, {num_examples}], got {start} and "
            f"{stop}"
        )
    return start, stop
