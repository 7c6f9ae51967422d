"""The operators of a loss over rows of logits: shapes for tracing, derivatives, the choice of path.

Every such loss has the same operators and the same arguments (csrc/losses/row_loss_op.h), so one
object per loss, a :class:`RowLoss`, serves them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._checks import accumulate_dtype
from .._library import Operator, direct_apply, functorch_active, is_batch_of_cotangents
from .._reference import wants_reference
from .._scale import scale_
from ._arguments import REDUCTION_NAMES, RowLossArguments

__all__ = ["ROW_LOSSES", "RowLoss", "fake_forward", "reference_options"]

# Every loss of this kind by name, for the tests that walk over them.
ROW_LOSSES: dict[str, RowLoss] = {}

# Positions of the arguments of the forward operators; the others are numbers.
_LOGITS, _SECOND, _ROW_VALUE, _TARGET, _WEIGHT, _SAMPLE_WEIGHT = 0, 1, 2, 5, 6, 7
_TENSORS = 8
_ROW_VALUES = 3
_ARGUMENTS = 15
_IGNORE_INDEX = 9
_REDUCTION = 14
# The tensors that can have a gradient, in the order in which the operators return them.
_DIFFERENTIABLE = (_LOGITS, _SECOND, _ROW_VALUE, _ROW_VALUE + 1, _ROW_VALUE + 2, _SAMPLE_WEIGHT)


def reference_options(raw: tuple[Any, ...], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keyword arguments of a reference function from the arguments of an operator.

    ``without``: those that the loss does not have.
    """
    ignore_index, label_smoothing, temperature, softcap, lse_square, reduction = raw[9:]
    options = {
        "weight": raw[_WEIGHT],
        "sample_weight": raw[_SAMPLE_WEIGHT],
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "temperature": temperature,
        "softcap": softcap or None,
        "lse_square_scale": lse_square,
        "reduction": REDUCTION_NAMES[reduction],
    }
    return {name: value for name, value in options.items() if name not in without}


class RowLoss:
    """The operators of one loss.

    Args:
        name: As in the schema.
        reference: The loss in plain PyTorch from the arguments of the operator, differentiable to
            any order: it computes second derivatives, and everything on devices without kernels.
        row_value_gradients: How many of the row values, from the first on, have a derivative.
        scores: Whether the loss has the operator ``<name>_scores``.
    """

    def __init__(
        self,
        name: str,
        reference: Callable[..., Tensor],
        *,
        row_value_gradients: int = 0,
        scores: bool = False,
    ) -> None:
        self.name = name
        self.reference = reference
        self.row_value_gradients = row_value_gradients
        self.backward = Operator(
            f"{name}_backward",
            fake=self._fake_backward,
            setup_context=_setup_second,
            backward=self._second_backward,
        )
        self.forward = Operator(
            name, fake=fake_forward, setup_context=_setup, backward=self._backward
        )
        if scores:
            self.scores = Operator(
                f"{name}_scores",
                fake=_fake_scores,
                setup_context=_setup_scores,
                backward=self._backward,
            )
        self.with_gradients = Operator(
            f"{name}_with_gradients",
            fake=self._fake_with_gradients,
            setup_context=lambda ctx, inputs, output: None,
            backward=self._no_derivative,
        )
        self.with_gradients_in_place = Operator(
            f"{name}_with_gradients_", fake=self._fake_with_gradients_in_place
        )
        self._gradient_in_forward = direct_apply(_gradient_in_forward(self))
        ROW_LOSSES[name] = self

    def __call__(self, arguments: RowLossArguments) -> Tensor:
        """The loss, by the cheapest path that gives the derivatives asked for."""
        raw = arguments.raw
        if wants_reference(raw[_LOGITS]):
            loss = self.reference(*raw)
        elif self._pays_in_forward(raw):
            loss = self._gradient_in_forward(arguments.inplace_gradients, *raw)
        else:
            loss = self.forward(*raw)
        return self.finished(loss, arguments)

    @staticmethod
    def finished(loss: Tensor, arguments: RowLossArguments) -> Tensor:
        """The operator's loss in the shape and dtype of the public function."""
        if loss.dim() and loss.shape != arguments.shape:
            loss = loss.reshape(arguments.shape)
        return loss if loss.dtype is arguments.result_dtype else loss.to(arguments.result_dtype)

    @staticmethod
    def _pays_in_forward(raw: tuple[Any, ...]) -> bool:
        """Whether writing the gradients during the forward pass is possible and pays.

        Not for float16: a gradient divided by N before the loss scale reaches it underflows.
        """
        logits, second = raw[:2]
        return (
            raw[_REDUCTION] != 0
            and (logits.requires_grad or (second is not None and second.requires_grad))
            and logits.dtype is not torch.float16
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not functorch_active()
            and logits.device.type != "meta"
        )

    def by_argument(self, needs: Any, gradients: tuple[Tensor, ...]) -> list[Any]:
        """The gradients at the places of their arguments."""
        if needs[_WEIGHT]:
            raise RuntimeError(
                f"{self.name}: weight has no derivative; use sample_weight for weights with one"
            )
        for k in range(self.row_value_gradients, _ROW_VALUES):
            if needs[_ROW_VALUE + k]:
                raise RuntimeError(f"{self.name}: row value {k + 1} has no derivative")
        places: list[Any] = [None] * _ARGUMENTS
        for place, gradient in zip(_DIFFERENTIABLE, gradients):
            if needs[place]:
                places[place] = gradient
        return places

    def _backward(self, ctx: Any, grad_loss: Tensor | None, *unused: Any) -> tuple[Any, ...]:
        if grad_loss is None:
            return (None,) * _ARGUMENTS
        needs = ctx.needs_input_grad
        gradients = self.backward(
            grad_loss, *ctx.saved_tensors, *ctx.options, needs[_LOGITS], needs[_SECOND]
        )
        return tuple(self.by_argument(needs, gradients))

    def _second_backward(self, ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        """Derivative of the gradients: rare, so plain PyTorch does it, as the vjp of a vjp."""
        grad_loss, *tensors = ctx.saved_tensors
        present = [k for k in _DIFFERENTIABLE if tensors[k] is not None and self._offers(k)]

        def gradients(grad_loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            def loss(*inputs: Tensor) -> Tensor:
                filled = list(tensors)
                for place, tensor in zip(present, inputs):
                    filled[place] = tensor
                return self._reference_loss(filled, ctx.options).to(grad_loss.dtype)

            return torch.func.vjp(loss, *inputs)[1](grad_loss)

        results, vjp, *_ = torch.func.vjp(gradients, grad_loss, *(tensors[k] for k in present))
        # An output that was not wanted is empty and has no derivative.
        wanted = dict.fromkeys(present, True) | dict(zip((_LOGITS, _SECOND), ctx.needs))
        by_place = dict(zip(_DIFFERENTIABLE, cotangents))
        by_input = vjp(
            tuple(
                by_place[place] if wanted[place] else torch.zeros_like(result)
                for place, result in zip(present, results)
            )
        )
        places: list[Any] = [None] * _ARGUMENTS
        for place, gradient in zip(present, by_input[1:]):
            places[place] = gradient
        return (by_input[0], *places, *(None,) * (len(ctx.needs_input_grad) - 1 - len(places)))

    def _reference_loss(self, tensors: list[Any], options: tuple[Any, ...]) -> Tensor:
        return self.reference(*tensors, *options)

    # What the gradient in the forward pass asks for; a loss with a state answers differently.

    def saved_by_forward(self, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The tensors to save for a second backward pass, and the other arguments."""
        return args[:_TENSORS], args[_TENSORS:]

    def run_with_gradients(
        self, args: tuple[Any, ...], needs: Any, in_place: bool = False
    ) -> tuple[Tensor, ...]:
        """The loss and its gradients from the arguments of the forward operator."""
        operator = self.with_gradients_in_place if in_place else self.with_gradients
        return operator(*args, needs[_LOGITS], needs[_SECOND])

    def gradients_again(
        self, saved: tuple[Any, ...], options: tuple[Any, ...], needs: Any
    ) -> tuple[Tensor, ...]:
        """The gradients once more, with the same bits."""
        return self.run_with_gradients((*saved, *options), needs)[1:]

    def gradients_of(
        self, grad_loss: Tensor, saved: tuple[Any, ...], options: tuple[Any, ...], needs: Any
    ) -> tuple[Tensor, ...]:
        """The gradients as a differentiable function."""
        return self.backward(grad_loss, *saved, *options, needs[_LOGITS], needs[_SECOND])

    @staticmethod
    def keeps_gradients() -> bool:
        """Whether another backward pass must get these gradients without computing them again."""
        return False

    def _fake_gradients(self, args: tuple[Any, ...], in_place: bool = False) -> tuple[Tensor, ...]:
        logits = args[_LOGITS]
        rows, compute = logits.shape[0], accumulate_dtype(logits.dtype)
        needs_logits, needs_second = args[-2:]
        needs_second = needs_second and args[_SECOND] is not None
        return (
            *(
                logits.new_empty(tuple(logits.shape) if needed and not in_place else (0, 0))
                for needed in (needs_logits, needs_second)
            ),
            *(
                logits.new_empty(
                    rows if self._offers(place) and args[place] is not None else 0, dtype=compute
                )
                for place in _DIFFERENTIABLE[2:]
            ),
        )

    def _fake_with_gradients(self, *args: Any) -> tuple[Tensor, ...]:
        return (fake_forward(*args[:_ARGUMENTS]), *self._fake_gradients(args))

    def _fake_with_gradients_in_place(self, *args: Any) -> tuple[Tensor, ...]:
        return (fake_forward(*args[:_ARGUMENTS]), *self._fake_gradients(args, in_place=True))

    def _fake_backward(self, grad_loss: Tensor, *args: Any) -> tuple[Tensor, ...]:
        return self._fake_gradients(args)

    def _offers(self, place: int) -> bool:
        return not self.row_value_gradients <= place - _ROW_VALUE < _ROW_VALUES

    def _no_derivative(self, ctx: Any, *unused: Any) -> Any:
        raise RuntimeError(
            f"{self.name}_with_gradients returns gradients and has none itself; "
            f"call robustcore.losses.{self.name}"
        )


def fake_forward(logits: Tensor, *args: Any) -> Tensor:
    rows = (logits.shape[0],) if args[_REDUCTION - 1] == 0 else ()
    return logits.new_empty(rows, dtype=accumulate_dtype(logits.dtype))


def _fake_scores(logits: Tensor, *args: Any) -> tuple[Tensor, ...]:
    rows = logits.shape[0]
    return (
        fake_forward(logits, *args),
        logits.new_empty(rows, dtype=accumulate_dtype(logits.dtype)),
        logits.new_empty(rows, dtype=torch.int64),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:]
    ctx.set_materialize_grads(False)


def _setup_scores(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _setup(ctx, inputs, output)
    ctx.mark_non_differentiable(*output[1:])


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[: 1 + _TENSORS])
    ctx.options = inputs[1 + _TENSORS : 1 + _ARGUMENTS]
    ctx.needs = inputs[-2:]


def _gradient_in_forward(loss: RowLoss) -> Any:
    """Scalar reductions in eager mode: the gradients are written while a row is in cache.

    Of a one-matrix loss that is three passes over the logits instead of the four of forward and
    backward apart. The first backward pass hands the gradients out, scaled in place when the
    incoming gradient is not one (decided on the device, without a synchronisation). A second pass
    through the same graph, or one that builds a graph of its own, recomputes them from the saved
    inputs instead; where these were overwritten by their gradients, it is refused.
    """

    class GradientInForward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, in_place: bool, *args: Any) -> Tensor:
            needs = ctx.needs_input_grad[1:]
            ctx.needs = needs
            ctx.in_place = in_place and _may_overwrite(args)
            saved, ctx.options = loss.saved_by_forward(args)
            if ctx.in_place:
                result = tuple(_overwrite(loss, args, needs))
            else:
                result = loss.run_with_gradients(args, needs)
                ctx.save_for_backward(*saved)
            ctx.gradients = list(result[1:])
            return result[0]

        @staticmethod
        def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
            gradients, ctx.gradients = ctx.gradients, None
            transformed = torch.is_grad_enabled() or is_batch_of_cotangents(grad_loss)
            if gradients is None or transformed:
                if ctx.in_place:
                    raise RuntimeError(
                        f"{loss.name}: inplace_gradients=True overwrote the logits: one backward "
                        "pass only, and no second derivative"
                    )
                saved = ctx.saved_tensors
                if transformed:
                    gradients = loss.gradients_of(grad_loss, saved, ctx.options, ctx.needs)
                    return (None, *loss.by_argument(ctx.needs, gradients))
                gradients = loss.gradients_again(saved, ctx.options, ctx.needs)
            elif not ctx.in_place and loss.keeps_gradients():
                ctx.gradients = [gradient.clone() for gradient in gradients]
            # On the CPU looking at the factor is cheaper than a call; elsewhere the kernel looks.
            if not grad_loss.is_cpu or grad_loss.item() != 1.0:
                scale_(gradients, grad_loss)
            return (None, *loss.by_argument(ctx.needs, tuple(gradients)))

    return GradientInForward


def _may_overwrite(args: tuple[Any, ...]) -> bool:
    """Whether gradients can take the place of the matrices: layout, alignment, nobody's leaf."""
    for place, matrix in enumerate(args[:2]):
        if matrix is None or not matrix.requires_grad:
            continue
        # Logits of other than two dimensions come here as a view.
        base = matrix if matrix._base is None else matrix._base
        if base.is_leaf and base.requires_grad:
            raise ValueError(
                "inplace_gradients: the logits must not be a leaf that requires grad, or a view of "
                "one (its values would be lost), got one"
            )
        if not matrix.is_contiguous() or matrix.data_ptr() % 16:
            return False
        others = (other for k, other in enumerate(args[:_TENSORS]) if k != place)
        if any(other is not None and _share_memory(matrix, other) for other in others):
            return False
    return True


def _share_memory(matrix: Tensor, other: Tensor) -> bool:
    """Whether writing the contiguous ``matrix`` may change ``other``."""
    if matrix.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
        return False
    if other.numel() == 0:
        return False
    last = sum((size - 1) * stride for size, stride in zip(other.shape, other.stride()))
    end_of_matrix = matrix.data_ptr() + matrix.numel() * matrix.element_size()
    end_of_other = other.data_ptr() + (last + 1) * other.element_size()
    return matrix.data_ptr() < end_of_other and other.data_ptr() < end_of_matrix


def _overwrite(loss: RowLoss, args: tuple[Any, ...], needs: Any) -> list[Tensor]:
    matrices = [None if m is None else m.detach() for m in args[:2]]
    result: list[Any] = list(loss.run_with_gradients((*matrices, *args[2:]), needs, in_place=True))
    for place in (_LOGITS, _SECOND):
        if needs[place]:
            # Whoever saved the logits for a backward pass of its own must be told.
            torch.autograd.graph.increment_version(args[place])
            result[1 + place] = matrices[place]
    return result
