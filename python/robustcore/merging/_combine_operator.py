"""The operator that combines task vectors: shape functions, derivatives, choice of the reference.

combine(base, vectors, c) and products(grads, vectors) are linear in each argument, and each is what
the derivative of the other is made of, so that derivatives of any order exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import accumulate_dtype
from .._errors import translated
from .._library import functorch_active
from .._reference import wants_reference
from ._operators import refuse_tangents

__all__ = ["combined_weights"]

_OPS = torch.ops.robustcore
_NAME = "combine_task_vectors"


def combined_weights(
    base: Sequence[Tensor],
    vectors: Sequence[Tensor],
    coefficients: Tensor,
    blocks: Sequence[int],
    add_base: bool = True,
) -> list[Tensor]:
    """base + Σ c τ by tensor; ``coefficients`` float64 [tasks, blocks]."""
    if wants_reference(base[0]):
        from ..reference import merging as reference

        return reference.combined_weights(base, vectors, coefficients, blocks, add_base)
    if torch.compiler.is_compiling():
        return list(_OPS.combine_task_vectors(base, vectors, coefficients, blocks, add_base))
    refuse_tangents(_NAME, [*base, *vectors, coefficients])
    with translated:
        if functorch_active():
            return list(_Combine.apply(coefficients, blocks, add_base, len(base), *base, *vectors))
        return list(_OPS.combine_task_vectors(base, vectors, coefficients, blocks, add_base))


def _products(
    grads: Sequence[Tensor], vectors: Sequence[Tensor], tasks: int, blocks: Any, count: int
) -> Tensor:
    if not torch.compiler.is_compiling() and functorch_active():
        return _Products.apply(tasks, blocks, count, len(grads), *grads, *vectors)
    return _OPS.task_vector_products(grads, vectors, tasks, blocks, count)


def _scaled(
    tensors: Sequence[Tensor],
    factors: Tensor,
    blocks: Any,
    like: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """factors[t, blocks[j]] * tensors[j], task by task, as gradients of ``like`` where needed."""
    results: list[Tensor | None] = []
    for index, (vector, wanted) in enumerate(zip(like, needed, strict=True)):
        task, position = divmod(index, len(tensors))
        tensor = tensors[position]
        compute = accumulate_dtype(tensor.dtype)
        factor = factors[task, blocks[position]].to(compute)
        results.append((factor * tensor.to(compute)).to(vector.dtype) if wanted else None)
    return results


def _combine_gradients(
    grads: Sequence[Tensor],
    vectors: Sequence[Tensor],
    coefficients: Tensor,
    blocks: Any,
    needs_vectors: Sequence[bool],
    needs_coefficients: bool,
) -> tuple[list[Tensor | None], Tensor | None]:
    tasks, count = coefficients.shape
    for_coefficients = None
    if needs_coefficients:
        for_coefficients = _products(grads, vectors, tasks, blocks, count)
    return _scaled(grads, coefficients, blocks, vectors, needs_vectors), for_coefficients


def _product_gradients(
    grad: Tensor,
    grads: Sequence[Tensor],
    vectors: Sequence[Tensor],
    blocks: Any,
    needs_grads: Sequence[bool],
    needs_vectors: Sequence[bool],
) -> tuple[list[Any], list[Tensor | None]]:
    for_grads: list[Any] = [None] * len(grads)
    if any(needs_grads):
        for_grads = combined_weights(grads, vectors, grad, blocks, False)
    return for_grads, _scaled(grads, grad, blocks, vectors, needs_vectors)


def _one_by_one(function: Any, info: Any, in_dims: Any, args: Any) -> tuple[Any, Any]:
    """vmap: a call for each member of the batch."""
    if info.batch_size == 0:
        raise ValueError(f"{_NAME}: vmap needs a batch of at least one, got 0")
    members = []
    for i in range(info.batch_size):
        # The dimensions of a list of numbers are a list themselves: only tensors have members.
        chosen = (a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims))
        members.append(function.apply(*chosen))
    if isinstance(members[0], Tensor):
        return torch.stack(members), 0
    results = tuple(torch.stack(outputs) for outputs in zip(*members))
    return results, (0,) * len(results)


class _Combine(torch.autograd.Function):
    """``combine_task_vectors`` for torch.func, which wants tensors and not lists of them."""

    @staticmethod
    def forward(coefficients: Any, blocks: Any, add_base: Any, count: Any, *tensors: Any) -> Any:
        base, vectors = tensors[:count], tensors[count:]
        return tuple(_OPS.combine_task_vectors(base, vectors, coefficients, blocks, add_base))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        coefficients, ctx.blocks, ctx.add_base, ctx.count, *tensors = inputs
        ctx.save_for_backward(coefficients, *tensors[ctx.count :])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        coefficients, *vectors = ctx.saved_tensors
        for_vectors, for_coefficients = _combine_gradients(
            grads,
            vectors,
            coefficients,
            ctx.blocks,
            ctx.needs_input_grad[4 + ctx.count :],
            ctx.needs_input_grad[0],
        )
        for_base = grads if ctx.add_base else [None] * ctx.count
        return for_coefficients, None, None, None, *for_base, *for_vectors

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _one_by_one(_Combine, info, in_dims, args)


class _Products(torch.autograd.Function):
    """``task_vector_products`` for torch.func."""

    @staticmethod
    def forward(tasks: Any, blocks: Any, columns: Any, count: Any, *tensors: Any) -> Any:
        return _OPS.task_vector_products(tensors[:count], tensors[count:], tasks, blocks, columns)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.blocks, _, ctx.count, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        tensors = ctx.saved_tensors
        grads, vectors = tensors[: ctx.count], tensors[ctx.count :]
        for_grads, for_vectors = _product_gradients(
            grad,
            grads,
            vectors,
            ctx.blocks,
            ctx.needs_input_grad[4 : 4 + ctx.count],
            ctx.needs_input_grad[4 + ctx.count :],
        )
        return None, None, None, None, *for_grads, *for_vectors

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _one_by_one(_Products, info, in_dims, args)


@torch.library.register_fake(f"robustcore::{_NAME}")
def _(base: Any, vectors: Any, coefficients: Any, blocks: Any, add_base: Any) -> Any:
    return [tensor.new_empty(tensor.shape) for tensor in base]


@torch.library.register_fake("robustcore::task_vector_products")
def _(grads: Any, vectors: Any, tasks: Any, blocks: Any, block_count: Any) -> Any:
    return grads[0].new_empty((tasks, block_count), dtype=torch.float64)


def _combine_context(ctx: Any, inputs: Any, output: Any) -> None:
    base, vectors, coefficients, ctx.blocks, ctx.add_base = inputs
    ctx.tensors = len(base)
    ctx.save_for_backward(coefficients, *vectors)


def _combine_backward(ctx: Any, grads: Any) -> Any:
    coefficients, *vectors = ctx.saved_tensors
    for_vectors, for_coefficients = _combine_gradients(
        list(grads),
        vectors,
        coefficients,
        ctx.blocks,
        ctx.needs_input_grad[1],
        ctx.needs_input_grad[2],
    )
    for_base = list(grads) if ctx.add_base else [None] * ctx.tensors
    return for_base, for_vectors, for_coefficients, None, None


def _products_context(ctx: Any, inputs: Any, output: Any) -> None:
    grads, vectors, _, ctx.blocks, _ = inputs
    ctx.tensors = len(grads)
    ctx.save_for_backward(*grads, *vectors)


def _products_backward(ctx: Any, grad: Any) -> Any:
    tensors = ctx.saved_tensors
    grads, vectors = list(tensors[: ctx.tensors]), list(tensors[ctx.tensors :])
    for_grads, for_vectors = _product_gradients(
        grad, grads, vectors, ctx.blocks, ctx.needs_input_grad[0], ctx.needs_input_grad[1]
    )
    return for_grads, for_vectors, None, None, None


torch.library.register_autograd(
    f"robustcore::{_NAME}", _combine_backward, setup_context=_combine_context
)
torch.library.register_autograd(
    "robustcore::task_vector_products", _products_backward, setup_context=_products_context
)
