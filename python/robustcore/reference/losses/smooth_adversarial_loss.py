"""The smooth adversarial comp-sum loss in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._rows import computed_in, reduced
from .comp_sum_loss import comp_sum_loss

__all__ = ["smooth_adversarial_loss"]


def smooth_adversarial_loss(
    logits: Tensor,
    adversarial_logits: Tensor,
    target: Tensor,
    tau: float | Tensor = 1.0,
    nu: float = 1.0,
    *,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    temperature: float = 1.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    """Reference of :func:`robustcore.losses.smooth_adversarial_loss`."""
    compute = computed_in(logits, adversarial_logits)
    z = logits.movedim(dim, -1).to(compute)
    z_adversarial = adversarial_logits.movedim(dim, -1).to(compute)
    ignored = target == ignore_index
    chosen = target.masked_fill(ignored, 0)
    comp_sum = comp_sum_loss(
        z,
        target,
        tau,
        weight=weight,
        ignore_index=ignore_index,
        temperature=temperature,
        reduction="none",
    ).to(compute)

    # An ignored row takes no part; a class that is masked in both does not move.
    absent = ignored.unsqueeze(-1) | (torch.isneginf(z) & torch.isneginf(z_adversarial))
    moved = z_adversarial.masked_fill(absent, 0.0) - z.masked_fill(absent, 0.0)
    change = (moved.gather(-1, chosen.unsqueeze(-1)) - moved).masked_fill(absent, 0.0)
    # torch's norm has the derivative 0 at 0, but its second derivative there is NaN.
    still = (change == 0).all(-1, keepdim=True)
    norm = torch.linalg.vector_norm(torch.where(still, 1.0, change), dim=-1)
    norm = norm.masked_fill(still.squeeze(-1), 0.0)
    scale = 1.0 if weight is None else weight.to(compute)[chosen]
    rows = comp_sum + nu * scale * norm
    return reduced(rows, target, ignored, weight, sample_weight, reduction, logits)
