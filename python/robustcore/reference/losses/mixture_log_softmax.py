"""Log-probabilities of a mixture of two softmaxes in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._checks import autocast_enabled
from ._rows import computed_in

__all__ = ["mixture_log_softmax"]


def mixture_log_softmax(
    logits1: Tensor,
    logits2: Tensor,
    gate: Tensor,
    scale1: float | Tensor = 1.0,
    scale2: float | Tensor = 1.0,
    *,
    dim: int = -1,
) -> Tensor:
    """Reference of :func:`robustcore.losses.mixture_log_softmax`."""
    compute = computed_in(logits1, logits2)
    z1, z2 = logits1.movedim(dim, -1).to(compute), logits2.movedim(dim, -1).to(compute)
    s = gate.reshape(z1.shape[:-1]).to(compute).unsqueeze(-1)
    masked1, masked2 = torch.isneginf(z1), torch.isneginf(z2)
    first = F.logsigmoid(-s) + _log_softmax(z1, masked1, scale1)
    second = F.logsigmoid(s) + _log_softmax(z2, masked2, scale2)
    # A class that one head masks has what the other gives it.
    mixed = torch.logaddexp(first, second)
    mixed = torch.where(masked1, second, torch.where(masked2, first, mixed))
    mixed = mixed.masked_fill(masked1 & masked2, -torch.inf)
    # A head that masks every class has no softmax.
    empty = masked1.all(-1, keepdim=True) | masked2.all(-1, keepdim=True)
    mixed = (mixed * torch.ones_like(s).masked_fill(empty, torch.nan)).movedim(-1, dim)
    return mixed if autocast_enabled(logits1.device) else mixed.to(logits1.dtype)


def _log_softmax(z: Tensor, masked: Tensor, scale: float | Tensor) -> Tensor:
    """``log_softmax(scale * z)``, 0 where masked: infinities would spoil the derivatives."""
    if isinstance(scale, Tensor):
        scale = scale.to(z.dtype)
        scale = scale if scale.dim() == 0 else scale.reshape(z.shape[:-1]).unsqueeze(-1)
    h = (scale * z.masked_fill(masked, 0.0)).masked_fill(masked, -torch.inf)
    return h.log_softmax(-1).masked_fill(masked, 0.0)
