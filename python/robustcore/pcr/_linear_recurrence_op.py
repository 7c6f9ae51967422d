"""The operators of ``csrc/pcr/linear_recurrence*``: shapes for tracing, derivatives, vmap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import accumulate_dtype, check_device
from .._library import Operator

__all__ = ["backward_operator", "forward_operator"]


def _check_devices(op: str, like: Tensor, **tensors: Tensor | None) -> None:
    """What the kernels check: a fake result would otherwise live on the device of ``like``."""
    for name, tensor in tensors.items():
        if tensor is not None:
            check_device(op, name, tensor, like.device)


# --- forward: (a, x, initial, time_dim, reverse) -> states. Time counts from the end (negative).


def _fake_forward(
    a: Tensor, x: Tensor, initial: Tensor | None, time_dim: int, reverse: bool
) -> Tensor:
    _check_devices("linear_recurrence", x, a=a, initial=initial)
    return x.new_empty(x.shape)


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, _, initial, ctx.time_dim, ctx.reverse = inputs
    # x does not enter the gradients; the states only that of a.
    ctx.save_for_backward(a, output if ctx.needs_input_grad[0] else None, initial)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:3]
    a, states, initial = ctx.saved_tensors
    gradients = backward_operator(grad, a, states, initial, ctx.time_dim, ctx.reverse, *needs)
    return (*(g if needed else None for g, needed in zip(gradients, needs)), None, None)


# --- backward: (grad, a, states, initial, time_dim, reverse, needs_a, needs_x, needs_initial)
#               -> (grad_a, grad_x, grad_initial)


def _fake_backward(
    grad: Tensor,
    a: Tensor,
    states: Tensor | None,
    initial: Tensor | None,
    time_dim: int,
    reverse: bool,
    needs_a: bool,
    needs_x: bool,
    needs_initial: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_devices("linear_recurrence_backward", grad, a=a, states=states, initial=initial)
    carry = accumulate_dtype(grad.dtype)
    return (
        grad.new_empty(grad.shape if needs_a else 0),
        grad.new_empty(grad.shape if needs_x else 0),
        grad.new_empty(initial.shape if needs_initial and initial is not None else 0, dtype=carry),
    )


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, a, states, initial, ctx.time_dim, ctx.reverse, *ctx.needs = inputs
    ctx.set_materialize_grads(False)
    # grad_x is G itself; where it was not wanted, it is computed again from the incoming gradient.
    needs_x = ctx.needs[1]
    ctx.save_for_backward(None if needs_x else grad, a, states, initial, output[1])


def _double_backward(
    ctx: Any, grad_of_a: Tensor | None, grad_of_x: Tensor | None, grad_of_initial: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Method page, section 1: with u, v, w the cotangents of dx, da and dinitial,

    W_t = a_t W_{t-1} + u_t + v_t h_{t-1}, W_0 = w, is the cotangent of g (a forward recurrence);
    that of a_t is W_{t-1} G_t, that of h_{t-1} is v_t G_t. What h contributes to a and x follows
    from the operator that made h.
    """
    needs_a, needs_x, needs_initial = ctx.needs
    v = grad_of_a if needs_a else None
    u = grad_of_x if needs_x else None
    w = grad_of_initial if needs_initial else None
    grad, a, states, initial, G = ctx.saved_tensors
    none = (None,) * 9
    if (v is None and u is None and w is None) or a.shape[ctx.time_dim] == 0:
        return none
    wanted = ctx.needs_input_grad
    if not needs_x and (wanted[1] or v is not None):
        G = backward_operator(grad, a, None, None, ctx.time_dim, ctx.reverse, False, True, False)[1]
    cotangent = u
    if v is not None:
        before = v * _shifted(states, initial, ctx)
        cotangent = before if u is None else u + before
    if cotangent is None:
        cotangent = torch.zeros_like(a)
    W = forward_operator(a, cotangent, w, ctx.time_dim, ctx.reverse)
    of_a = _shifted(W, w, ctx) * G if wanted[1] else None
    of_states = of_initial = None
    if v is not None and (wanted[2] or wanted[3]):
        product = v * G
        if wanted[2]:
            of_states = _advanced(product, ctx)
        if wanted[3]:
            first = -1 if ctx.reverse else 0
            of_initial = product.select(ctx.time_dim, first).to(accumulate_dtype(a.dtype))
    return (W, of_a, of_states, of_initial, *none[4:])


def _shifted(sequence: Tensor, first: Tensor | None, ctx: Any) -> Tensor:
    """Step t gets the value of the step before; the first step ``first`` or zero."""
    length = sequence.shape[ctx.time_dim]
    kept = sequence.narrow(ctx.time_dim, 1 if ctx.reverse else 0, length - 1)
    start = sequence.narrow(ctx.time_dim, 0, 1)
    start = torch.zeros_like(start) if first is None else first.view(start.shape).to(start.dtype)
    return torch.cat([kept, start] if ctx.reverse else [start, kept], ctx.time_dim)


def _advanced(sequence: Tensor, ctx: Any) -> Tensor:
    """Step t gets the value of the step after; the last step zero."""
    length = sequence.shape[ctx.time_dim]
    kept = sequence.narrow(ctx.time_dim, 0 if ctx.reverse else 1, length - 1)
    end = torch.zeros_like(sequence.narrow(ctx.time_dim, 0, 1))
    return torch.cat([end, kept] if ctx.reverse else [kept, end], ctx.time_dim)


# --- vmap: time is counted from the end, so a batch dimension in front changes nothing


def _front(tensor: Tensor | None, batch_dim: int | None, batch_size: int) -> Tensor | None:
    if tensor is None:
        return None
    if batch_dim is None:
        return tensor.expand(batch_size, *tensor.shape)
    return tensor.movedim(batch_dim, 0)


def _fold_forward(
    batch_size: int, in_dims: tuple[int | None, ...], *args: Any
) -> tuple[tuple[Any, ...], int]:
    tensors = (_front(t, dim, batch_size) for t, dim in zip(args[:3], in_dims))
    return (*tensors, *args[3:]), 0


def _fold_backward(
    batch_size: int, in_dims: tuple[int | None, ...], *args: Any
) -> tuple[tuple[Any, ...], tuple[int | None, ...]]:
    tensors = (_front(t, dim, batch_size) for t, dim in zip(args[:4], in_dims))
    return (*tensors, *args[4:]), tuple(0 if needed else None for needed in args[6:])


forward_operator = Operator(
    "linear_recurrence",
    fake=_fake_forward,
    setup_context=_setup_forward,
    backward=_backward,
    fold=_fold_forward,
)
backward_operator = Operator(
    "linear_recurrence_backward",
    fake=_fake_backward,
    setup_context=_setup_backward,
    backward=_double_backward,
    fold=_fold_backward,
)
