"""Sums over a batch that do not depend on the number of threads."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sum_in_order"]

# torch divides longer sums among threads, which makes the last bits depend on their number.
_PIECE = 1 << 14


def sum_in_order(values: Tensor) -> Tensor:
    """The sum of a vector in float64, the same for any number of threads."""
    if values.numel() <= _PIECE:
        return values.sum(dtype=torch.float64)
    return torch.stack([piece.sum(dtype=torch.float64) for piece in values.split(_PIECE)]).sum()
