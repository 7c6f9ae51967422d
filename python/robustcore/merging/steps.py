"""Single steps on task vectors, for methods that :class:`.TaskVectors` does not cover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import check_choice
from .checkpoints import StateDictCheckpoint
from .depth import depth_scales
from .methods._options import number, task_weights
from .pipeline import TaskVectors
from .state_dict import Model, check_model

__all__ = ["elect_sign", "scale_by_depth", "trim"]


def trim(
    vector: Model, density: float, *, top: float = 0.0, scope: str = "tensor", exact: bool = True
) -> Any:
    """The largest magnitudes of a task vector, zero elsewhere.

    Args:
        vector: A tensor or a state dict, of :func:`task_vector` for instance.
        density, top, scope, exact: As for :meth:`TaskVectors.trim`.

    Returns:
        A task vector in float32 (float64 for float64).

    Example:
        >>> import torch
        >>> from robustcore.merging import trim
        >>> trim(torch.tensor([3.0, -1.0, 2.0, 0.5]), 0.5)
        tensor([3., 0., 2., 0.])
    """
    check_model("trim", "vector", vector)
    values = {"": vector} if isinstance(vector, Tensor) else vector
    # What is trimmed is not added to anything: any base of this shape will do.
    same = StateDictCheckpoint("vector", values, is_task_vector=True)
    steps = TaskVectors(StateDictCheckpoint("vector", values), [same])
    trimmed = steps.trim(density, top=top, scope=scope, exact=exact).vector()
    return trimmed[""] if isinstance(vector, Tensor) else trimmed


def elect_sign(
    vectors: Sequence[Model], *, votes: str = "sum", weights: float | Sequence[float] = 1.0
) -> Any:
    """The sign that task vectors elect for each parameter: -1, 0 (votes cancel out) or 1.

    Args:
        vectors: Tensors or state dicts of the same names and shapes.
        votes: ``"sum"``, ``"weighted"`` (by ``weights``) or ``"count"``.

    Returns:
        A tensor or a dict, int8.

    Example:
        >>> import torch
        >>> from robustcore.merging import elect_sign
        >>> elect_sign([torch.tensor([3.0, -1.0, 0.0]), torch.tensor([-1.0, -2.0, 0.0])])
        tensor([ 1, -1,  0], dtype=torch.int8)
    """
    op = "elect_sign"
    check_choice(op, "votes", votes, ("sum", "weighted", "count"))
    if isinstance(vectors, Tensor) or not isinstance(vectors, Sequence) or not vectors:
        raise TypeError(f"{op}: vectors must be a sequence of task vectors, got {vectors!r}")
    for index, vector in enumerate(vectors):
        check_model(op, f"vectors[{index}]", vector)
    given = task_weights("weights", weights, len(vectors))
    factors = given if isinstance(given, tuple) else (given,) * len(vectors)
    if all(isinstance(vector, Tensor) for vector in vectors):
        return _elected(list(vectors), votes, factors)
    named: list[Any] = list(vectors)
    first = named[0]
    for index, vector in enumerate(named):
        if isinstance(vector, Tensor) or isinstance(first, Tensor) or vector.keys() != first.keys():
            raise ValueError(f"{op}: vectors[{index}] must have the names of vectors[0]")
    return {key: _elected([vector[key] for vector in named], votes, factors) for key in first}


def _elected(values: Sequence[Any], votes: str, factors: Sequence[float]) -> Tensor:
    total = torch.zeros_like(values[0], dtype=torch.promote_types(values[0].dtype, torch.float32))
    for value, factor in zip(values, factors, strict=True):
        if votes == "count":
            total += value.sign()
        elif votes == "weighted":
            total += factor * value.to(total.dtype)
        else:
            total += value
    return total.sign().to(torch.int8)


def scale_by_depth(
    vector: dict[str, Tensor], alpha: float, beta: float, *, blocks: str | None = None
) -> dict[str, Tensor]:
    """LiNeS on a task vector: block l of L times alpha + beta l / (L - 1), all else times alpha.

    Args:
        vector: A state dict; blocks are found by the names of its tensors.
        blocks: A regular expression whose first group is the number of the block, where the names
            are not the usual ones.

    Raises:
        ValueError: There are fewer than two blocks, or more than one stack of them.

    Example:
        >>> import torch
        >>> from robustcore.merging import scale_by_depth
        >>> vector = {f"layers.{i}.w": torch.ones(1) for i in range(3)} | {"head": torch.ones(1)}
        >>> [float(value) for value in scale_by_depth(vector, 0.5, 1.0).values()]
        [0.5, 1.0, 1.5, 0.5]
    """
    op = "scale_by_depth"
    check_model(op, "vector", vector)
    if isinstance(vector, Tensor):
        raise TypeError(f"{op}: vector must be a state dict, got a tensor")
    scales = depth_scales(op, vector, number("alpha", alpha), number("beta", beta), blocks)
    return {key: scales[key] * value for key, value in vector.items()}
