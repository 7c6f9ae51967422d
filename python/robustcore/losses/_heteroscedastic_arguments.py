"""Arguments of heteroscedastic losses, validated and brought into the form of the operators."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import (
    accumulate_dtype,
    autocast_enabled,
    check_device,
    check_floating,
    check_int64,
    check_shape,
    check_tensor,
)
from ._arguments import check_dim, check_real

__all__ = [
    "HeteroscedasticArguments",
    "check_minimum_probability",
    "check_sampling_options",
    "heteroscedastic_arguments",
]

_MAXIMUM_SAMPLES = 2**30
_MAXIMUM_RANK = 1024


class HeteroscedasticArguments(NamedTuple):
    """Rows [N, C], [N, C, R] and [N, C], in the dtype of computation."""

    mean: Tensor
    low_rank: Tensor
    diagonal: Tensor
    shape: torch.Size  # of the batch, before it was flattened
    result_dtype: torch.dtype


def heteroscedastic_arguments(
    op: str,
    mean: Tensor,
    low_rank: Tensor | None,
    diagonal: Tensor,
    temperature: float,
    samples: int,
    dim: int,
) -> HeteroscedasticArguments:
    check_tensor(op, "mean", mean)
    if low_rank is not None:
        check_tensor(op, "low_rank", low_rank)
    check_tensor(op, "diagonal", diagonal)
    check_sampling_options(op, temperature, samples)
    check_int64(op, "dim", dim)
    for name, tensor in (("low_rank", low_rank), ("diagonal", diagonal)):
        if tensor is not None:
            check_device(op, name, tensor, mean.device)
    check_floating(op, "mean", mean)
    for name, tensor in (("low_rank", low_rank), ("diagonal", diagonal)):
        if tensor is not None:
            check_floating(op, name, tensor)

    check_dim(op, dim, "mean", mean)
    dimensions = mean.dim()
    check_shape(op, "diagonal", diagonal, mean.shape)
    if low_rank is None:
        low_rank = mean.new_empty((*mean.shape, 0))
    elif low_rank.dim() != dimensions + 1 or low_rank.shape[:-1] != mean.shape:
        raise ValueError(
            f"{op}: low_rank must have the shape of mean, {tuple(mean.shape)}, and the rank as a "
            f"last dimension, got {tuple(low_rank.shape)}"
        )
    rank = low_rank.shape[-1]
    if rank > _MAXIMUM_RANK:
        raise ValueError(f"{op}: the rank of low_rank must be at most {_MAXIMUM_RANK}, got {rank}")
    place = dim % dimensions
    if place != dimensions - 1:
        mean, diagonal = mean.movedim(place, -1), diagonal.movedim(place, -1)
        low_rank = low_rank.movedim(place, -2)
    shape, classes = mean.shape[:-1], mean.shape[-1]
    if classes == 0:
        raise ValueError(f"{op}: mean must have at least one class, got shape {tuple(mean.shape)}")
    dtype = torch.promote_types(mean.dtype, diagonal.dtype)
    dtype = torch.promote_types(dtype, low_rank.dtype)
    compute = accumulate_dtype(dtype)
    rows = math.prod(shape)
    return HeteroscedasticArguments(
        mean.to(compute).reshape(rows, classes),
        low_rank.to(compute).reshape(rows, classes, rank),
        diagonal.to(compute).reshape(rows, classes),
        shape,
        compute if autocast_enabled(mean.device) else dtype,
    )


def check_sampling_options(op: str, temperature: float, samples: int) -> None:
    """Options that a module can check when it is made."""
    check_real(op, "temperature", temperature)
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"{op}: temperature must be positive and finite, got {temperature}")
    check_int64(op, "samples", samples)
    if not 1 <= samples <= _MAXIMUM_SAMPLES:
        raise ValueError(f"{op}: samples must be in [1, 2**30], got {samples}")


def check_minimum_probability(op: str, minimum_probability: float) -> None:
    check_real(op, "minimum_probability", minimum_probability)
    if not 0.0 <= minimum_probability < 1.0:
        raise ValueError(f"{op}: minimum_probability must be in [0, 1), got {minimum_probability}")
