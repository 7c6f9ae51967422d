"""The scale (inverse temperature) of a head: one number, or one per row, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import accumulate_dtype
from ._arguments import check_real

__all__ = ["Scale", "check_scale", "scale_argument"]

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
    if scale.dim() == 0 and isinstance(logits, Tensor) and -logits.dim() <= dim < logits.dim():
        sizes = list(logits.shape)
        del sizes[dim]
        if scale.is_floating_point():
            # The rows' gradients are to be summed in the wide type.
            scale = scale.to(accumulate_dtype(scale.dtype))
        scale = scale.expand(torch.Size(sizes))
    return scale, 1.0
