"""Arguments of losses over rows of logits, validated and brought into the form of the operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import (
    accumulate_dtype,
    autocast_enabled,
    check_choice,
    check_device,
    check_dtype_of,
    check_floating,
    check_int64,
    check_shape,
    check_tensor,
    dtype_name,
)

__all__ = [
    "REDUCTIONS",
    "REDUCTION_NAMES",
    "RowLossArguments",
    "check_class_options",
    "check_class_weight",
    "check_dim",
    "check_real",
    "check_row_vector",
    "check_soft_target",
    "check_switch",
    "row_loss_arguments",
]

# The numbers of csrc/losses/row_problem.h.
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
REDUCTION_NAMES = tuple(REDUCTIONS)

_ROW_VALUES = 3


class RowLossArguments(NamedTuple):
    """Validated arguments of a loss over N rows of C classes.

    ``raw`` are the arguments of its operators: logits [N, C]; second [N, C]; three row values [N];
    target, int64 [N] or floating [N, C]; weight [C]; sample_weight [N], each but logits None where
    not given; then parameters, ignore_index, label_smoothing, temperature, softcap
    (0: none), lse_square, reduction.
    """

    raw: tuple[Any, ...]
    shape: torch.Size  # of the batch, before it was flattened
    result_dtype: torch.dtype
    inplace_gradients: bool


def row_loss_arguments(
    op: str,
    logits: tuple[str, Tensor],
    target: Tensor | None,
    *,
    second: tuple[str, Tensor] | None = None,
    row_values: tuple[tuple[str, Tensor | None], ...] = (),
    parameters: tuple[float, ...] = (),
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
    soft_labels: bool = True,
    needs_target: bool = True,
) -> RowLossArguments:
    """Checks the arguments of the public function ``op``, in the order of design: type, device, ...

    Args:
        op: Name in errors.
        logits, second: Name and value of the matrices.
        row_values: Name and value of up to three vectors of one number per row.
        soft_labels: Whether ``target`` may hold class probabilities.
        needs_target: Whether ``target`` may be None.
    """
    name, first = logits
    check_tensor(op, name, first)
    if second is not None:
        check_tensor(op, *second)
    for row_name, row_value in row_values:
        if row_value is not None:
            check_tensor(op, row_name, row_value)
    if target is not None or needs_target:
        check_tensor(op, "target", target)
    check_int64(op, "ignore_index", ignore_index)
    check_int64(op, "dim", dim)
    check_class_options(op, label_smoothing, reduction, temperature, softcap, lse_square_scale)
    check_switch(op, "inplace_gradients", inplace_gradients)

    device = first.device
    if second is not None:
        check_device(op, second[0], second[1], device)
    for row_name, row_value in row_values:
        if row_value is not None:
            check_device(op, row_name, row_value, device)
    if target is not None:
        check_device(op, "target", target, device)

    check_floating(op, name, first)
    dtype = first.dtype
    autocast = autocast_enabled(device)
    other: Tensor | None = None
    if second is not None:
        second_name, other = second
        check_floating(op, second_name, other)
        if other.dtype is not dtype:
            if not autocast:
                check_dtype_of(op, second_name, other, name, dtype)
            dtype = torch.promote_types(dtype, other.dtype)
            first, other = first.to(dtype), other.to(dtype)
    for row_name, row_value in row_values:
        if row_value is not None:
            check_floating(op, row_name, row_value)
    soft = target is not None and target.dtype is not torch.int64
    if target is not None and soft:
        check_soft_target(op, target, soft_labels)

    dimensions = first.dim()
    check_dim(op, dim, name, first)
    if other is not None and other.shape != first.shape:
        check_shape(op, second[0], other, first.shape)  # type: ignore[index]
    if target is not None and soft and target.shape != first.shape:
        check_shape(op, "target", target, first.shape)
    if dim not in (-1, dimensions - 1):
        first = first.movedim(dim, -1)
        other = None if other is None else other.movedim(dim, -1)
        if target is not None and soft:
            target = target.movedim(dim, -1)
    shape = first.shape[:-1]
    classes = first.shape[-1]
    if classes == 0:
        raise ValueError(f"{op}: {name} must have at least one class, got shape {(*shape, 0)}")
    if target is not None and not soft and target.shape != shape:
        check_shape(op, "target", target, shape)

    compute = accumulate_dtype(dtype)
    vectors: list[Tensor | None] = [None] * _ROW_VALUES
    for k, (row_name, row_value) in enumerate(row_values):
        if row_value is None:
            continue
        if row_value.shape != shape:
            # A network with one output per row: that class dimension of size one may stay.
            if row_value.shape == _with_one_class(shape, dim, dimensions):
                row_value = row_value.reshape(shape)
            else:
                check_shape(op, row_name, row_value, shape)
        row_value = row_value if row_value.dtype is compute else row_value.to(compute)
        vectors[k] = row_value if dimensions == 2 else row_value.reshape(-1)
    if weight is not None:
        check_class_weight(op, "weight", weight, device, classes)
        weight = weight.to(compute)
    if sample_weight is not None:
        check_row_vector(op, "sample_weight", sample_weight, device, shape)
        sample_weight = sample_weight.to(compute)
    if target is not None and soft:
        target = target.to(compute)
    if dimensions != 2:
        first = first.reshape(-1, classes)
        other = None if other is None else other.reshape(-1, classes)
        if target is not None:
            target = target.reshape(-1, classes) if soft else target.reshape(-1)
        sample_weight = None if sample_weight is None else sample_weight.reshape(-1)
    raw = (
        first,
        other,
        *vectors,
        target,
        weight,
        sample_weight,
        parameters,
        ignore_index,
        label_smoothing,
        temperature,
        0.0 if softcap is None else softcap,
        lse_square_scale,
        REDUCTIONS[reduction],
    )
    return RowLossArguments(raw, shape, compute if autocast else dtype, inplace_gradients)


def check_class_options(
    op: str,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    temperature: float = 1.0,
    softcap: float | None = None,
    lse_square_scale: float = 0.0,
) -> None:
    """Options that a module can check when it is made."""
    if not isinstance(reduction, str):
        raise TypeError(f"{op}: reduction must be a str, got {type(reduction).__name__}")
    if reduction not in REDUCTIONS:
        check_choice(op, "reduction", reduction, REDUCTION_NAMES)
    check_real(op, "label_smoothing", label_smoothing)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{op}: label_smoothing must be in [0, 1], got {label_smoothing}")
    check_real(op, "temperature", temperature)
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"{op}: temperature must be positive and finite, got {temperature}")
    if softcap is not None:
        check_real(op, "softcap", softcap)
        if not 0.0 < softcap < float("inf"):
            raise ValueError(f"{op}: softcap must be positive and finite, or None, got {softcap}")
    check_real(op, "lse_square_scale", lse_square_scale)
    if not 0.0 <= lse_square_scale < float("inf"):
        raise ValueError(
            f"{op}: lse_square_scale must be finite and not negative, got {lse_square_scale}"
        )


def check_real(op: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{op}: {name} must be a float, got {type(value).__name__}")


def check_switch(op: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a bool, got {type(value).__name__}")


def check_dim(op: str, dim: int, name: str, tensor: Tensor) -> None:
    """``dim`` must be one of the dimensions of the argument ``name``."""
    dimensions = tensor.dim()
    if not -dimensions <= dim < dimensions:
        raise ValueError(
            f"{op}: dim must be in [{-dimensions}, {dimensions}) for {name} of shape "
            f"{tuple(tensor.shape)}, got {dim}"
        )


def check_row_vector(
    op: str, name: str, tensor: Tensor, device: torch.device, shape: Sequence[int]
) -> None:
    """A floating number per row (or class)."""
    check_tensor(op, name, tensor)
    check_device(op, name, tensor, device)
    check_floating(op, name, tensor)
    check_shape(op, name, tensor, shape)


def check_soft_target(op: str, target: Tensor, allowed: bool = True) -> None:
    """What a ``target`` that is not int64 must be: class probabilities, where they are allowed."""
    if not allowed:
        raise TypeError(
            f"{op}: target must hold class indices of dtype int64, got {dtype_name(target.dtype)}"
        )
    if not target.is_floating_point():
        raise TypeError(
            f"{op}: target must hold class indices (int64) or class probabilities (a floating "
            f"dtype), got {dtype_name(target.dtype)}"
        )
    check_floating(op, "target", target)
    if target.requires_grad:
        raise ValueError(f"{op}: target must not require grad, but does")


def _with_one_class(shape: torch.Size, dim: int, dimensions: int) -> torch.Size:
    sizes = list(shape)
    sizes.insert(dim % dimensions, 1)
    return torch.Size(sizes)


def check_class_weight(
    op: str, name: str, weight: Tensor, device: torch.device | None = None, classes: int = 0
) -> None:
    """Class weights are constants; a module does not know yet for which device and classes."""
    if device is None:
        check_tensor(op, name, weight)
        check_floating(op, name, weight)
    else:
        check_row_vector(op, name, weight, device, (classes,))
    if weight.requires_grad:
        raise ValueError(
            f"{op}: {name} must not require grad (class weights are constants; use "
            "sample_weight for weights with a gradient), got a tensor that does"
        )
