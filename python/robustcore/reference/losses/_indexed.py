"""Numbers per training example, updated by the rows of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["update_by_last_rows"]


def update_by_last_rows(state: Tensor, place: Tensor, moved: Tensor, ignored: Tensor) -> None:
    """``state[place] = moved``: of each example the last row that is not ignored, in place.

    Args:
        state: Shape ``(M, ...)``.
        place: In ``[0, M)``, shape ``(N,)``.
        moved: Shape ``(N, ...)``.
        ignored: Shape ``(N,)``.
    """
    rows = torch.arange(place.numel(), device=place.device).masked_fill(ignored, -1)
    last = torch.full((state.shape[0],), -1, dtype=torch.int64, device=place.device)
    last = last.scatter_reduce(0, place, rows, "amax")
    kept = place[~ignored]
    state[kept] = moved[last[kept]]
