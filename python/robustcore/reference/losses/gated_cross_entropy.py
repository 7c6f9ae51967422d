"""Pi-DUAL's gated cross-entropy in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._checks import accumulate_dtype
from ...losses.results import GatedCrossEntropyScores
from ._rows import computed_in, label_loss

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
    temperature: float = 1.0,
    softcap: float | None = None,
    lse_square_scale: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    """Reference of :func:`robustcore.losses.gated_cross_entropy`."""
    compute = computed_in(prediction, noise)
    result = prediction
    prediction, noise = prediction.movedim(dim, -1), noise.movedim(dim, -1)
    target = target.movedim(dim, -1) if target.is_floating_point() else target
    gate = gate.reshape(prediction.shape[:-1]).to(compute)

    # An ignored row takes no part, whatever it holds; a class that one head masks is masked.
    ignored = torch.zeros_like(gate, dtype=torch.bool)
    if not target.is_floating_point():
        ignored = target == ignore_index
    masked = torch.isneginf(prediction) | torch.isneginf(noise)
    absent = masked | ignored.unsqueeze(-1)
    f = prediction.to(compute).masked_fill(absent, 0.0)
    e = noise.to(compute).masked_fill(absent, 0.0)
    s = gate.masked_fill(ignored, 0.0).unsqueeze(-1)

    mixed = torch.sigmoid(-s) * f + torch.sigmoid(s) * e
    mixed = mixed.masked_fill(masked & ~ignored.unsqueeze(-1), -torch.inf)
    return label_loss(
        mixed,
        target,
        torch.neg,
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
    temperature: float = 1.0,
    softcap: float | None = None,
    lse_square_scale: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
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
        temperature=temperature,
        softcap=softcap,
        lse_square_scale=lse_square_scale,
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
