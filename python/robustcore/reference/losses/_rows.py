"""What the reference losses of rows of logits share: labels, reductions, options."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._checks import accumulate_dtype, autocast_enabled

__all__ = ["computed_in", "label_loss", "label_weights", "reduced", "transformed"]


def computed_in(*tensors: Tensor) -> torch.dtype:
    """The dtype in which a loss of these tensors is computed."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return accumulate_dtype(dtype)


def transformed(logits: Tensor, temperature: float, softcap: float | None) -> Tensor:
    """``softcap * tanh(logits / softcap) / temperature``; classes masked with -inf stay masked."""
    if softcap is not None:
        bent = softcap * torch.tanh(logits / softcap)
        logits = torch.where(torch.isneginf(logits), logits, bent)
    return logits / temperature


def label_weights(
    target: Tensor,
    classes: int,
    weight: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The weight of each class in its row's loss [..., C], and which rows are ignored [...]."""
    if target.is_floating_point():
        ignored = torch.zeros(target.shape[:-1], dtype=torch.bool, device=target.device)
        label = target.to(dtype)
    else:
        ignored = target == ignore_index
        label = F.one_hot(target.masked_fill(ignored, 0), classes).to(dtype)
    label = (1 - label_smoothing) * label + label_smoothing / classes
    if weight is not None:
        label = label * weight.to(dtype)
    return label.masked_fill(ignored.unsqueeze(-1), 0.0), ignored


def reduced(
    rows: Tensor,
    target: Tensor,
    ignored: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    reduction: str,
    result: Tensor,
) -> Tensor:
    """The loss from the losses of the rows, in the dtype that a loss of ``result`` has."""
    compute = rows.dtype
    rows = rows.masked_fill(ignored, 0.0)
    if sample_weight is not None:
        rows = rows * sample_weight.to(compute).masked_fill(ignored, 0.0)
    if reduction == "none":
        loss = rows
    elif reduction == "sum":
        loss = rows.sum()
    elif target.is_floating_point():
        loss = rows.sum() / rows.numel()
    else:
        kept = (~ignored).to(compute)
        if weight is not None:
            kept = kept * weight.to(compute)[target.masked_fill(ignored, 0)]
        loss = rows.sum() / kept.sum()
    return loss if autocast_enabled(result.device) else loss.to(result.dtype)


def label_loss(
    logits: Tensor,
    target: Tensor,
    value: Callable[[Tensor], Tensor],
    *,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    temperature: float,
    softcap: float | None,
    lse_square_scale: float,
    reduction: str,
    result: Tensor,
    extra: Tensor | None = None,
) -> Tensor:
    """Label weights times a function of the log-probabilities, summed over the classes.

    ``logits``: [..., C] in the dtype of computation, classes last; ``value``: maps
    log-probabilities [..., C] to what a label of that class costs.
    """
    label, ignored = label_weights(
        target, logits.shape[-1], weight, label_smoothing, ignore_index, logits.dtype
    )
    # An ignored row takes no part, whatever it holds.
    logits = transformed(logits.masked_fill(ignored.unsqueeze(-1), 0.0), temperature, softcap)
    absent = label == 0
    log_probability = logits.log_softmax(-1).masked_fill(absent, 0.0)
    rows = (label * value(log_probability).masked_fill(absent, 0.0)).sum(-1)
    if lse_square_scale != 0.0:
        rows = rows + lse_square_scale * logits.logsumexp(-1).square()
    if extra is not None:
        rows = rows + extra.masked_fill(ignored, 0.0)
    return reduced(rows, target, ignored, weight, sample_weight, reduction, result)
