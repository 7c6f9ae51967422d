"""The operators mixture_log_softmax and its backward: shapes for tracing and derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import accumulate_dtype
from .._library import Operator

__all__ = ["mixture_log_softmax"]

# logits1, logits2, gate, scale1, scale2; then the numbers that stand for missing scales.
_TENSORS = 5


def _reference(*args: Any) -> Tensor:
    from ..reference.losses import mixture_log_softmax as reference

    logits1, logits2, gate, scale1, scale2, scales = args
    return reference(
        logits1,
        logits2,
        gate,
        scales[0] if scale1 is None else scale1,
        scales[1] if scale2 is None else scale2,
    )


def _fake(logits1: Tensor, *args: Any) -> Tensor:
    return logits1.new_empty(tuple(logits1.shape))


def _fake_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    logits1, _, _, scale1, scale2, _, needs1, needs2 = args
    rows, compute = logits1.shape[0], accumulate_dtype(logits1.dtype)
    return (
        *(logits1.new_empty(tuple(logits1.shape) if n else (0, 0)) for n in (needs1, needs2)),
        logits1.new_empty(rows, dtype=compute),
        *(
            logits1.new_empty(0 if scale is None else rows, dtype=compute)
            for scale in (scale1, scale2)
        ),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.scales = inputs[_TENSORS]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad
    gradients = _gradients(grad, *ctx.saved_tensors, ctx.scales, needs[0], needs[1])
    return (*(g if needed else None for g, needed in zip(gradients, needs)), None)


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[: 1 + _TENSORS])
    ctx.scales = inputs[1 + _TENSORS]
    ctx.needs = inputs[-2:]


def _second_backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
    """Derivative of the gradients: rare, so plain PyTorch does it, as the vjp of a vjp."""
    grad, *tensors = ctx.saved_tensors
    present = [k for k in range(_TENSORS) if tensors[k] is not None]

    def gradients(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        def result(*inputs: Tensor) -> Tensor:
            filled = list(tensors)
            for place, tensor in zip(present, inputs):
                filled[place] = tensor
            return _reference(*filled, ctx.scales).to(grad.dtype)

        return torch.func.vjp(result, *inputs)[1](grad)

    results, vjp, *_ = torch.func.vjp(gradients, grad, *(tensors[k] for k in present))
    # An output that was not wanted is empty and has no derivative.
    wanted = (*ctx.needs, True, True, True)
    for_grad, *for_inputs = vjp(
        tuple(
            cotangents[place] if wanted[place] else torch.zeros_like(result)
            for place, result in zip(present, results)
        )
    )
    places: list[Any] = [None] * _TENSORS
    for place, gradient in zip(present, for_inputs):
        places[place] = gradient
    return (for_grad, *places, None, None, None)


_gradients = Operator(
    "mixture_log_softmax_backward",
    fake=_fake_backward,
    setup_context=_setup_second,
    backward=_second_backward,
)
mixture_log_softmax = Operator(
    "mixture_log_softmax", fake=_fake, setup_context=_setup, backward=_backward
)
