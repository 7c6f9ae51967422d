"""Symmetric cross-entropy in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._rows import computed_in, label_loss

__all__ = ["symmetric_cross_entropy"]


def symmetric_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    log_zero: float = math.log(1e-4),
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    lse_square_scale: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    """Reference of :func:`robustcore.losses.symmetric_cross_entropy`."""
    compute = computed_in(logits)
    result, logits = logits, logits.movedim(dim, -1).to(compute)
    target = target.movedim(dim, -1) if target.is_floating_point() else target

    def value(log_probability: Tensor) -> Tensor:
        reverse = beta * log_zero * torch.expm1(log_probability)
        return reverse if alpha == 0 else reverse - alpha * log_probability

    return label_loss(
        logits,
        target,
        value,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        temperature=temperature,
        softcap=softcap,
        lse_square_scale=lse_square_scale,
        reduction=reduction,
        result=result,
    )
