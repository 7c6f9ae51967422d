"""The operators of ``csrc/losses/heteroscedastic_cross_entropy*``: shapes, and derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._library import Operator
from .._random import counter_normal_operator

__all__ = ["log_probabilities_operator", "loss_operator"]

# Positions of the arguments of the forward operator.
_MEAN, _LOW_RANK, _DIAGONAL, _TARGET, _WEIGHT, _SAMPLE_WEIGHT, _SEED = range(7)
_REDUCTION_NAMES = ("none", "mean", "sum")
_ARGUMENTS = 13


def _fake_loss(
    mean: Tensor,
    low_rank: Tensor,
    diagonal: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    seed: Tensor,
    temperature: float,
    samples: int,
    minimum_probability: float,
    ignore_index: int,
    reduction: int,
    needs_gradients: bool,
) -> tuple[Tensor, ...]:
    rows, classes, rank = low_rank.shape
    kept = rows if needs_gradients else 0
    return (
        mean.new_empty((rows,) if reduction == 0 else ()),
        mean.new_empty((2, rows)),
        mean.new_empty((kept, classes)),
        mean.new_empty((kept, classes, rank)),
        mean.new_empty((kept, classes)),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # The gradients of the forward pass need as much memory as the inputs, and repeating the
    # samples needs a thousand times the time of keeping them.
    _, *kept = output
    ctx.options = inputs[7:12]
    ctx.complete = inputs[12]
    ctx.save_for_backward(*inputs[:7], *kept)
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if grad_loss is None:
        return (None,) * _ARGUMENTS
    needs = ctx.needs_input_grad
    if needs[_WEIGHT]:
        raise RuntimeError(
            "heteroscedastic_cross_entropy: weight has no derivative; use sample_weight for "
            "weights with one"
        )
    saved = ctx.saved_tensors
    inputs, kept = saved[:7], saved[7:]
    if not ctx.complete:  # a raw call that did not ask for them: the same samples again
        with torch.no_grad():
            _, *kept = loss_operator(*inputs, *ctx.options, True)
    mean, low_rank, diagonal, sample_weight = backward_operator(
        grad_loss, *inputs, *kept, *ctx.options
    )
    return (
        mean if needs[_MEAN] else None,
        low_rank if needs[_LOW_RANK] else None,
        diagonal if needs[_DIAGONAL] else None,
        None,
        None,
        sample_weight if needs[_SAMPLE_WEIGHT] else None,
        *(None,) * 7,
    )


def _scaled(
    grad_loss: Tensor,
    mean: Tensor,
    low_rank: Tensor,
    diagonal: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    seed: Tensor,
    rows: Tensor,
    grad_mean: Tensor,
    grad_low_rank: Tensor,
    grad_diagonal: Tensor,
    *options: Any,
) -> tuple[Tensor, ...]:
    """The gradients of the forward pass times what comes from above: a thousandth of its work."""
    per_row = grad_loss.reshape(-1, 1)
    # An ignored row stays at zero, whatever comes from above.
    ignored = (target == options[3]).reshape(-1, 1)
    per_row = per_row.expand(mean.shape[0], 1).masked_fill(ignored, 0.0)
    return (
        grad_mean * per_row,
        grad_low_rank * per_row.unsqueeze(-1),
        grad_diagonal * per_row,
        mean.new_empty(0) if sample_weight is None else rows[1] * per_row.squeeze(1),
    )


def _fake_backward(grad_loss: Tensor, *args: Any) -> tuple[Tensor, ...]:
    mean, low_rank, diagonal, _, _, sample_weight = args[:6]
    return (
        torch.empty_like(mean, memory_format=torch.contiguous_format),
        torch.empty_like(low_rank, memory_format=torch.contiguous_format),
        torch.empty_like(diagonal, memory_format=torch.contiguous_format),
        mean.new_empty(0 if sample_weight is None else mean.shape[0]),
    )


def _noise(seed: Tensor, low_rank: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """The kernels' numbers as tensors: [rows, samples, rank] and [rows, samples, classes]."""
    rows, classes, rank = low_rank.shape
    quads = torch.arange((samples + 3) // 4, device=low_rank.device)
    row = torch.arange(rows, device=low_rank.device).repeat_interleave(quads.numel())

    def numbers(columns: int, stream: int) -> Tensor:
        second = (quads | stream).repeat(rows)
        values = counter_normal_operator(row, second, seed, 4 * columns)
        values = values.reshape(rows, quads.numel(), columns, 4).movedim(-1, 2)
        return values.flatten(1, 2)[:, :samples]

    return numbers(rank, 2**31), numbers(classes, 0)


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.options = inputs[12:]


def _second_backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
    """Derivative of the gradients: rare, so plain PyTorch does it, as the vjp of a vjp.

    It holds [N, S, C] numbers.
    """
    from ..reference.losses import heteroscedastic_cross_entropy as reference

    grad_loss, mean, low_rank, diagonal, target, weight, sample_weight, seed = ctx.saved_tensors
    temperature, samples, minimum_probability, ignore_index, reduction = ctx.options
    weighted = sample_weight is not None
    noise = _noise(seed, low_rank, samples)

    def gradients(grad_loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        def loss(*inputs: Tensor) -> Tensor:
            mean, low_rank, diagonal, *rest = inputs
            return reference(
                mean,
                low_rank,
                diagonal,
                target,
                temperature=temperature,
                samples=samples,
                weight=weight,
                sample_weight=rest[0] if rest else None,
                minimum_probability=minimum_probability,
                ignore_index=ignore_index,
                reduction=_REDUCTION_NAMES[reduction],
                noise=noise,
            ).to(grad_loss.dtype)

        return torch.func.vjp(loss, *inputs)[1](grad_loss)

    inputs = (mean, low_rank, diagonal, *((sample_weight,) if weighted else ()))
    _, vjp, *_ = torch.func.vjp(gradients, grad_loss, *inputs)
    grad_loss, mean, low_rank, diagonal, *rest = vjp(tuple(cotangents[: 3 + weighted]))
    return (
        grad_loss,
        mean,
        low_rank,
        diagonal,
        None,
        None,
        rest[0] if rest else None,
        *(None,) * 10,
    )


def _setup_log_probabilities(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _log_probabilities_backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    """Meant for test time; gradients come from plain PyTorch, which holds [N, S, C] numbers."""
    from ..reference.losses import heteroscedastic_log_probabilities as reference

    mean, low_rank, diagonal, seed = ctx.saved_tensors
    temperature, samples = ctx.options
    noise = _noise(seed, low_rank, samples)

    def probabilities(*inputs: Tensor) -> Tensor:
        return reference(*inputs, temperature=temperature, noise=noise)

    return (*torch.func.vjp(probabilities, mean, low_rank, diagonal)[1](cotangent), *(None,) * 3)


# Kept: registrations end with the object that made them. Made of PyTorch's own operations, so that
# one registration serves every device.
_registration = torch.library.Library("robustcore", "IMPL")
_registration.impl("heteroscedastic_cross_entropy_backward", _scaled, "CompositeExplicitAutograd")
backward_operator = Operator(
    "heteroscedastic_cross_entropy_backward",
    fake=_fake_backward,
    setup_context=_setup_second,
    backward=_second_backward,
)
loss_operator = Operator(
    "heteroscedastic_cross_entropy", fake=_fake_loss, setup_context=_setup, backward=_backward
)
log_probabilities_operator = Operator(
    "heteroscedastic_log_probabilities",
    fake=lambda mean, *unused: torch.empty_like(mean, memory_format=torch.contiguous_format),
    setup_context=_setup_log_probabilities,
    backward=_log_probabilities_backward,
)
