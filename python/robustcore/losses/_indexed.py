"""State of one value per training example, updated from batches."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["assign_last", "in_recomputation"]


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
