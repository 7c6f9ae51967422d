"""What losses with numbers per training example share: ranges, updates from batches."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_int64

__all__ = ["assign_last", "example_range", "in_recomputation"]


def in_recomputation() -> bool:
    """Whether this runs inside a backward pass, as activation checkpointing does it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def assign_last(state: Tensor, index: Tensor, values: Tensor, ignored: Tensor | None) -> None:
    """``state[index] = values`` where the last row of an index wins and ignored rows write nothing.

    Deterministic on every device and without a synchronisation: rows of one index all write the
    same value, that of their last row.

    Args:
        state: Shape ``(M,)``; written in place.
        index: In ``[0, M)``, any shape.
        values: Shape of ``index``.
        ignored: Which rows write nothing, shape of ``index``; or None.
    """
    index, values = index.reshape(-1), values.reshape(-1)
    if index.numel() == 0:
        return
    # Ignored rows sort behind all others.
    key = index if ignored is None else index.masked_fill(ignored.reshape(-1), state.numel())
    ordered, rows = key.sort(stable=True)
    # The last row with this index that is not ignored, if there is one.
    last = torch.searchsorted(ordered, index, right=True) - 1
    if ignored is None:
        state.scatter_(0, index, values[rows[last]])
        return
    last = last.clamp_min(0)
    written = ordered[last] == index
    state.scatter_(0, index, torch.where(written, values[rows[last]], state[index]))


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
