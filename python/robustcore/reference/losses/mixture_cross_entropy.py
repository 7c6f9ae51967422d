"""Cross-entropy of a mixture of two softmaxes in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from ._rows import computed_in, label_weights, reduced
from .mixture_log_softmax import mixture_log_softmax

__all__ = ["mixture_cross_entropy"]


def mixture_cross_entropy(
    logits1: Tensor,
    logits2: Tensor,
    gate: Tensor,
    target: Tensor,
    scale1: float | Tensor = 1.0,
    scale2: float | Tensor = 1.0,
    *,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    """Reference of :func:`robustcore.losses.mixture_cross_entropy`."""
    compute = computed_in(logits1, logits2)
    z1, z2 = logits1.movedim(dim, -1).to(compute), logits2.movedim(dim, -1).to(compute)
    target = target.movedim(dim, -1) if target.is_floating_point() else target
    label, ignored = label_weights(
        target, z1.shape[-1], weight, label_smoothing, ignore_index, compute
    )

    # An ignored row takes no part, whatever it holds.
    def kept(value: Tensor) -> Tensor:
        if value.dim() == 0:
            return value.to(compute)
        return value.reshape(ignored.shape).to(compute).masked_fill(ignored, 0.0)

    log_probability = mixture_log_softmax(
        z1.masked_fill(ignored.unsqueeze(-1), 0.0),
        z2.masked_fill(ignored.unsqueeze(-1), 0.0),
        kept(gate),
        kept(scale1) if isinstance(scale1, Tensor) else scale1,
        kept(scale2) if isinstance(scale2, Tensor) else scale2,
    )
    rows = -(label * log_probability.masked_fill(label == 0, 0.0)).sum(-1)
    return reduced(rows, target, ignored, weight, sample_weight, reduction, logits1)
