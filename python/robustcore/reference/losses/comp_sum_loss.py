"""The comp-sum family in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._rows import computed_in, label_loss

__all__ = ["comp_sum_loss"]


def comp_sum_loss(
    logits: Tensor,
    target: Tensor,
    tau: float | Tensor = 1.0,
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
    """Reference of :func:`robustcore.losses.comp_sum_loss`."""
    compute = computed_in(logits)
    result, logits = logits, logits.movedim(dim, -1).to(compute)
    target = target.movedim(dim, -1) if target.is_floating_point() else target
    if not isinstance(tau, Tensor):
        tau = torch.full((), tau, dtype=compute, device=logits.device)
    power = (tau.to(compute) - 1).unsqueeze(-1)

    def value(log_probability: Tensor) -> Tensor:
        # Where tau = 1 the quotient's limit, -log p.
        safe = torch.where(power == 0, 1.0, power)
        return torch.where(
            power == 0, -log_probability, -torch.expm1(safe * log_probability) / safe
        )

    return label_loss(
        logits,
        target,
        value,
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
