"""The operators of ``csrc/losses/shrink_match_loss*``: shapes for tracing, and derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import accumulate_dtype
from .._library import Operator, direct_apply, is_batch_of_cotangents
from .._scale import scale_

__all__ = ["backward_operator", "forward_operator", "gradient_in_forward"]

_REDUCTION_NAMES = ("none", "mean", "sum")
# Rows of the two tensors of statistics: csrc/losses/shrink_match_loss_op.h.
_LOSS, _LSE, _WEIGHT, _CUT, _CONFIDENCE = range(5)
_TOP, _TIE, _REMOVED = range(3)


def _fake_forward(
    weak: Tensor, strong: Tensor, threshold: float, reduction: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows = strong.shape[0]
    compute = accumulate_dtype(strong.dtype)
    return (
        strong.new_empty((rows,) if reduction == 0 else (), dtype=compute),
        strong.new_empty((5, rows), dtype=compute),
        strong.new_empty((3, rows), dtype=torch.int64),
    )


def _fake_with_gradients(
    weak: Tensor, strong: Tensor, threshold: float, reduction: int
) -> tuple[Tensor, ...]:
    return (*_fake_forward(weak, strong, threshold, reduction), strong.new_empty(strong.shape))


def _fake_backward(grad_loss: Tensor, weak: Tensor, strong: Tensor, *unused: Any) -> Tensor:
    return strong.new_empty(strong.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    weak, strong, _, ctx.reduction = inputs
    _, values, places = output
    ctx.save_for_backward(weak, strong, values, places)
    ctx.mark_non_differentiable(values, places)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    # The weak logits are a target: their gradient is zero by definition, not left out.
    if grad_loss is None or not ctx.needs_input_grad[1]:
        return (None,) * 4
    return None, backward_operator(grad_loss, *ctx.saved_tensors, ctx.reduction), None, None


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.reduction = inputs
    ctx.save_for_backward(*tensors)


def _second_backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    """Derivative of the gradient: rare, so plain PyTorch does it, as the vjp of a vjp."""
    from ..reference.losses.shrink_match_loss import kept_cross_entropy

    grad_loss, weak, strong, values, places = ctx.saved_tensors
    top, weight = places[_TOP], values[_WEIGHT]
    logits, cut = weak.to(values.dtype), values[_CUT].unsqueeze(1)
    column = torch.arange(weak.shape[1], device=weak.device)
    kept = (logits < cut) | ((logits == cut) & (column >= places[_TIE].unsqueeze(1)))
    kept = kept | (column == top.unsqueeze(1))

    def gradient(grad_loss: Tensor, strong: Tensor) -> Tensor:
        def loss(strong: Tensor) -> Tensor:
            wide = strong.to(values.dtype)
            return kept_cross_entropy(wide, kept, top, weight, _REDUCTION_NAMES[ctx.reduction])

        return torch.func.vjp(loss, strong)[1](grad_loss)[0]

    _, vjp, *_ = torch.func.vjp(gradient, grad_loss, strong)
    for_grad_loss, for_strong = vjp(cotangent)
    return for_grad_loss, None, for_strong, None, None, None


backward_operator = Operator(
    "shrink_match_loss_backward",
    fake=_fake_backward,
    setup_context=_setup_second,
    backward=_second_backward,
)
forward_operator = Operator(
    "shrink_match_loss", fake=_fake_forward, setup_context=_setup, backward=_backward
)


def _no_derivative(ctx: Any, *unused: Any) -> Any:
    raise RuntimeError(
        "shrink_match_loss_with_gradients returns gradients and has none itself; "
        "call robustcore.losses.shrink_match_loss"
    )


_with_gradients = Operator(
    "shrink_match_loss_with_gradients",
    fake=_fake_with_gradients,
    setup_context=lambda ctx, inputs, output: None,
    backward=_no_derivative,
)


class _GradientInForward(torch.autograd.Function):
    """Scalar reductions in eager mode: the gradient is written while a row is in cache.

    Three passes over the logits instead of the five of forward and backward apart. The first
    backward pass hands the gradient out, scaled in place where the incoming one is not 1. A second
    pass through the same graph, or one that builds a graph of its own, computes it again.
    """

    @staticmethod
    def forward(
        ctx: Any, weak: Tensor, strong: Tensor, threshold: float, reduction: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        loss, values, places, ctx.gradient = _with_gradients(weak, strong, threshold, reduction)
        ctx.options = threshold, reduction
        ctx.save_for_backward(weak, strong, values, places)
        ctx.mark_non_differentiable(values, places)
        ctx.set_materialize_grads(False)
        return loss, values, places

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *unused: Any) -> tuple[Any, ...]:
        if grad_loss is None:
            return (None,) * 4
        gradient, ctx.gradient = ctx.gradient, None
        weak, strong, values, places = ctx.saved_tensors
        if torch.is_grad_enabled() or is_batch_of_cotangents(grad_loss):
            gradient = backward_operator(grad_loss, weak, strong, values, places, ctx.options[1])
            return None, gradient, None, None
        if gradient is None:
            # The same operator again, for the same bits.
            gradient = _with_gradients(weak, strong, *ctx.options)[3]
        # On the CPU looking at the factor is cheaper than a call; elsewhere the kernel looks.
        if not grad_loss.is_cpu or grad_loss.item() != 1.0:
            scale_([gradient], grad_loss)
        return None, gradient, None, None


gradient_in_forward = direct_apply(_GradientInForward)
