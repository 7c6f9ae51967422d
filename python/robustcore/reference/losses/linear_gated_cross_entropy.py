"""Two linear heads and Pi-DUAL's gated cross-entropy, in two steps of plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .gated_cross_entropy import gated_cross_entropy

__all__ = ["linear_gated_cross_entropy"]


def linear_gated_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    noise_features: Tensor,
    noise_weight: Tensor,
    noise_bias: Tensor | None,
    gate: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    lse_square_scale: float = 0.0,
    reduction: str = "mean",
    chunk_rows: int | None = None,
) -> Tensor:
    """Reference of :func:`robustcore.losses.linear_gated_cross_entropy`; it makes no chunks."""
    if not target.is_floating_point():
        ignored = (target == ignore_index).unsqueeze(-1)
        features = features.masked_fill(ignored, 0)
        noise_features = noise_features.masked_fill(ignored, 0)
    return gated_cross_entropy(
        F.linear(features, weight, bias),
        F.linear(noise_features, noise_weight, noise_bias),
        gate,
        target,
        weight=class_weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        temperature=temperature,
        softcap=softcap,
        lse_square_scale=lse_square_scale,
        reduction=reduction,
    )
