"""The heteroscedastic cross-entropy in plain PyTorch: all samples of all rows at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..._checks import accumulate_dtype, autocast_enabled
from ..._random import seed_tensor
from ..random import normal_quads

__all__ = [
    "heteroscedastic_cross_entropy",
    "heteroscedastic_log_probabilities",
    "heteroscedastic_noise",
]


def heteroscedastic_noise(
    seed: Tensor, rows: int, samples: int, rank: int, classes: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The normal numbers of the kernels: float32 [rows, samples, rank] and [.., classes]."""

    def arange(count: int) -> Tensor:
        return torch.arange(count, device=device)

    row, quad = arange(rows)[:, None, None], arange((samples + 3) // 4)[:, None]

    def numbers(columns: int, stream: int) -> Tensor:
        quads = normal_quads(
            seed, arange(columns), quad | stream, row & 0xFFFFFFFF, (row >> 32) & 0xFFFFFFFF
        )
        # [rows, quads, columns, 4]: the four numbers of a counter are four samples.
        return quads.movedim(-1, 2).flatten(1, 2)[:, :samples]

    return numbers(rank, 2**31), numbers(classes, 0)


def heteroscedastic_log_probabilities(
    mean: Tensor,
    low_rank: Tensor | None,
    diagonal: Tensor,
    *,
    temperature: float = 1.0,
    samples: int = 1000,
    dim: int = -1,
    seed: int | Tensor | None = None,
    noise: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Reference of :func:`robustcore.losses.heteroscedastic_log_probabilities`.

    Args:
        noise: Numbers to use instead of the generator's: [rows, samples, rank] and
            [rows, samples, classes], where rows are counted over all batch dimensions.
    """
    log_q = _sampled_log_softmax(
        mean, low_rank, diagonal, temperature, samples, dim % mean.dim(), seed, noise
    )
    log_p = log_q.logsumexp(1) - math.log(log_q.shape[1])
    log_p = log_p.reshape(mean.movedim(dim, -1).shape).movedim(-1, dim)
    return _in_result_dtype(log_p, mean, low_rank, diagonal)


def _sampled_log_softmax(
    mean: Tensor,
    low_rank: Tensor | None,
    diagonal: Tensor,
    temperature: float,
    samples: int,
    place: int,
    seed: int | Tensor | None,
    noise: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """log softmax(u / temperature): [rows, samples, classes], in the dtype of computation."""
    compute = accumulate_dtype(_common_dtype(mean, low_rank, diagonal))
    u, d = (x.movedim(place, -1).to(compute) for x in (mean, diagonal))
    rows, classes = u.shape[:-1].numel(), u.shape[-1]
    u, d = u.reshape(rows, 1, classes), d.reshape(rows, 1, classes)
    v = u.new_zeros(rows, classes, 0)
    if low_rank is not None:
        rank = low_rank.shape[-1]
        v = low_rank.movedim(place, -2).to(compute).reshape(rows, classes, rank)
    if noise is None:
        seed = seed_tensor("heteroscedastic_log_probabilities", seed, mean.device)
        noise = heteroscedastic_noise(seed, rows, samples, v.shape[-1], classes, mean.device)
    for_rank, for_class = (n.to(compute) for n in noise)
    u = u + for_rank @ v.transpose(1, 2) + d * for_class
    return (u / temperature).log_softmax(-1)


def _common_dtype(mean: Tensor, low_rank: Tensor | None, diagonal: Tensor) -> torch.dtype:
    dtype = torch.promote_types(mean.dtype, diagonal.dtype)
    return dtype if low_rank is None else torch.promote_types(dtype, low_rank.dtype)


def _in_result_dtype(
    result: Tensor, mean: Tensor, low_rank: Tensor | None, diagonal: Tensor
) -> Tensor:
    dtype = _common_dtype(mean, low_rank, diagonal)
    return result if autocast_enabled(result.device) else result.to(dtype)


def heteroscedastic_cross_entropy(
    mean: Tensor,
    low_rank: Tensor | None,
    diagonal: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    samples: int = 1000,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    minimum_probability: float = 1e-7,
    ignore_index: int = -100,
    reduction: str = "mean",
    dim: int = -1,
    seed: int | Tensor | None = None,
    noise: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Reference of :func:`robustcore.losses.heteroscedastic_cross_entropy`; ``noise`` as above."""
    compute = accumulate_dtype(_common_dtype(mean, low_rank, diagonal))
    place = dim % mean.dim()
    ignored = target == ignore_index

    # An ignored row takes no part, whatever it holds.
    def present(x: Tensor, after: int) -> Tensor:
        absent = ignored.reshape(*ignored.shape, *(1,) * after)
        return x.to(compute).masked_fill(absent, 0.0)

    log_q = _sampled_log_softmax(
        present(mean.movedim(place, -1), 1),
        None if low_rank is None else present(low_rank.movedim(place, -2), 2),
        present(diagonal.movedim(place, -1), 1),
        temperature,
        samples,
        mean.dim() - 1,
        seed,
        noise,
    )
    label = target.masked_fill(ignored, 0)
    own = label.reshape(-1, 1, 1).expand(-1, log_q.shape[1], 1)
    log_p = log_q.gather(-1, own).squeeze(-1).logsumexp(1) - math.log(log_q.shape[1])
    if minimum_probability > 0:
        log_p = log_p.clamp_min(math.log(minimum_probability))
    rows = (-log_p).reshape(target.shape).masked_fill(ignored, 0.0)
    if weight is not None:
        rows = rows * weight.to(compute)[label]
    if sample_weight is not None:
        rows = rows * sample_weight.to(compute).masked_fill(ignored, 0.0)
    if reduction == "none":
        loss = rows
    elif reduction == "sum":
        loss = rows.sum()
    else:
        kept = (~ignored).to(compute)
        if weight is not None:
            kept = kept * weight.to(compute)[label]
        loss = rows.sum() / kept.sum()
    return _in_result_dtype(loss, mean, low_rank, diagonal)
