"""CrossMax in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._checks import accumulate_dtype

__all__ = ["crossmax"]


def crossmax(logits: Tensor, k: int = 3, *, ensemble_dim: int = -2, dim: int = -1) -> Tensor:
    """Reference of :func:`robustcore.losses.crossmax`."""
    member_dim, class_dim = ensemble_dim % logits.dim(), dim % logits.dim()
    z = logits.movedim((member_dim, class_dim), (-2, -1)).to(accumulate_dtype(logits.dtype))

    # Indices rather than amax: of equal logits the first gets the gradient.
    a = z - _or_zero(z.gather(-1, z.argmax(-1, keepdim=True)))
    descending = a.sort(dim=-2, descending=True, stable=True).values
    first, kth = descending[..., 0, :], descending[..., k - 1, :]
    # A class without any logit has no result, and no gradient.
    y = torch.where(torch.isneginf(first), -torch.inf, kth - _or_zero(first))

    y = y.to(logits.dtype)
    return y.movedim(-1, class_dim - (member_dim < class_dim))


def _or_zero(maximum: Tensor) -> Tensor:
    return torch.where(torch.isneginf(maximum), 0.0, maximum)
