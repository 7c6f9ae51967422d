"""The scale (inverse temperature) of a head: one number, or one per row, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import accumulate_dtype
from ._arguments import check_real

__all__ = ["Scale", "check_scale", "one_per_row", "scale_argument"]

Scale = float | Tensor


def check_scale(op: str, name: str, scale: Scale) -> None:
    """What can be said of a scale without its values being looked at."""
    if isinstance(scale, Tensor):
        return
    check_real(op, name, scale)
    if not 0.0 < scale < float("inf"):
        raise ValueError(f"{op}: {name} must be positive and finite, got {scale}")


def scale_argument(
    op: str, name: str, scale: Scale, logits: Tensor, dim: int
) -> tuple[Tensor | None, float]:
    """A tensor of one number per row, or else the number for all rows.

    A tensor of one number is expanded, so that autograd sums the gradients of the rows.
    """
    check_scale(op, name, scale)
    if not isinstance(scale, Tensor):
        return None, float(scale)
    if scale.dim() == 0 and scale.is_floating_point():
        # The rows' gradients are to be summed in the wide type.
        scale = scale.to(accumulate_dtype(scale.dtype))
    return one_per_row(scale, logits, dim), 1.0


def one_per_row(value: Tensor, logits: Tensor, dim: int) -> Tensor:
    """A tensor of one number as one of a number per row of ``logits``, others as they are.

    Where ``logits`` and ``dim`` are not valid, nothing is done: checking them comes later.
    """
    if value.dim() > 0 or not isinstance(logits, Tensor) or not isinstance(dim, int):
        return value
    if not -logits.dim() <= dim < logits.dim():
        return value
    sizes = list(logits.shape)
    del sizes[dim]
    return value.expand(torch.Size(sizes))
