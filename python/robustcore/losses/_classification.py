"""Arguments of losses that compare rows of logits with class indices, brought into one form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import (
    accumulate_dtype,
    autocast_enabled,
    check_choice,
    check_device,
    check_floating,
    check_int64,
    check_shape,
    check_tensor,
)

__all__ = ["REDUCTIONS", "TwoLogitArguments", "check_class_options", "two_logit_arguments"]

# The numbers of csrc/losses/two_logits.h.
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


class TwoLogitArguments(NamedTuple):
    """Validated arguments: two logit matrices [N, C] and vectors [N]."""

    first: Tensor
    second: Tensor
    gate: Tensor
    target: Tensor
    weight: Tensor | None
    sample_weight: Tensor | None
    reduction: int
    shape: torch.Size  # of the batch, before it was flattened
    result_dtype: torch.dtype


def two_logit_arguments(
    op: str,
    names: tuple[str, str],
    first: Tensor,
    second: Tensor,
    gate: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    dim: int,
) -> TwoLogitArguments:
    check_tensor(op, names[0], first)
    check_tensor(op, names[1], second)
    check_tensor(op, "gate", gate)
    check_tensor(op, "target", target)
    check_int64(op, "ignore_index", ignore_index)
    check_int64(op, "dim", dim)
    check_class_options(op, label_smoothing, reduction)

    device = first.device
    check_device(op, names[1], second, device)
    check_device(op, "gate", gate, device)
    check_device(op, "target", target, device)

    check_floating(op, names[0], first)
    check_floating(op, names[1], second)
    check_floating(op, "gate", gate)
    if target.dtype is not torch.int64:
        raise TypeError(
            f"{op}: target must hold class indices of dtype int64, got "
            f"{str(target.dtype).removeprefix('torch.')}"
        )
    autocast = autocast_enabled(device)
    dtype = first.dtype
    if second.dtype is not dtype:
        if not autocast:
            raise TypeError(
                f"{op}: {names[1]} must have the dtype of {names[0]} "
                f"({str(dtype).removeprefix('torch.')}), got "
                f"{str(second.dtype).removeprefix('torch.')}"
            )
        dtype = torch.promote_types(dtype, second.dtype)
        first, second = first.to(dtype), second.to(dtype)

    dimensions = first.dim()
    if not -dimensions <= dim < dimensions:
        raise ValueError(
            f"{op}: dim must be in [{-dimensions}, {dimensions}) for {names[0]} of shape "
            f"{tuple(first.shape)}, got {dim}"
        )
    if second.shape != first.shape:
        check_shape(op, names[1], second, first.shape)
    if dim not in (-1, dimensions - 1):
        first, second = first.movedim(dim, -1), second.movedim(dim, -1)
    shape = first.shape[:-1]
    classes = first.shape[-1]
    if classes == 0:
        raise ValueError(
            f"{op}: {names[0]} must have at least one class, got shape {tuple(first.shape)}"
        )
    if target.shape != shape:
        check_shape(op, "target", target, shape)
    if gate.shape != shape:
        # A gate network ends in one output per row; that class dimension of size one may stay.
        if gate.dim() == dimensions and gate.shape == _with_one_class(shape, dim, dimensions):
            gate = gate.reshape(shape)
        else:
            check_shape(op, "gate", gate, shape)

    compute = accumulate_dtype(dtype)
    if gate.dtype is not compute:
        gate = gate.to(compute)
    if weight is not None:
        weight = _class_weight(op, weight, device, classes, compute)
    if sample_weight is not None:
        check_tensor(op, "sample_weight", sample_weight)
        check_device(op, "sample_weight", sample_weight, device)
        check_floating(op, "sample_weight", sample_weight)
        check_shape(op, "sample_weight", sample_weight, shape)
        sample_weight = sample_weight.to(compute)
    if dimensions != 2:
        first, second = first.reshape(-1, classes), second.reshape(-1, classes)
        gate, target = gate.reshape(-1), target.reshape(-1)
        sample_weight = None if sample_weight is None else sample_weight.reshape(-1)
    return TwoLogitArguments(
        first,
        second,
        gate,
        target,
        weight,
        sample_weight,
        REDUCTIONS[reduction],
        shape,
        compute if autocast else dtype,
    )


def check_class_options(op: str, label_smoothing: float, reduction: str) -> None:
    """Options that a module can check when it is made."""
    if not isinstance(reduction, str):
        raise TypeError(f"{op}: reduction must be a str, got {type(reduction).__name__}")
    if reduction not in REDUCTIONS:
        check_choice(op, "reduction", reduction, tuple(REDUCTIONS))
    if not isinstance(label_smoothing, int | float):
        raise TypeError(
            f"{op}: label_smoothing must be a float, got {type(label_smoothing).__name__}"
        )
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{op}: label_smoothing must be in [0, 1], got {label_smoothing}")


def _with_one_class(shape: torch.Size, dim: int, dimensions: int) -> torch.Size:
    sizes = list(shape)
    sizes.insert(dim % dimensions, 1)
    return torch.Size(sizes)


def _class_weight(
    op: str, weight: Tensor, device: torch.device, classes: int, compute: torch.dtype
) -> Tensor:
    check_tensor(op, "weight", weight)
    check_device(op, "weight", weight, device)
    check_floating(op, "weight", weight)
    check_shape(op, "weight", weight, (classes,))
    if weight.requires_grad:
        raise ValueError(
            f"{op}: weight must not require grad (class weights are constants; use "
            "sample_weight for weights with a gradient), got a tensor that does"
        )
    return weight.to(compute)
