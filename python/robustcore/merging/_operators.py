"""Operators of the merging family: shape functions, derivatives, choice of the reference."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _library as _library_checks
from .._errors import translated
from .._library import functorch_active
from .._reference import wants_reference
from . import _weight_operators as _weight_operators
from ._without_gradient import register_without_gradient

__all__ = ["implementation"]

_OPS = torch.ops.robustcore


def tall_mask_codes(
    base: Sequence[Tensor],
    finetuned: Sequence[Tensor],
    merged: Sequence[Tensor],
    tasks: int,
    lambdas: Sequence[float],
    strict: bool,
) -> tuple[Tensor, Tensor]:
    # Dynamo cannot enter a context manager of this kind.
    if torch.compiler.is_compiling():
        with torch.no_grad():
            return _OPS.tall_masks(base, finetuned, merged, tasks, lambdas, strict)
    with translated, torch.no_grad():
        return _OPS.tall_masks(base, finetuned, merged, tasks, lambdas, strict)


def _call(name: str) -> Any:
    operator = getattr(_OPS, name).default

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return operator(*args)
        with translated:
            return operator(*args)

    call.__name__ = name
    return call


mask_select = _call("mask_select")
mask_unpack = _call("mask_unpack")
mask_counts = _call("mask_counts")
mask_histogram = _call("mask_histogram")
mask_overlap = _call("mask_overlap")
mask_consensus = _call("mask_consensus")
mask_apply_ = _call("mask_apply_")
merge_weights_ = _call("merge_weights_")
magnitude_histogram_ = _call("magnitude_histogram_")
magnitude_ties = _call("magnitude_ties")
compare_weights = _call("compare_weights")
mask_switch_ = _call("mask_switch_")
_raw_apply = _call("mask_apply")
_raw_multiply = _call("mask_multiply")


def mask_apply(base: Sequence[Tensor], merged: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
    refuse_tangents("PackedMasks.apply", [*base, *merged])
    if not torch.compiler.is_compiling() and functorch_active():
        return list(_Apply.apply(mask, len(base), *base, *merged))
    return _raw_apply(base, merged, mask)


def mask_multiply(tensors: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
    refuse_tangents("PackedMasks.apply", tensors)
    if not torch.compiler.is_compiling() and functorch_active():
        return list(_Multiply.apply(mask, *tensors))
    return _raw_multiply(tensors, mask)


def refuse_tangents(op: str, tensors: Sequence[Tensor]) -> None:
    """The operators have no forward-mode derivative and would drop tangents without a word."""
    if forward_ad._current_level >= 0:
        _library_checks.refuse_tangents(op, tensors)


class _Apply(torch.autograd.Function):
    """``mask_apply`` for torch.func, which wants tensors as arguments and not lists of them."""

    @staticmethod
    def forward(mask: Any, count: Any, *tensors: Any) -> Any:
        return tuple(_raw_apply(tensors[:count], tensors[count:], mask))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        mask, count, *tensors = inputs
        ctx.save_for_backward(mask)
        ctx.merged_dtypes = [tensor.dtype for tensor in tensors[count:]]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (mask,) = ctx.saved_tensors
        wide = [grad.to(dtype) for grad, dtype in zip(grads, ctx.merged_dtypes, strict=True)]
        return None, None, *grads, *mask_multiply(wide, mask)


class _Multiply(torch.autograd.Function):
    """``mask_multiply`` for torch.func."""

    @staticmethod
    def forward(mask: Any, *tensors: Any) -> Any:
        return tuple(_raw_multiply(tensors, mask))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, *mask_multiply(grads, ctx.saved_tensors[0])


def implementation(tensor: Tensor) -> Any:
    """Where to take the functions above from, for ``tensor``: this module, or the reference."""
    if wants_reference(tensor):
        from ..reference import merging as reference

        return reference
    return sys.modules[__name__]


def _words(parameters: int) -> int:
    return (parameters + 63) // 64


@torch.library.register_fake("robustcore::tall_masks")
def _(base: Any, finetuned: Any, merged: Any, tasks: Any, lambdas: Any, strict: Any) -> Any:
    words = _words(sum(tensor.numel() for tensor in base))
    planes = len(lambdas).bit_length()
    codes = base[0].new_empty((tasks, planes, words), dtype=torch.int64)
    return codes, base[0].new_empty((tasks, len(lambdas)), dtype=torch.int64)


@torch.library.register_fake("robustcore::mask_select")
def _(codes: Any, ranks: Any) -> Any:
    return codes.new_empty((codes.shape[0], codes.shape[2]))


@torch.library.register_fake("robustcore::mask_unpack")
def _(mask: Any, parameters: Any) -> Any:
    return mask.new_empty((parameters,), dtype=torch.bool)


@torch.library.register_fake("robustcore::mask_counts")
def _(masks: Any, parameters: Any) -> Any:
    return masks.new_empty((parameters,), dtype=torch.int32)


@torch.library.register_fake("robustcore::mask_histogram")
def _(masks: Any, parameters: Any) -> Any:
    return masks.new_empty((masks.shape[0] + 1,))


@torch.library.register_fake("robustcore::mask_overlap")
def _(masks: Any) -> Any:
    return masks.new_empty((masks.shape[0], masks.shape[0]))


@torch.library.register_fake("robustcore::mask_consensus")
def _(masks: Any, least: Any) -> Any:
    return masks.new_empty((masks.shape[1],))


@torch.library.register_fake("robustcore::mask_apply")
def _(base: Any, merged: Any, mask: Any) -> Any:
    return [tensor.new_empty(tensor.shape) for tensor in base]


@torch.library.register_fake("robustcore::mask_apply_")
def _(base: Any, merged: Any, mask: Any) -> None:
    return None


@torch.library.register_fake("robustcore::mask_switch_")
def _(weights: Any, base: Any, merged: Any, before: Any, after: Any) -> None:
    return None


@torch.library.register_fake("robustcore::mask_multiply")
def _(tensors: Any, mask: Any) -> Any:
    return [tensor.new_empty(tensor.shape) for tensor in tensors]


def _apply_context(ctx: Any, inputs: Any, output: Any) -> None:
    _base, merged, mask = inputs
    ctx.save_for_backward(mask)
    ctx.merged_dtypes = [tensor.dtype for tensor in merged]


def _apply_backward(ctx: Any, grads: Any) -> Any:
    # d(base + m * merged): the gradient itself for base, m * gradient for merged.
    (mask,) = ctx.saved_tensors
    wide = [grad.to(dtype) for grad, dtype in zip(grads, ctx.merged_dtypes, strict=True)]
    return list(grads), mask_multiply(wide, mask), None


def _multiply_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[1])


def _multiply_backward(ctx: Any, grads: Any) -> Any:
    return mask_multiply(list(grads), ctx.saved_tensors[0]), None


torch.library.register_autograd(
    "robustcore::mask_apply", _apply_backward, setup_context=_apply_context
)
torch.library.register_autograd(
    "robustcore::mask_multiply", _multiply_backward, setup_context=_multiply_context
)


register_without_gradient("mask_apply_", counts=False, overwrites=True)
register_without_gradient("mask_switch_", counts=False, overwrites=True)
