"""ShrinkMatch's loss in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._checks import accumulate_dtype, autocast_enabled
from ...losses.results import ShrinkMatchScores

__all__ = ["kept_cross_entropy", "shrink_match_loss", "shrink_match_scores"]


def shrink_match_loss(
    weak_logits: Tensor,
    strong_logits: Tensor,
    *,
    threshold: float = 0.95,
    reduction: str = "mean",
    dim: int = -1,
) -> Tensor:
    """Reference of :func:`robustcore.losses.shrink_match_loss`."""
    return shrink_match_scores(
        weak_logits, strong_logits, threshold=threshold, reduction=reduction, dim=dim
    ).loss


def shrink_match_scores(
    weak_logits: Tensor,
    strong_logits: Tensor,
    *,
    threshold: float = 0.95,
    reduction: str = "mean",
    dim: int = -1,
) -> ShrinkMatchScores:
    """Reference of :func:`robustcore.losses.shrink_match_scores`."""
    dtype = torch.promote_types(weak_logits.dtype, strong_logits.dtype)
    weak = weak_logits.detach().movedim(dim, -1).to(accumulate_dtype(dtype))
    strong = strong_logits.movedim(dim, -1).to(accumulate_dtype(dtype))

    # In descending order; of equal classes the first comes first. In units of the largest
    # probability, tails[c] is what the classes from c on have together.
    ordered, classes = weak.sort(dim=-1, descending=True, stable=True)
    tails = (ordered - ordered[..., :1]).exp().flip(-1).cumsum(-1).flip(-1)
    confidence = 1 / tails[..., 0]
    # p_1 / (p_1 + tail) >= threshold. The first class stays whatever its own tail is.
    fits = tails <= (1 - threshold) / threshold
    fits[..., 0] = True
    certain = fits.all(-1)
    undefined = confidence.isnan()
    learns = ~certain & fits[..., 1:].any(-1)
    kept = torch.zeros_like(fits).scatter(-1, classes, fits)

    weight = torch.where(learns, confidence, 0.0).masked_fill(undefined, torch.nan)
    loss = kept_cross_entropy(strong, kept, classes[..., 0], weight, reduction)
    removed = (~kept).sum(-1).masked_fill(undefined, -1)
    return ShrinkMatchScores(
        loss if autocast_enabled(strong.device) else loss.to(dtype),
        confidence,
        weak.argmax(-1),
        removed,
    )


def kept_cross_entropy(
    strong: Tensor, kept: Tensor, top: Tensor, weight: Tensor, reduction: str
) -> Tensor:
    """``weight`` times the cross-entropy of ``top`` among the classes ``kept``.

    Rows of weight 0 have no loss and no gradient, whatever they hold; rows of weight NaN nothing
    but NaN.
    """
    undefined = weight.isnan()
    logits = strong.masked_fill(~(kept | undefined.unsqueeze(-1)), -torch.inf)
    logits = logits.masked_fill((weight == 0).unsqueeze(-1), 0.0)
    logits = logits + torch.where(undefined, torch.nan, 0.0).unsqueeze(-1).to(logits.dtype)
    classes = logits.shape[-1]
    rows = F.cross_entropy(logits.reshape(-1, classes), top.reshape(-1), reduction="none")
    rows = weight * rows.reshape(top.shape)
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / rows.numel()
