"""The operators of ``csrc/losses/crossmax*``: shapes for tracing, and derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._library import Operator

__all__ = ["backward_operator", "forward_operator"]


def _fake_forward(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    samples, members, classes = logits.shape
    return (
        logits.new_empty((samples, classes)),
        logits.new_empty((2, samples, classes), dtype=torch.int16),
        logits.new_empty((samples, members), dtype=torch.int64),
    )


def _fake_backward(grad: Tensor, members: Tensor, tops: Tensor) -> Tensor:
    return grad.new_empty((grad.shape[0], tops.shape[1], grad.shape[1]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, members, tops = output
    ctx.save_for_backward(members, tops)
    ctx.mark_non_differentiable(members, tops)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None
    return backward_operator(grad, *ctx.saved_tensors), None


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _second_backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    """The gradient is linear in what arrives from above: this is its transpose."""
    members, tops = ctx.saved_tensors
    at_top = cotangent.gather(2, tops.clamp(min=0).unsqueeze(2)).squeeze(2)
    at_top = at_top.masked_fill(tops < 0, 0.0)

    def of_member(index: Tensor) -> Tensor:
        index = index.long()
        return cotangent.gather(1, index.unsqueeze(1)).squeeze(1) - at_top.gather(1, index)

    kth, largest = members.unbind(0)
    return of_member(kth) - of_member(largest), None, None


backward_operator = Operator(
    "crossmax_backward",
    fake=_fake_backward,
    setup_context=_setup_second,
    backward=_second_backward,
)
forward_operator = Operator(
    "crossmax", fake=_fake_forward, setup_context=_setup, backward=_backward
)
