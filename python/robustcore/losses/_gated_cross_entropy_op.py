"""The operators of ``csrc/losses/gated_cross_entropy*``: shapes for tracing, and derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import accumulate_dtype
from .._library import Operator, direct_apply, is_batch_of_cotangents
from .._scale import scale_

__all__ = ["backward_operator", "forward_operator", "gradient_in_forward", "scores_operator"]

# Positions of the arguments of the forward operators.
_PREDICTION, _NOISE, _GATE, _TARGET, _WEIGHT, _SAMPLE_WEIGHT = range(6)
_REDUCTION_NAMES = ("none", "mean", "sum")


def _fake_forward(
    prediction: Tensor,
    noise: Tensor,
    gate: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: int,
) -> tuple[Tensor, ...]:
    rows = prediction.shape[0]
    compute = accumulate_dtype(prediction.dtype)
    return (
        prediction.new_empty((rows,) if reduction == 0 else (), dtype=compute),
        prediction.new_empty((3, rows), dtype=compute),
        prediction.new_empty((), dtype=compute),
    )


def _fake_scores(prediction: Tensor, *args: Any) -> tuple[Tensor, ...]:
    rows = prediction.shape[0]
    compute = accumulate_dtype(prediction.dtype)
    return (
        *_fake_forward(prediction, *args),
        prediction.new_empty(rows, dtype=compute),
        prediction.new_empty(rows, dtype=torch.int64),
        prediction.new_empty(rows, dtype=compute),
    )


def _fake_gradients(
    prediction: Tensor, sample_weight: Tensor | None, needs_prediction: bool, needs_noise: bool
) -> tuple[Tensor, ...]:
    rows, classes = prediction.shape
    compute = accumulate_dtype(prediction.dtype)
    return (
        prediction.new_empty((rows, classes) if needs_prediction else (0, 0)),
        prediction.new_empty((rows, classes) if needs_noise else (0, 0)),
        prediction.new_empty(rows, dtype=compute),
        prediction.new_empty(0 if sample_weight is None else rows, dtype=compute),
    )


def _fake_with_gradients(*args: Any) -> tuple[Tensor, ...]:
    *forward, needs_prediction, needs_noise = args
    return (
        _fake_forward(*forward)[0],
        *_fake_gradients(args[_PREDICTION], args[_SAMPLE_WEIGHT], needs_prediction, needs_noise),
    )


def _fake_backward(grad_loss: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return _fake_gradients(args[_PREDICTION], args[_SAMPLE_WEIGHT], *args[-2:])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, rows, denominator, *scores = output
    tensors, ctx.options = inputs[:6], inputs[6:]
    ctx.save_for_backward(*tensors, rows, denominator)
    ctx.mark_non_differentiable(rows, denominator, *scores)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if grad_loss is None:
        return (None,) * 9
    if ctx.needs_input_grad[_WEIGHT]:
        raise RuntimeError(
            "gated_cross_entropy: weight has no derivative; use sample_weight for weights with one"
        )
    return _gradients(ctx, grad_loss, ctx.saved_tensors)


def _gradients(ctx: Any, grad_loss: Tensor, saved: tuple[Any, ...]) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad
    prediction, noise, gate, sample_weight = backward_operator(
        grad_loss, *saved, *ctx.options, needs[_PREDICTION], needs[_NOISE]
    )
    return (
        prediction if needs[_PREDICTION] else None,
        noise if needs[_NOISE] else None,
        gate if needs[_GATE] else None,
        None,
        None,
        sample_weight if needs[_SAMPLE_WEIGHT] else None,
        None,
        None,
        None,
    )


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # grad_loss, the six tensors of the forward pass, and its options.
    ctx.save_for_backward(*inputs[:7])
    ctx.options = inputs[9:12]
    ctx.needs_logits = inputs[12:14]


def _second_backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
    """Derivative of the gradients: rare, so plain PyTorch does it, as the vjp of a vjp."""
    from ..reference.losses import gated_cross_entropy as reference

    grad_loss, prediction, noise, gate, target, weight, sample_weight = ctx.saved_tensors
    ignore_index, label_smoothing, reduction = ctx.options
    weighted = sample_weight is not None
    # An output that was not wanted is empty and has no derivative.
    wanted = (*ctx.needs_logits, True, weighted)

    def gradients(grad_loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        def loss(*inputs: Tensor) -> Tensor:
            prediction, noise, gate, *rest = inputs
            value = reference(
                prediction,
                noise,
                gate,
                target,
                weight=weight,
                sample_weight=rest[0] if rest else None,
                ignore_index=ignore_index,
                label_smoothing=label_smoothing,
                reduction=_REDUCTION_NAMES[reduction],
            )
            return value.to(grad_loss.dtype)

        return torch.func.vjp(loss, *inputs)[1](grad_loss)

    inputs = (prediction, noise, gate, *((sample_weight,) if weighted else ()))
    results, vjp, *_ = torch.func.vjp(gradients, grad_loss, *inputs)
    by_input = vjp(
        tuple(
            cotangent if want else torch.zeros_like(result)
            for result, cotangent, want in zip(results, cotangents, wanted)
        )
    )
    grad_loss, prediction, noise, gate, *rest = by_input
    return (
        grad_loss,
        prediction,
        noise,
        gate,
        None,
        None,
        rest[0] if rest else None,
        *(None,) * 7,
    )


backward_operator = Operator(
    "gated_cross_entropy_backward",
    fake=_fake_backward,
    setup_context=_setup_second,
    backward=_second_backward,
)
forward_operator = Operator(
    "gated_cross_entropy", fake=_fake_forward, setup_context=_setup, backward=_backward
)
scores_operator = Operator(
    "gated_cross_entropy_scores", fake=_fake_scores, setup_context=_setup, backward=_backward
)


def _no_derivative(ctx: Any, *unused: Any) -> Any:
    raise RuntimeError(
        "gated_cross_entropy_with_gradients returns gradients and has none itself; "
        "call robustcore.losses.gated_cross_entropy"
    )


_with_gradients = Operator(
    "gated_cross_entropy_with_gradients",
    fake=_fake_with_gradients,
    setup_context=lambda ctx, inputs, output: None,
    backward=_no_derivative,
)


class _GradientInForward(torch.autograd.Function):
    """Scalar reductions in eager mode: the gradients are written while a row is in cache.

    Four passes over the logits instead of the six of forward and backward apart. The first backward
    pass hands the gradients out, scaled in place when the incoming gradient is not one (decided on
    the device, without a synchronisation). A second pass through the same graph, or one that builds
    a graph of its own, recomputes them from the saved inputs instead.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        needs = ctx.needs_input_grad
        loss, *ctx.gradients = _with_gradients(*args, needs[_PREDICTION], needs[_NOISE])
        ctx.options = args[6:]
        ctx.save_for_backward(*args[:6])
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        needs = ctx.needs_input_grad
        transformed = torch.is_grad_enabled() or is_batch_of_cotangents(grad_loss)
        if gradients is None or transformed:
            saved = ctx.saved_tensors
            if transformed:
                with torch.no_grad():
                    _, *statistics = forward_operator(*saved, *ctx.options)
                return _gradients(ctx, grad_loss, (*saved, *statistics))
            # The same operator again, for the same bits.
            _, *gradients = _with_gradients(*saved, *ctx.options, needs[_PREDICTION], needs[_NOISE])
        # On the CPU looking at the factor is cheaper than a call; elsewhere the kernel looks.
        if not grad_loss.is_cpu or grad_loss.item() != 1.0:
            scale_(gradients, grad_loss)
        prediction, noise, gate, sample_weight = gradients
        return (
            prediction if needs[_PREDICTION] else None,
            noise if needs[_NOISE] else None,
            gate if needs[_GATE] else None,
            None,
            None,
            sample_weight if needs[_SAMPLE_WEIGHT] else None,
            None,
            None,
            None,
        )


gradient_in_forward = direct_apply(_GradientInForward)
