"""Kullback-Leibler divergence between the softmaxes of two logit tensors in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._rows import computed_in, reduced

__all__ = ["pair_kl_divergence"]


def pair_kl_divergence(
    natural_logits: Tensor,
    adversarial_logits: Tensor,
    target: Tensor | None = None,
    *,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    temperature: float = 1.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    """Reference of :func:`robustcore.losses.pair_kl_divergence`."""
    compute = computed_in(natural_logits, adversarial_logits)
    z = natural_logits.movedim(dim, -1).to(compute)
    z_adversarial = adversarial_logits.movedim(dim, -1).to(compute)
    if target is None:
        target = torch.zeros(z.shape[:-1], dtype=torch.int64, device=z.device)
        ignored = torch.zeros_like(target, dtype=torch.bool)
    else:
        ignored = target == ignore_index

    # An ignored row takes no part; a class that p does not have adds nothing.
    z = z.masked_fill(ignored.unsqueeze(-1), 0.0)
    z_adversarial = z_adversarial.masked_fill(ignored.unsqueeze(-1), 0.0)
    log_p = (z / temperature).log_softmax(-1)
    log_q = (z_adversarial / temperature).log_softmax(-1)
    absent = torch.isneginf(log_p)
    difference = log_p.masked_fill(absent, 0.0) - log_q.masked_fill(absent, 0.0)
    rows = (log_p.exp() * difference).sum(-1)
    return reduced(rows, target, ignored, None, sample_weight, reduction, natural_logits)
