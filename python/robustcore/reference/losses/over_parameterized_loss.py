"""Sparse over-parameterisation in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._rows import computed_in, label_weights, reduced, transformed

__all__ = ["over_parameterized_loss"]

_LEAST = 1e-4


def over_parameterized_loss(
    logits: Tensor,
    target: Tensor,
    u: Tensor,
    v: Tensor,
    *,
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
    """Reference of :func:`robustcore.losses.over_parameterized_loss`."""
    compute = computed_in(logits, v)
    result = logits.to(torch.promote_types(logits.dtype, v.dtype))
    logits, v = logits.movedim(dim, -1).to(compute), v.movedim(dim, -1).to(compute)
    target = target.movedim(dim, -1) if target.is_floating_point() else target
    classes = logits.shape[-1]
    label, ignored = label_weights(target, classes, None, label_smoothing, ignore_index, compute)
    absent = ignored.unsqueeze(-1)
    u = u.reshape(logits.shape[:-1]).to(compute).unsqueeze(-1)
    logits, u, v = (x.masked_fill(absent, 0.0) for x in (logits, u, v))
    logits = transformed(logits, temperature, softcap)

    gain = (u.square() * label).clamp(0, 1)
    loss = (v.square() * (1 - label)).clamp(0, 1)
    prediction = (logits.softmax(-1) + gain - loss.detach()).clamp_min(_LEAST)
    prediction = F.normalize(prediction, p=1.0, dim=-1, eps=_LEAST).clamp(_LEAST, 1.0)
    rows = -(label * prediction.log()).sum(-1)
    chosen = F.one_hot(logits.argmax(-1), classes).to(compute)
    rows = rows + (chosen + gain - loss - label).square().sum(-1)
    if lse_square_scale != 0.0:
        rows = rows + lse_square_scale * logits.logsumexp(-1).square()
    return reduced(rows, target, ignored, None, sample_weight, reduction, result)
