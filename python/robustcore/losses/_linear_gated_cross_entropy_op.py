"""The operators behind linear_gated_cross_entropy: the chunk loop, shapes, derivatives.

They are made of torch's matrix products and of the raw operators of gated_cross_entropy, so one
implementation serves every device that has those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import accumulate_dtype, autocast_enabled
from .._library import Operator, below_autograd, direct_apply, is_batch_of_cotangents
from .._scale import scale_
from ._arguments import REDUCTIONS
from ._linear_chunks import (
    Head,
    HeadGradients,
    gradients_at_once,
    logit_chunks,
    logits_at_once,
    rows_per_chunk,
    take,
)
from ._sums import sum_in_order

__all__ = [
    "DIFFERENTIABLE",
    "forward_operator",
    "forward_without_a_graph",
    "gradient_in_forward",
    "with_gradients_operator",
]

_NONE, _MEAN, _SUM = (REDUCTIONS[name] for name in ("none", "mean", "sum"))
_TENSORS, _ARGUMENTS = 10, 17
# Where the inputs with a gradient stand: the first seven, and the sample weights.
DIFFERENTIABLE = (0, 1, 2, 3, 4, 5, 6, 9)

_raw_forward = torch.ops.robustcore.gated_cross_entropy.default
_raw_with_gradients = torch.ops.robustcore.gated_cross_entropy_with_gradients_.default


class _Problem(NamedTuple):
    """The arguments of the operators, in their order."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    noise_features: Tensor
    noise_weight: Tensor
    noise_bias: Tensor | None
    gate: Tensor
    target: Tensor
    class_weight: Tensor | None
    sample_weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    temperature: float
    softcap: float
    lse_square: float
    reduction: int
    chunk_rows: int

    @property
    def heads(self) -> tuple[Head, Head]:
        return Head(*self[:3]), Head(*self[3:6])

    @property
    def rows(self) -> int:
        return self.gate.shape[0]

    def ignored(self) -> Tensor | None:
        """The rows that take no part; None where the host can see that there are none."""
        if self.target.is_floating_point():
            return None
        ignored = self.target == self.ignore_index
        return None if ignored.is_cpu and not ignored.any() else ignored

    def labels(self, rows: slice) -> Tensor:
        """The targets of a chunk, probabilities in the dtype of computation."""
        target = take(self.target, rows)
        return target.to(self.gate.dtype) if target.is_floating_point() else target


def _loss_and_gradients(
    logits: Sequence[Tensor],
    p: _Problem,
    rows: slice,
    sample_weight: Tensor | None,
    reduction: int,
    needs: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """One chunk: the loss, and its gradients for gate and sample weights.

    Those for the logits that need one overwrite these.
    """
    arguments = _raw_arguments(logits, p, rows, sample_weight, reduction)
    loss, _, _, gate, _, _, weights = _raw_with_gradients(*arguments, *needs)
    return loss, gate, weights


def _loss(
    logits: Sequence[Tensor], p: _Problem, rows: slice, sample_weight: Tensor | None, reduction: int
) -> Tensor:
    """One chunk without gradients."""
    return _raw_forward(*_raw_arguments(logits, p, rows, sample_weight, reduction))


def _raw_arguments(
    logits: Sequence[Tensor], p: _Problem, rows: slice, sample_weight: Tensor | None, reduction: int
) -> tuple[Any, ...]:
    return (
        *logits,
        take(p.gate, rows),
        None,
        None,
        p.labels(rows),
        p.class_weight,
        sample_weight,
        (),
        p.ignore_index,
        p.label_smoothing,
        p.temperature,
        p.softcap,
        p.lse_square,
        reduction,
    )


class _Reduction:
    """From losses of rows to the result, and from its gradient to the rows' factors."""

    def __init__(self, p: _Problem, ignored: Tensor | None) -> None:
        self.problem, self.ignored = p, ignored
        self.denominator: Tensor | None = None
        if p.reduction != _MEAN:
            return
        if p.target.is_floating_point() or (ignored is None and p.class_weight is None):
            total = torch.full((), p.rows, device=p.gate.device)
        elif p.class_weight is None:
            assert ignored is not None
            total = p.rows - ignored.sum()
        else:
            # Targets out of range are reported by the chunks.
            labels = p.target.clamp(0, p.class_weight.shape[0] - 1)
            total = sum_in_order(self.without_ignored(p.class_weight[labels]))
        self.denominator = total.to(p.gate.dtype)

    def result(self, losses: Tensor) -> Tensor:
        p = self.problem
        if p.sample_weight is not None:
            losses = self.without_ignored(losses * p.sample_weight)
        if p.reduction == _NONE:
            return losses
        total = sum_in_order(losses)
        return (total if self.denominator is None else total / self.denominator).to(losses.dtype)

    def per_loss(self, grad_result: Tensor | None) -> Tensor:
        """The gradient of the result for the weighted loss of each row."""
        factor = self.problem.gate.new_ones(()) if grad_result is None else grad_result
        if self.denominator is not None:
            factor = factor / self.denominator
        return factor.expand(self.problem.rows).contiguous()

    def without_ignored(self, values: Tensor) -> Tensor:
        return values if self.ignored is None else values.masked_fill(self.ignored, 0)


def _forward(*arguments: Any) -> Tensor:
    p = _Problem(*arguments)
    heads = p.heads
    chunk_rows = rows_per_chunk(heads, p.chunk_rows)
    if chunk_rows >= p.rows > 0:
        # One chunk is everything, so the raw operator can reduce.
        all_logits = [logits_at_once(head) for head in heads]
        return _loss(all_logits, p, slice(0, p.rows), p.sample_weight, p.reduction)
    losses = p.gate.new_empty(p.gate.shape)
    for rows, logits in logit_chunks(heads, chunk_rows):
        losses[rows] = _loss(logits, p, rows, None, _NONE)
    return _Reduction(p, p.ignored()).result(losses)


def _gradients(
    p: _Problem, grad_result: Tensor | None, needs: Sequence[bool]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The result, and the gradients of the inputs in DIFFERENTIABLE that are needed.

    ``grad_result`` is the gradient of the result, 1 where None.
    """
    heads = p.heads
    absent = p.ignored()
    chunk_rows = rows_per_chunk(heads, p.chunk_rows)
    if grad_result is None and p.reduction != _NONE and chunk_rows >= p.rows > 0:
        return _gradients_at_once(p, heads, absent, needs)

    sums = [HeadGradients(head, needs[3 * i : 3 * i + 3], absent) for i, head in enumerate(heads)]
    wanted = (sums[0].wanted, sums[1].wanted)
    reduction = _Reduction(p, absent)
    per_loss = reduction.per_loss(grad_result)
    scale = per_loss if p.sample_weight is None else per_loss * p.sample_weight
    losses, gate = torch.empty_like(scale), torch.empty_like(scale)
    for rows, logits in logit_chunks(heads, chunk_rows):
        # Of the weighted sum, the gradients for the weights are the losses.
        _, gate[rows], losses[rows] = _loss_and_gradients(
            logits, p, rows, scale[rows], _SUM, wanted
        )
        for each, gradient in zip(sums, logits):
            if each.wanted:
                each.add(rows, gradient)
    of_weights = reduction.without_ignored(losses * per_loss)
    return reduction.result(losses), (*sums[0].finish(), *sums[1].finish(), gate, of_weights)


def _gradients_at_once(
    p: _Problem, heads: Sequence[Head], absent: Tensor | None, needs: Sequence[bool]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The same where one chunk is everything: the raw operator reduces, nothing is summed up."""
    logits = logits_at_once(heads[0]), logits_at_once(heads[1])
    first, second = needs[:3], needs[3:6]
    loss, gate, of_weights = _loss_and_gradients(
        logits, p, slice(0, p.rows), p.sample_weight, p.reduction, (True in first, True in second)
    )
    gradients = (
        *gradients_at_once(heads[0], first, absent, logits[0]),
        *gradients_at_once(heads[1], second, absent, logits[1]),
    )
    return loss, (*gradients, gate, of_weights)


def _checked(function: Any, p: _Problem, *arguments: Any) -> Any:
    """Runs ``function`` outside autocast; a wrong target is reported with its row in the batch."""
    try:
        if not autocast_enabled(p.features.device):
            return function(*arguments)
        # The inputs have the dtype they shall be multiplied in; sums stay in float32.
        with torch.autocast(p.features.device.type, enabled=False):
            return function(*arguments)
    except RuntimeError as error:
        if "target must be in" not in str(error):
            raise
    classes = p.weight.shape[0]
    wrong = (p.target != p.ignore_index) & ((p.target < 0) | (p.target >= classes))
    row = int(wrong.int().argmax())
    raise IndexError(
        f"linear_gated_cross_entropy: target must be in [0, {classes}) or ignore_index "
        f"({p.ignore_index}), got {int(p.target[row])} at row {row}"
    )


def _forward_kernel(*arguments: Any) -> Tensor:
    return _checked(_forward, _Problem(*arguments), *arguments)


def _filled(
    p: _Problem, gradients: Sequence[Tensor | None], needs: Sequence[bool]
) -> tuple[Tensor, ...]:
    """An operator returns tensors: empty ones where nothing is needed."""
    return tuple(
        gradient if need and gradient is not None else p.features.new_empty(0)
        for gradient, need in zip(gradients, needs)
    )


def _with_gradients_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, needs = arguments
    p = _Problem(*inputs)
    loss, gradients = _checked(_gradients, p, p, None, needs)
    return (loss, *_filled(p, gradients, needs))


def _backward_kernel(grad_loss: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *inputs, needs = arguments
    p = _Problem(*inputs)
    _, gradients = _checked(_gradients, p, p, grad_loss, needs)
    return _filled(p, gradients, needs)


# Kept: registrations end with the object that made them.
_registration = torch.library.Library("robustcore", "IMPL")
for _key in ("CPU", "CUDA"):
    _registration.impl("linear_gated_cross_entropy", _forward_kernel, _key)
    _registration.impl("linear_gated_cross_entropy_with_gradients", _with_gradients_kernel, _key)
    _registration.impl("linear_gated_cross_entropy_backward", _backward_kernel, _key)


def _fake_forward(*arguments: Any) -> Tensor:
    p = _Problem(*arguments)
    shape = p.gate.shape if p.reduction == _NONE else ()
    return p.features.new_empty(shape, dtype=accumulate_dtype(p.features.dtype))


def _fake_gradients(p: _Problem, needs: Sequence[bool]) -> tuple[Tensor, ...]:
    inputs: list[Any] = [p[i] for i in DIFFERENTIABLE]
    return tuple(
        tensor.new_empty(tensor.shape) if need and tensor is not None else p.features.new_empty(0)
        for tensor, need in zip(inputs, needs)
    )


def _fake_with_gradients(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, needs = arguments
    return (_fake_forward(*inputs), *_fake_gradients(_Problem(*inputs), needs))


def _fake_backward(grad_loss: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *inputs, needs = arguments
    return _fake_gradients(_Problem(*inputs), needs)


def _needs(ctx: Any) -> list[bool]:
    needs = ctx.needs_input_grad  # a new tuple at every look
    if needs[8]:
        raise RuntimeError(
            "linear_gated_cross_entropy: class_weight has no derivative; use sample_weight for "
            "weights with one"
        )
    return [needs[i] for i in DIFFERENTIABLE]


def _by_argument(gradients: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
    """One gradient per argument."""
    result: list[Tensor | None] = [None] * _ARGUMENTS
    for place, gradient, need in zip(DIFFERENTIABLE, gradients, needs):
        result[place] = gradient if need else None
    return result


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:_ARGUMENTS]


def _backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
    needs = _needs(ctx)
    gradients = backward_operator(grad_loss, *ctx.saved_tensors, *ctx.options, needs)
    return tuple(_by_argument(gradients, needs))


def _setup_with_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    gradients = output[1:]
    ctx.save_for_backward(*inputs[:_TENSORS], *gradients)
    ctx.options, ctx.needs = inputs[_TENSORS:_ARGUMENTS], inputs[_ARGUMENTS]
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)


def _scaled_gradients(ctx: Any, grad_loss: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if grad_loss is None:
        return (None,) * (_ARGUMENTS + 1)
    needs = _needs(ctx)
    inputs, gradients = ctx.saved_tensors[:_TENSORS], ctx.saved_tensors[_TENSORS:]
    if torch.is_grad_enabled() or needs != list(ctx.needs):
        # A graph of its own is built, or gradients are missing: from the inputs once more.
        gradients = backward_operator(grad_loss, *inputs, *ctx.options, needs)
    else:
        gradients = [(gradient * grad_loss).to(gradient.dtype) for gradient in gradients]
    return (*_by_argument(gradients, needs), None)


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    return None


def _no_second_derivative(ctx: Any, *unused: Any) -> Any:
    raise NotImplementedError(
        "linear_gated_cross_entropy: second derivatives are not offered; "
        "robustcore.reference.losses.linear_gated_cross_entropy has them"
    )


backward_operator = Operator(
    "linear_gated_cross_entropy_backward",
    fake=_fake_backward,
    setup_context=_setup_second,
    backward=_no_second_derivative,
)
forward_operator = Operator(
    "linear_gated_cross_entropy", fake=_fake_forward, setup_context=_setup, backward=_backward
)
with_gradients_operator = Operator(
    "linear_gated_cross_entropy_with_gradients",
    fake=_fake_with_gradients,
    setup_context=_setup_with_gradients,
    backward=_scaled_gradients,
)


class _GradientInForward(torch.autograd.Function):
    """Scalar reductions in eager mode: the gradients are made while a chunk's logits exist.

    The first backward pass hands them out, scaled in place where the incoming gradient is not one.
    A second pass through the same graph makes them again; one that builds a graph of its own takes
    the backward operator.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        p = _Problem(*arguments)
        with below_autograd():
            loss, ctx.gradients = _checked(_gradients, p, p, None, _needs(ctx))
        ctx.options = arguments[_TENSORS:]
        ctx.save_for_backward(*arguments[:_TENSORS])
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        needs = _needs(ctx)
        if torch.is_grad_enabled() or is_batch_of_cotangents(grad_loss):
            return _backward(ctx, grad_loss)
        if gradients is None:
            p = _Problem(*ctx.saved_tensors, *ctx.options)
            with below_autograd():
                _, gradients = _checked(_gradients, p, p, None, needs)
        # On the CPU looking at the factor is cheaper than a call; elsewhere the kernel looks.
        if not grad_loss.is_cpu or grad_loss.item() != 1.0:
            scale_([each for each in gradients if each is not None], grad_loss)
        return tuple(_by_argument(gradients, needs))


gradient_in_forward = direct_apply(_GradientInForward)


def forward_without_a_graph(*arguments: Any) -> Tensor:
    """The forward operator in eager mode, without a way through the dispatcher and back."""
    with below_autograd():
        return _forward_kernel(*arguments)
