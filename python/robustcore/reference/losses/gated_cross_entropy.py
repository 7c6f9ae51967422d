"""Pi-DUAL's gated cross-entropy in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._checks import accumulate_dtype, autocast_enabled
from ...losses.results import GatedCrossEntropyScores

__all__ = ["gated_cross_entropy", "gated_cross_entropy_scores"]


def gated_cross_entropy(
    prediction: Tensor,
    noise: Tensor,
    gate: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
) -> Tensor:
    """Reference of :func:`robustcore.losses.gated_cross_entropy`."""
    compute = accumulate_dtype(torch.promote_types(prediction.dtype, noise.dtype))
    prediction, noise = prediction.movedim(dim, -1), noise.movedim(dim, -1)
    gate = gate.reshape(target.shape).to(compute)
    weight = None if weight is None else weight.to(compute)

    # An ignored row takes no part, whatever it holds; a class that one head masks is masked.
    ignored = target == ignore_index
    masked = torch.isneginf(prediction) | torch.isneginf(noise)
    absent = masked | ignored.unsqueeze(-1)
    f = prediction.to(compute).masked_fill(absent, 0.0)
    e = noise.to(compute).masked_fill(absent, 0.0)
    s = gate.masked_fill(ignored, 0.0).unsqueeze(-1)

    mixed = torch.sigmoid(-s) * f + torch.sigmoid(s) * e
    mixed = mixed.masked_fill(masked & ~ignored.unsqueeze(-1), -torch.inf)

    classes = mixed.shape[-1]
    rows = F.cross_entropy(
        mixed.reshape(-1, classes),
        target.reshape(-1),
        weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none",
    ).reshape(target.shape)
    if sample_weight is not None:
        rows = rows * sample_weight.to(compute).masked_fill(ignored, 0.0)

    if reduction == "none":
        loss = rows
    elif reduction == "sum":
        loss = rows.sum()
    else:
        kept = (~ignored).to(compute)
        if weight is not None:
            kept = kept * weight[target.masked_fill(ignored, 0)]
        loss = rows.sum() / kept.sum()
    return loss if autocast_enabled(prediction.device) else loss.to(prediction.dtype)


def gated_cross_entropy_scores(
    prediction: Tensor,
    noise: Tensor,
    gate: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
) -> GatedCrossEntropyScores:
    """Reference of :func:`robustcore.losses.gated_cross_entropy_scores`."""
    loss = gated_cross_entropy(
        prediction,
        noise,
        gate,
        target,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        dim=dim,
    )
    logits = prediction.detach().movedim(dim, -1)
    logits = logits.to(accumulate_dtype(logits.dtype))
    ignored = target == ignore_index
    chosen = target.masked_fill(ignored, 0).unsqueeze(-1)
    log_probability = logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)
    return GatedCrossEntropyScores(
        loss,
        log_probability.masked_fill(ignored, torch.nan),
        logits.argmax(-1),
        torch.sigmoid(gate.detach().reshape(target.shape).to(logits.dtype)),
    )
