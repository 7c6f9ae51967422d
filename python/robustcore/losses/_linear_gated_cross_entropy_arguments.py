"""Validation of the arguments of linear_gated_cross_entropy."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import (
    accumulate_dtype,
    autocast_enabled,
    check_device,
    check_dtype_of,
    check_floating,
    check_int64,
    check_shape,
    check_tensor,
)
from ._arguments import check_class_weight, check_soft_target

__all__ = ["OP", "Heads", "LinearArguments", "validated"]

OP = "linear_gated_cross_entropy"
# Features, weight and bias of the prediction head, then of the noise head.
Heads = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor | None]


class LinearArguments(NamedTuple):
    """Validated arguments: matrices and vectors."""

    heads: Heads
    gate: Tensor
    target: Tensor
    class_weight: Tensor | None
    sample_weight: Tensor | None
    shape: torch.Size  # of the batch, before it was flattened
    result_dtype: torch.dtype


def validated(
    heads: Heads,
    gate: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    chunk_rows: int | None,
) -> LinearArguments:
    features, weight, bias, noise_features, noise_weight, noise_bias = heads
    check_tensor(OP, "features", features)
    device, dtype = features.device, features.dtype
    autocast = autocast_enabled(device)
    if (
        autocast
        or dtype not in (torch.float32, torch.float64)
        or chunk_rows is not None
        or type(ignore_index) is not int
        or not _are(dtype, device, (weight, noise_features, noise_weight, gate))
        or not _are(dtype, device, (bias, noise_bias, class_weight, sample_weight), optional=True)
        or not _are(torch.int64, device, (target,))
    ):
        # Not the commonest case, or an error: look at one argument after another.
        _check_one_by_one(
            heads, gate, target, class_weight, sample_weight, ignore_index, chunk_rows, autocast
        )
        if autocast and dtype is not torch.float64:  # a linear layer too leaves float64 alone
            dtype = torch.get_autocast_dtype(device.type)

    soft = target.is_floating_point()
    shape = features.shape[:-1] if soft and features.dim() else target.shape
    _check_shapes(heads, shape)
    if soft:
        check_shape(OP, "target", target, (*shape, weight.shape[0]))
    if gate.shape != shape:
        if gate.shape != (*shape, 1):
            check_shape(OP, "gate", gate, shape)
        gate = gate.squeeze(-1)
    if sample_weight is not None:
        check_shape(OP, "sample_weight", sample_weight, shape)
    if class_weight is not None:
        check_class_weight(OP, "class_weight", class_weight, device, weight.shape[0])

    compute = accumulate_dtype(dtype)
    gate = _as(compute, gate)
    class_weight = None if class_weight is None else _as(compute, class_weight)
    sample_weight = None if sample_weight is None else _as(compute, sample_weight)
    features, noise_features = _as(dtype, features), _as(dtype, noise_features)
    if len(shape) != 1:
        rows = gate.numel()
        features = features.reshape(rows, weight.shape[1])
        noise_features = noise_features.reshape(rows, noise_weight.shape[1])
        gate = gate.reshape(-1)
        target = target.reshape(rows, weight.shape[0]) if soft else target.reshape(-1)
        sample_weight = None if sample_weight is None else sample_weight.reshape(-1)
    return LinearArguments(
        (
            features,
            _as(dtype, weight),
            None if bias is None else _as(dtype, bias),
            noise_features,
            _as(dtype, noise_weight),
            None if noise_bias is None else _as(dtype, noise_bias),
        ),
        gate,
        target,
        class_weight,
        sample_weight,
        shape,
        compute if autocast else dtype,
    )


def _are(
    dtype: torch.dtype, device: torch.device, tensors: tuple[Any, ...], optional: bool = False
) -> bool:
    """Whether these are dense tensors of this dtype on this device."""
    for tensor in tensors:
        if tensor is None and optional:
            continue
        if (
            not isinstance(tensor, Tensor)
            or tensor.dtype is not dtype
            or tensor.layout is not torch.strided
            or tensor.device != device
        ):
            return False
    return True


def _check_one_by_one(
    heads: Heads,
    gate: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    chunk_rows: int | None,
    autocast: bool,
) -> None:
    """Types, devices and dtypes, in this order."""
    names = ("features", "weight", "bias", "noise_features", "noise_weight", "noise_bias")
    named = [
        *(pair for pair in zip(names, heads) if pair[1] is not None or "bias" not in pair[0]),
        ("gate", gate),
        *((("class_weight", class_weight),) if class_weight is not None else ()),
        *((("sample_weight", sample_weight),) if sample_weight is not None else ()),
    ]
    for name, tensor in (*named, ("target", target)):
        check_tensor(OP, name, tensor)
    check_int64(OP, "ignore_index", ignore_index)
    if chunk_rows is not None:
        check_int64(OP, "chunk_rows", chunk_rows)
        if chunk_rows < 1:
            raise ValueError(f"{OP}: chunk_rows must be positive or None, got {chunk_rows}")
    features = heads[0]
    for name, tensor in (*named, ("target", target)):
        check_device(OP, name, tensor, features.device)
    for name, tensor in named:
        check_floating(OP, name, tensor)
    if target.dtype is not torch.int64:
        check_soft_target(OP, target)
    for name, head in zip(names, heads):
        if head is not None and not autocast:
            check_dtype_of(OP, name, head, "features", features.dtype)


def _as(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def _check_shapes(heads: Heads, shape: torch.Size) -> None:
    features, weight, bias, noise_features, noise_weight, noise_bias = heads
    _check_head("", features, weight, shape)
    classes = weight.shape[0]
    if classes == 0:
        raise ValueError(
            f"{OP}: weight must have at least one class, got shape {tuple(weight.shape)}"
        )
    if bias is not None:
        check_shape(OP, "bias", bias, (classes,))
    _check_head("noise_", noise_features, noise_weight, shape)
    if noise_weight.shape[0] != classes:
        check_shape(OP, "noise_weight", noise_weight, (classes, noise_weight.shape[1]))
    if noise_bias is not None:
        check_shape(OP, "noise_bias", noise_bias, (classes,))


def _check_head(prefix: str, features: Tensor, weight: Tensor, shape: torch.Size) -> None:
    if features.dim() == 0 or features.shape[:-1] != shape:
        raise ValueError(
            f"{OP}: {prefix}features must have shape ({', '.join((*map(str, shape), 'D'))}) for "
            f"rows of shape {tuple(shape)}, got {tuple(features.shape)}"
        )
    if weight.dim() != 2 or weight.shape[1] != features.shape[-1]:
        raise ValueError(
            f"{OP}: {prefix}weight must have shape (C, {features.shape[-1]}), got "
            f"{tuple(weight.shape)}"
        )
