"""Normalised cross-entropy in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._rows import computed_in, label_weights, reduced, transformed

__all__ = ["normalized_cross_entropy"]


def normalized_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
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
    """Reference of :func:`robustcore.losses.normalized_cross_entropy`."""
    compute = computed_in(logits)
    result, logits = logits, logits.movedim(dim, -1).to(compute)
    target = target.movedim(dim, -1) if target.is_floating_point() else target
    label, ignored = label_weights(
        target, logits.shape[-1], weight, label_smoothing, ignore_index, compute
    )
    # An ignored row takes no part, whatever it holds.
    logits = transformed(logits.masked_fill(ignored.unsqueeze(-1), 0.0), temperature, softcap)
    cost = -logits.log_softmax(-1)
    every = cost.masked_fill(torch.isneginf(logits), 0.0).sum(-1)
    absent = label == 0
    own = (label * cost.masked_fill(absent, 0.0)).sum(-1)
    # One class alone costs nothing; a row without a class is NaN, as a softmax of it.
    alone = (every == 0) & ~torch.isneginf(logits).all(-1)
    rows = (own / every.masked_fill(alone, 1.0)).masked_fill(alone, 0.0)
    if lse_square_scale != 0.0:
        rows = rows + lse_square_scale * logits.logsumexp(-1).square()
    return reduced(rows, target, ignored, weight, sample_weight, reduction, result)
