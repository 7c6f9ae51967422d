"""The spherical Z-loss in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._rows import computed_in, label_weights, reduced

__all__ = ["spherical_z_loss"]


def spherical_z_loss(
    logits: Tensor,
    target: Tensor,
    *,
    a: float = 1.0,
    b: float = 0.0,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    """Reference of :func:`robustcore.losses.spherical_z_loss`."""
    compute = computed_in(logits)
    result, logits = logits, logits.movedim(dim, -1).to(compute)
    target = target.movedim(dim, -1) if target.is_floating_point() else target
    label, ignored = label_weights(
        target, logits.shape[-1], weight, label_smoothing, ignore_index, compute
    )
    # An ignored row takes no part, whatever it holds.
    logits = logits.masked_fill(ignored.unsqueeze(-1), 0.0)
    masked = torch.isneginf(logits)
    excess = a * (b - _standardized(logits, masked))
    # log(1 + exp(excess)), exact also where excess is large
    value = torch.logaddexp(excess, torch.zeros_like(excess)) / a
    value = value.masked_fill(masked, torch.inf).masked_fill(label == 0, 0.0)
    rows = (label * value).sum(-1)
    return reduced(rows, target, ignored, weight, sample_weight, reduction, result)


def _standardized(logits: Tensor, masked: Tensor) -> Tensor:
    """(z - mean) / deviation over the classes that are not masked; zeros for a constant row."""
    count = (~masked).sum(-1, keepdim=True).to(logits.dtype)
    # Shifting and scaling change nothing; they keep digits.
    largest = logits.detach().amax(-1, keepdim=True)
    below = (logits - largest).masked_fill(masked, 0.0)
    deviation = (below - below.sum(-1, keepdim=True) / count).masked_fill(masked, 0.0)
    unit = deviation.detach().amax(-1, keepdim=True)
    constant = unit < torch.finfo(unit.dtype).tiny * count
    deviation = deviation / unit.masked_fill(constant, 1.0)
    variance = deviation.square().sum(-1, keepdim=True) / count
    return (deviation / variance.masked_fill(constant, 1.0).sqrt()).masked_fill(constant, 0.0)
