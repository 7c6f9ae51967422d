"""Combining task vectors in plain PyTorch. Arguments are documented in :mod:`robustcore.merging`.

Lists are models: tensors in flat order, those of ``vectors`` task by task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..._checks import accumulate_dtype
from ..._reference import use_reference

if TYPE_CHECKING:
    from ...merging.state_dict import Model

__all__ = ["combine_task_vectors", "combined_weights", "task_vector_products"]


def combine_task_vectors(
    base: Model,
    vectors: Sequence[Model] | Mapping[str, Model],
    coefficients: Tensor,
    *,
    blocks: Mapping[str, int] | Sequence[int] | None = None,
) -> Tensor | dict[str, Tensor]:
    """Reference of :func:`robustcore.merging.combine_task_vectors`."""
    from ... import merging

    with use_reference():
        return merging.combine_task_vectors(base, vectors, coefficients, blocks=blocks)


def combined_weights(
    base: Sequence[Tensor],
    vectors: Sequence[Tensor],
    coefficients: Tensor,
    blocks: Sequence[int],
    add_base: bool = True,
) -> list[Tensor]:
    """base + ((c1 τ1 + c2 τ2) + ...), tensor by tensor, in the dtype of computation."""
    results = []
    for tensor, start in enumerate(base):
        compute = accumulate_dtype(start.dtype)
        total = torch.zeros_like(start, dtype=compute)
        for task, row in enumerate(vectors[tensor :: len(base)]):
            coefficient = coefficients[task, blocks[tensor]].to(compute)
            total = total + coefficient * row.to(compute)
        if add_base:
            total = start.to(compute) + total
        results.append(total.to(start.dtype))
    return results


def task_vector_products(
    grads: Sequence[Tensor],
    vectors: Sequence[Tensor],
    tasks: int,
    blocks: Sequence[int],
    block_count: int,
) -> Tensor:
    """Inner products <grad_j, τ_tj>, added up over the tensors of a block, float64."""
    rows = []
    for task in range(tasks):
        row: list[Tensor | int] = [0] * block_count
        for tensor, grad in enumerate(grads):
            vector = vectors[task * len(grads) + tensor].double()
            row[blocks[tensor]] = row[blocks[tensor]] + (grad.double() * vector).sum()
        rows.append(torch.stack([torch.as_tensor(entry, device=grads[0].device) for entry in row]))
    if not rows or not block_count:
        return grads[0].new_zeros((tasks, block_count), dtype=torch.float64)
    return torch.stack(rows).double()
