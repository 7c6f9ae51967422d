"""The energy-weighted loss of adversarial training (WEAT) in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from .comp_sum_loss import comp_sum_loss
from .energy_weights import energy_weights
from .pair_kl_divergence import pair_kl_divergence

__all__ = ["energy_weighted_loss"]


def energy_weighted_loss(
    natural_logits: Tensor,
    adversarial_logits: Tensor,
    target: Tensor,
    beta: float | None = None,
    *,
    variant: str = "adversarial",
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
) -> Tensor:
    """Reference of :func:`robustcore.losses.energy_weighted_loss`."""
    weights = energy_weights(natural_logits, dim=dim)
    if sample_weight is not None:
        weights = weights * sample_weight.to(weights.dtype)
    if beta is None:
        beta = {"adversarial": 7.0, "natural": 6.0}[variant]
    labelled = adversarial_logits if variant == "adversarial" else natural_logits
    cross_entropy = comp_sum_loss(
        labelled,
        target,
        sample_weight=weights,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        dim=dim,
    )
    divergence = pair_kl_divergence(
        natural_logits,
        adversarial_logits,
        None if target.is_floating_point() else target,
        sample_weight=weights,
        ignore_index=ignore_index,
        reduction=reduction,
        dim=dim,
    )
    return cross_entropy + beta * divergence
