"""Weights per sample in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..._checks import accumulate_dtype

__all__ = ["dro_weights"]


def dro_weights(
    losses: Tensor,
    temperature: float,
    *,
    mask: Tensor | None = None,
    normalization: str = "sum",
    detach: bool = True,
) -> Tensor:
    """Reference of :func:`robustcore.losses.dro_weights`."""
    if detach:
        losses = losses.detach()
    present = torch.ones_like(losses, dtype=torch.bool) if mask is None else mask
    counted = present & ~losses.isnan()
    values = losses.double()[counted]
    if values.numel() and values.max().isinf():
        powers = (values == values.max()).double()
        chosen = powers / powers.sum()
    elif values.numel():
        chosen = torch.softmax((values - values.max()) / temperature, 0)
    else:
        chosen = values
    if normalization == "mean":
        chosen = chosen * values.numel()
    weights = torch.zeros_like(losses, dtype=torch.float64).masked_scatter(counted, chosen)
    weights = weights.masked_fill(present & losses.isnan(), math.nan)
    return weights.to(accumulate_dtype(losses.dtype))
