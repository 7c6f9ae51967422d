"""Row losses with an indexed state: numbers per example that the loss itself keeps up to date."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._checks import accumulate_dtype, check_device, check_int64, check_shape, check_tensor
from .._library import Operator, below_autograd, direct_apply, functorch_active
from .._reference import wants_reference
from ._arguments import RowLossArguments
from ._indexed import in_recomputation
from ._row_loss import (
    _ARGUMENTS,
    _IGNORE_INDEX,
    _LOGITS,
    _SAMPLE_WEIGHT,
    _SECOND,
    _TARGET,
    _TENSORS,
    ROW_LOSSES,
    RowLoss,
    _gradient_in_forward,
    fake_forward,
)

__all__ = ["IndexedState", "StateRowLoss", "checked_state"]

# Behind the arguments of every row loss: state, index, first_example, update, keep_rows.
_STATE_ARGUMENTS = 5

_write_raw = torch.ops.robustcore.write_state_rows_.default
torch.library.register_fake("robustcore::write_state_rows_", lambda *args: None)


class IndexedState:
    """A validated state: the tensor, the index of each row in it, and its first example."""

    def __init__(self, state: Tensor, index: Tensor, first_example: int) -> None:
        self.state = state
        self.index = index
        self.first_example = first_example


def checked_state(
    op: str,
    state: Tensor,
    index: Tensor,
    first_example: int,
    arguments: RowLossArguments,
    *,
    name: str = "state",
    scalar: bool = False,
) -> IndexedState:
    """Checks state and index against the other arguments of the public function ``op``.

    Args:
        name: Of the state, in errors.
        scalar: One number per example, shape ``(examples,)``, rather than one per class.
    """
    logits = arguments.raw[_LOGITS]
    check_tensor(op, "index", index)
    check_tensor(op, name, state)
    check_int64(op, "start", first_example)
    check_device(op, "index", index, logits.device)
    check_device(op, name, state, logits.device)
    if index.dtype is not torch.int64:
        raise TypeError(f"{op}: index must be int64, got {str(index.dtype)[6:]}")
    compute = accumulate_dtype(logits.dtype)
    if state.dtype is not compute:
        raise TypeError(
            f"{op}: {name} must be {str(compute)[6:]} for logits of {str(logits.dtype)[6:]}, got "
            f"{str(state.dtype)[6:]}"
        )
    check_shape(op, "index", index, arguments.shape)
    per_example = () if scalar else (logits.shape[1],)
    if state.dim() != 1 + len(per_example) or state.shape[1:] != per_example:
        wanted = "(examples,)" if scalar else f"(examples, {logits.shape[1]})"
        raise ValueError(f"{op}: {name} must have shape {wanted}, got {tuple(state.shape)}")
    if not state.is_contiguous():
        raise ValueError(f"{op}: {name} must be contiguous, got strides {state.stride()}")
    if state.requires_grad:
        raise ValueError(f"{op}: {name} must not require grad, but does")
    if first_example < 0:
        raise ValueError(f"{op}: start must not be negative, got {first_example}")
    # A view shares the version counter.
    state = state.unsqueeze(1) if scalar else state
    return IndexedState(state, index.reshape(-1), first_example)


class StateRowLoss(RowLoss):
    """The operators of one loss with a state.

    Args:
        name: As in the schema.
        reference: From the arguments of the operators of a row loss and the rows of the state that
            the loss is to use [N, width]: the loss, differentiable to any order.
        reference_with_state: From those arguments, an :class:`IndexedState` and whether to update
            it: the loss.
    """

    def __init__(
        self,
        name: str,
        reference: Callable[..., Tensor],
        reference_with_state: Callable[..., Tensor],
    ) -> None:
        self.name = name
        self.reference = reference
        self.reference_with_state = reference_with_state
        self.row_value_gradients = 0
        self.backward = Operator(
            f"{name}_backward",
            fake=self._fake_backward,
            setup_context=_setup_second,
            backward=self._second_backward,
        )
        self.forward = Operator(
            name, fake=_fake_state_forward, setup_context=_setup, backward=self._backward
        )
        self.with_gradients = Operator(f"{name}_with_gradients", fake=self._fake_with_gradients)
        self.with_gradients_in_place = Operator(
            f"{name}_with_gradients_", fake=self._fake_with_gradients_in_place
        )
        self._gradient_in_forward = direct_apply(_gradient_in_forward(self))
        ROW_LOSSES[name] = self

    def __call__(  # type: ignore[override]
        self, arguments: RowLossArguments, state: IndexedState, update: bool
    ) -> Tensor:
        raw = arguments.raw
        logits = raw[_LOGITS]
        # Computing again must not update again: the first time has left the state that it needs.
        update = update and not in_recomputation()
        if update and functorch_active():
            raise NotImplementedError(
                f"{self.name}: the state is not updated inside torch.func transforms; pass "
                "update=False"
            )
        if wants_reference(logits):
            loss = self.reference_with_state(*raw, state=state, update=update)
            return self.finished(loss, arguments)
        given = (*raw, state.state, state.index, state.first_example, update)
        if self._pays_in_forward(raw):
            loss = self._gradient_in_forward(arguments.inplace_gradients, *given, False)
            return self.finished(loss, arguments)
        weight = raw[_SAMPLE_WEIGHT]
        differentiable = torch.is_grad_enabled() and (
            logits.requires_grad or (weight is not None and weight.requires_grad)
        )
        keep_rows = update or differentiable or functorch_active()
        loss, used, keeper = self.forward(*given, keep_rows)
        if update:
            _write_state_rows(state, keeper, used.detach())
        return self.finished(loss, arguments)

    def by_argument(self, needs: Any, gradients: tuple[Tensor, ...]) -> list[Any]:
        return [*super().by_argument(needs, gradients), *(None,) * _STATE_ARGUMENTS]

    def _backward(self, ctx: Any, grad_loss: Tensor | None, *unused: Any) -> tuple[Any, ...]:
        if grad_loss is None:
            return (None,) * (_ARGUMENTS + _STATE_ARGUMENTS)
        needs = ctx.needs_input_grad
        *tensors, used = ctx.saved_tensors
        gradients = self.backward(
            grad_loss, *tensors, *ctx.options, used, needs[_LOGITS], needs[_SECOND]
        )
        return tuple(self.by_argument(needs, gradients))

    def _reference_loss(self, tensors: list[Any], options: tuple[Any, ...]) -> Tensor:
        *tensors, used = tensors
        return self.reference(*tensors, *options, used)

    def saved_by_forward(self, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        state, index, first_example = args[_ARGUMENTS : _ARGUMENTS + 3]
        return (*args[:_TENSORS], state, index), (*args[_TENSORS:_ARGUMENTS], first_example)

    def run_with_gradients(
        self, args: tuple[Any, ...], needs: Any, in_place: bool = False
    ) -> tuple[Tensor, ...]:
        result = super().run_with_gradients(args[: _ARGUMENTS + 4], needs, in_place)
        state, update = args[_ARGUMENTS], args[_ARGUMENTS + 3]
        if update:
            torch.autograd.graph.increment_version(state)
        return result

    def gradients_again(
        self, saved: tuple[Any, ...], options: tuple[Any, ...], needs: Any
    ) -> tuple[Tensor, ...]:
        # The state is as the forward pass left it: autograd checks that of saved tensors.
        *tensors, state, index = saved
        *numbers, first_example = options
        args = (*tensors, *numbers, state, index, first_example, False)
        return self.run_with_gradients(args, needs)[1:]

    def gradients_of(
        self, grad_loss: Tensor, saved: tuple[Any, ...], options: tuple[Any, ...], needs: Any
    ) -> tuple[Tensor, ...]:
        *tensors, state, index = saved
        *numbers, first_example = options
        place = index - first_example
        target = tensors[_TARGET]
        if not target.is_floating_point():
            place = place.masked_fill(target == numbers[_IGNORE_INDEX - _TENSORS], 0)
        used = state.index_select(0, place)
        return self.backward(grad_loss, *tensors, *numbers, used, needs[_LOGITS], needs[_SECOND])

    @staticmethod
    def keeps_gradients() -> bool:
        # With retain_graph=True: a later batch may have updated the state by then.
        return torch._C._autograd._get_current_graph_task_keep_graph()


def _write_state_rows(state: IndexedState, keeper: Tensor, rows: Tensor) -> None:
    args = (state.state, state.index, state.first_example, keeper, rows)
    if torch.compiler.is_compiling():
        _write_raw(*args)
        return
    with below_autograd():
        _write_raw(*args)
    torch.autograd.graph.increment_version(state.state)


def _fake_state_forward(logits: Tensor, *args: Any) -> tuple[Tensor, ...]:
    state, _, _, update, keep_rows = args[-_STATE_ARGUMENTS:]
    rows = logits.shape[0]
    return (
        fake_forward(logits, *args),
        state.new_empty((rows if keep_rows else 0, state.shape[1])),
        logits.new_empty(rows if update else 0, dtype=torch.int64),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:_TENSORS], output[1])
    ctx.options = inputs[_TENSORS:_ARGUMENTS]
    ctx.set_materialize_grads(False)
    if not inputs[-1]:
        raise RuntimeError("keep_rows must be true for a loss that is to be differentiated")


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[: 1 + _TENSORS], inputs[1 + _ARGUMENTS])
    ctx.options = inputs[1 + _TENSORS : 1 + _ARGUMENTS]
    ctx.needs = inputs[-2:]
