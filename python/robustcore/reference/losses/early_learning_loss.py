"""Early-learning regularisation in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._indexed import update_by_last_rows
from ._rows import computed_in, label_loss, transformed

__all__ = ["early_learning_loss", "loss_of_state"]

_LEAST = 1e-4


def early_learning_loss(
    logits: Tensor,
    target: Tensor,
    index: Tensor,
    state: Tensor,
    *,
    beta: float = 0.7,
    strength: float = 3.0,
    update: bool = True,
    start: int = 0,
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
    """Reference of :func:`robustcore.losses.early_learning_loss`."""
    used = _state_of_rows(
        logits.detach().movedim(dim, -1),
        target,
        index - start,
        state,
        beta if update else None,
        ignore_index,
        temperature,
        softcap,
    )
    return loss_of_state(
        logits,
        target,
        used,
        strength=strength,
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


def _state_of_rows(
    logits: Tensor,
    target: Tensor,
    place: Tensor,
    state: Tensor,
    beta: float | None,
    ignore_index: int,
    temperature: float,
    softcap: float | None,
) -> Tensor:
    """The state that each row uses [..., C]; ``state`` is updated unless ``beta`` is None."""
    ignored = torch.zeros_like(place, dtype=torch.bool)
    if not target.is_floating_point():
        ignored = target == ignore_index
    place = place.masked_fill(ignored, 0).flatten()
    ignored = ignored.flatten()
    shape, classes = logits.shape, logits.shape[-1]
    if place.numel() == 0:
        return torch.zeros(shape, dtype=state.dtype, device=state.device)
    if beta is None:
        return state[place].reshape(shape)
    probability = transformed(logits.to(state.dtype), temperature, softcap).softmax(-1)
    probability = probability.reshape(-1, classes).clamp(_LEAST, 1 - _LEAST)
    moved = beta * state[place] + (1 - beta) * probability / probability.sum(-1, keepdim=True)
    moved = torch.where(probability.isnan().any(-1, keepdim=True), state[place], moved)
    update_by_last_rows(state, place, moved, ignored)
    return state[place].reshape(shape)


def loss_of_state(
    logits: Tensor,
    target: Tensor,
    used: Tensor,
    *,
    strength: float,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    temperature: float,
    softcap: float | None,
    lse_square_scale: float,
    reduction: str,
    dim: int = -1,
) -> Tensor:
    """The loss with the state ``used`` of each row [..., C], which is a constant."""
    compute = computed_in(logits)
    result, logits = logits, logits.movedim(dim, -1).to(compute)
    target = target.movedim(dim, -1) if target.is_floating_point() else target
    finite = logits
    if not target.is_floating_point():
        ignored = (target == ignore_index).unsqueeze(-1)
        finite, used = finite.masked_fill(ignored, 0.0), used.masked_fill(ignored, 0.0)
    probability = transformed(finite, temperature, softcap).softmax(-1)
    agreement = (used.to(compute) * probability.clamp(_LEAST, 1 - _LEAST)).sum(-1)
    return label_loss(
        logits,
        target,
        torch.neg,
        extra=strength * torch.log(1 - agreement),
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
