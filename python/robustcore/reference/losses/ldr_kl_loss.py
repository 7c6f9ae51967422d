"""The label-distributionally robust losses in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._indexed import update_by_last_rows
from ._rows import computed_in, label_weights, reduced

__all__ = ["aldr_kl_indexed_loss", "aldr_kl_loss", "aldr_kl_temperature", "ldr_kl_loss"]


def ldr_kl_loss(
    logits: Tensor,
    target: Tensor,
    lam: float | Tensor = 1.0,
    *,
    margin: float = 0.1,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    """Reference of :func:`robustcore.losses.ldr_kl_loss`."""
    rows = _Rows(logits, target, lam, weight, ignore_index, label_smoothing, dim)
    # C softplus(z) / sum softplus(z), in log space: softplus underflows.
    scores = rows.count * rows.of(_log_softplus).softmax(-1)
    loss = rows.loss(scores, margin, torch.zeros_like(rows.lam))
    return reduced(loss, rows.target, rows.ignored, weight, sample_weight, reduction, logits)


def aldr_kl_loss(
    logits: Tensor,
    target: Tensor,
    lam: float | Tensor = 10.0,
    *,
    margin: float = 0.1,
    alpha: float = 2.0,
    lambda0: float = 10.0,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    """Reference of :func:`robustcore.losses.aldr_kl_loss`."""
    rows = _Rows(logits, target, lam, weight, ignore_index, label_smoothing, dim)
    scores = _by_size(rows.logits, rows.masked)
    penalty = alpha * rows.count.log() / (2 * lambda0) * (rows.lam - lambda0).square()
    loss = rows.loss(scores, margin, penalty)
    return reduced(loss, rows.target, rows.ignored, weight, sample_weight, reduction, logits)


def aldr_kl_temperature(
    logits: Tensor, lam: Tensor, *, alpha: float = 2.0, lambda0: float = 10.0, dim: int = -1
) -> Tensor:
    """Reference of :func:`robustcore.losses.aldr_kl_temperature`."""
    compute = computed_in(logits)
    logits, lam = logits.detach().movedim(dim, -1).to(compute), lam.detach().to(compute)
    masked = torch.isneginf(logits)
    count = (~masked).sum(-1).to(compute)
    scores = _by_size(logits, masked).masked_fill(masked, -torch.inf)
    q = ((scores / lam.unsqueeze(-1)).softmax(-1) + 1e-5).masked_fill(masked, 0.0)
    q = q / q.sum(-1, keepdim=True)
    divergence = torch.xlogy(q, q).sum(-1) + count.log()
    strength = (alpha * count.log()).masked_fill(count == 1, 1.0)
    return lambda0 * (1 - divergence.masked_fill(count == 1, 0.0) / strength)


def aldr_kl_indexed_loss(
    logits: Tensor,
    target: Tensor,
    index: Tensor,
    lam: Tensor,
    *,
    margin: float = 0.1,
    alpha: float = 2.0,
    lambda0: float = 10.0,
    update: bool = True,
    start: int = 0,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    """Reference of :func:`robustcore.losses.aldr_kl_indexed_loss`."""
    soft = target.is_floating_point()
    ignored = torch.zeros_like(index, dtype=torch.bool) if soft else target == ignore_index
    place = (index - start).masked_fill(ignored, 0)
    if update and place.numel():
        moved = aldr_kl_temperature(logits, lam[place], alpha=alpha, lambda0=lambda0, dim=dim)
        moved = torch.where(moved.isnan(), lam[place], moved.to(lam.dtype))
        update_by_last_rows(lam, place.flatten(), moved.flatten(), ignored.flatten())
    return aldr_kl_loss(
        logits,
        target,
        lam[place] if place.numel() else lam.new_ones(place.shape),
        margin=margin,
        alpha=alpha,
        lambda0=lambda0,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        dim=dim,
    )


class _Rows:
    """Rows as both losses see them: classes last, ignored rows zero."""

    def __init__(
        self,
        logits: Tensor,
        target: Tensor,
        lam: float | Tensor,
        weight: Tensor | None,
        ignore_index: int,
        label_smoothing: float,
        dim: int,
    ) -> None:
        compute = computed_in(logits)
        logits = logits.movedim(dim, -1).to(compute)
        self.target = target.movedim(dim, -1) if target.is_floating_point() else target
        self.label, self.ignored = label_weights(
            self.target, logits.shape[-1], weight, label_smoothing, ignore_index, compute
        )
        # An ignored row takes no part, whatever it holds.
        self.logits = logits.masked_fill(self.ignored.unsqueeze(-1), 0.0)
        self.masked = torch.isneginf(self.logits)
        self.count = (~self.masked).sum(-1, keepdim=True).to(compute)
        lam = torch.as_tensor(lam, dtype=compute, device=logits.device)
        lam = lam.detach().expand(logits.shape[:-1])
        self.lam = lam.masked_fill(self.ignored, 1.0).unsqueeze(-1)

    def of(self, function) -> Tensor:  # type: ignore[no-untyped-def]
        """``function(logits)``; -inf where masked."""
        finite = self.logits.masked_fill(self.masked, 0.0)
        return function(finite).masked_fill(self.masked, -torch.inf)

    def loss(self, scores: Tensor, margin: float, penalty: Tensor) -> Tensor:
        """lam log mean_k exp((margin [k != c] + s_k - s_c) / lam) - penalty of each label c."""
        exponents = (scores / self.lam).masked_fill(self.masked, -torch.inf)
        total = exponents.logsumexp(-1, keepdim=True)
        probability = (exponents - total).exp()
        # Of all classes but c, summed without c where it has nearly all.
        others = _sum_of_others(probability)
        relieved = others + probability * torch.exp(-margin / self.lam)
        value = margin - scores + self.lam * (total + relieved.log() - self.count.log()) - penalty
        value = value.masked_fill(self.masked, torch.inf).masked_fill(self.label == 0, 0.0)
        return (self.label * value).sum(-1)


def _sum_of_others(probability: Tensor) -> Tensor:
    """1 - p, for the largest p as the sum of the rest."""
    largest = probability.detach().argmax(-1, keepdim=True)
    is_largest = torch.zeros_like(probability).scatter(-1, largest, 1.0) > 0
    rest = probability.masked_fill(is_largest, 0.0).sum(-1, keepdim=True)
    return torch.where(is_largest, rest, 1 - probability)


def _log_softplus(z: Tensor) -> Tensor:
    # Far below zero softplus(z) = e^z - e^(2z) / 2 + ...
    low = z < -18
    near = torch.logaddexp(z, torch.zeros_like(z)).masked_fill(low, 1.0).log()
    return torch.where(low, z - z.clamp(max=0.0).exp() / 2, near)


def _by_size(logits: Tensor, masked: Tensor) -> Tensor:
    """C z / sum |z| over the classes that are not masked; zeros for a row of zeros."""
    finite = logits.masked_fill(masked, 0.0)
    count = (~masked).sum(-1, keepdim=True).to(logits.dtype)
    size = finite.abs().sum(-1, keepdim=True)
    empty = size < torch.finfo(size.dtype).tiny * count
    scores = count * (finite / size.masked_fill(empty, 1.0))
    return scores.masked_fill(empty, 0.0)
