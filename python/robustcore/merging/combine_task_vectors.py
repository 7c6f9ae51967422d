"""Learned combinations of task vectors: one coefficient per task and parameter block (aTLAS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .._checks import accumulate_dtype, check_device, check_floating, check_tensor
from ._combine_operator import combined_weights
from .state_dict import FlatLayout, Model, check_model, matching_tensors, named_models, read_layout

__all__ = ["TaskCoefficients", "combine_task_vectors"]

_MAXIMUM_CUDA_TASKS = 256


def combine_task_vectors(
    base: Model,
    vectors: Sequence[Model] | Mapping[str, Model],
    coefficients: Tensor,
    *,
    blocks: Mapping[str, int] | Sequence[int] | None = None,
) -> Tensor | dict[str, Tensor]:
    r"""A base plus task vectors with one coefficient per task and parameter block (aTLAS).

    .. math::
        \theta_j = \theta_{0,j} + \sum_{t=1}^{T} c_{t,b(j)}\, \tau_{t,j}, \qquad
        \frac{\partial L}{\partial c_{t,b}} = \sum_{j: b(j) = b}
        \Big\langle \frac{\partial L}{\partial \theta_j}, \tau_{t,j} \Big\rangle

    for the tensors j of a model. A handful of numbers is learned instead of P weights: put the
    result into a module with :func:`torch.func.functional_call` and train ``coefficients``.

    Args:
        base: :math:`\theta_0`: a tensor, or a state dict whose floating-point tensors (float32,
            float64, bfloat16, float16, all on one device) are the tensors j, sorted by name.
        vectors: :math:`\tau_t`: a sequence of T task vectors or a mapping from names to them, as
            :func:`task_vector` makes them: the names and shapes of ``base``, in its dtypes or in
            those of computation; other dtypes of a task than of the rest are converted. For
            fine-tuned models, call :func:`task_vector` first. On CUDA at most 256.
        coefficients: c, on the device of ``base``: [T, B]; or [T], one for all tensors of a task.
            float32, float64, bfloat16 or float16.
        blocks: b: the block of every tensor, from 0 to B - 1: a mapping from all names, or a
            sequence in the order of the sorted names. By default every tensor is its own block.

    Returns:
        A tensor or a dict like ``base``, in its dtypes; buffers that are not floating point are
        copies of those of the base. Differentiable to any order for ``coefficients``, ``base`` and
        ``vectors``, also under :mod:`torch.func`; there is no forward-mode derivative.

    Raises:
        TypeError: An argument is not a model, not a sequence or mapping of models, or not a tensor
            of floating point.
        ValueError: Models differ from the base (one message lists all differences), or the shapes
            of coefficients, vectors and blocks do not fit each other.
        NotImplementedError: A tensor carries a forward-mode tangent.

    Numerics: terms are added one task after the other in float32 (float64 for a float64 tensor)
    with one rounding per operation, the base last, and the result is rounded once to the dtype of
    the base. The derivative for the coefficients is summed in float64 in an order that depends on
    the shapes only: the same bits for any number of threads.

    Cost: forward reads the base and the T vectors once and writes the result. Backward reads the
    gradient and the T vectors once for ``coefficients`` alone: nothing of size T·P is made unless
    ``vectors`` require grad.

    Source: Zhang et al., Knowledge Composition using Task Vectors with Learned Anisotropic Scaling,
    arXiv 2407.02880.

    Example:
        >>> import torch
        >>> from robustcore.merging import combine_task_vectors
        >>> base = {"bias": torch.zeros(1), "weight": torch.ones(2)}
        >>> vectors = [{"bias": torch.ones(1), "weight": torch.tensor([1.0, -1.0])}]
        >>> c = torch.tensor([[0.0, 0.5]], requires_grad=True)  # [tasks, tensors]
        >>> merged = combine_task_vectors(base, vectors, c)
        >>> merged["weight"].tolist()
        [1.5, 0.5]
        >>> merged["weight"][0].backward()
        >>> c.grad
        tensor([[0., 1.]])
    """
    op = "combine_task_vectors"
    layout, device = read_layout(op, base)
    models = _named_vectors(op, vectors)
    check_tensor(op, "coefficients", coefficients)
    check_device(op, "coefficients", coefficients, device)
    check_floating(op, "coefficients", coefficients)
    named: dict[str, Model] = {f"vectors[{name!r}]": model for name, model in models.items()}
    names = frozenset(named)
    tensors = matching_tensors(op, layout, device, {"base": base, **named}, vectors=names)
    starts = tensors.pop("base")
    if device.type == "cuda" and len(models) > _MAXIMUM_CUDA_TASKS:
        raise ValueError(
            f"{op}: vectors must hold at most {_MAXIMUM_CUDA_TASKS} on CUDA, got {len(models)}"
        )
    columns = _columns(op, layout, blocks, coefficients, len(models))
    wide = coefficients.double()
    if wide.dim() == 1:
        wide = wide.unsqueeze(1)
    results = []
    if starts:
        rows = _of_one_dtype(list(tensors.values()), starts)
        results = combined_weights(starts, rows, wide, columns)
    if isinstance(base, Tensor):
        return results[0]
    by_key = dict(zip(layout.keys, results, strict=True))
    return {key: by_key[key] if key in by_key else base[key].clone() for key in base}


def _named_vectors(op: str, vectors: object) -> dict[str, Model]:
    try:
        return named_models(op, vectors)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("finetuned", "vectors")) from None


def _of_one_dtype(models: Sequence[Sequence[Tensor]], like: Sequence[Tensor]) -> list[Tensor]:
    """Task by task; of one tensor the vectors of all tasks come in one dtype."""
    rows = [list(model) for model in models]
    for index, start in enumerate(like):
        if len({model[index].dtype for model in rows}) > 1:
            for model in rows:
                model[index] = model[index].to(accumulate_dtype(start.dtype))
    return [tensor for model in rows for tensor in model]


def _columns(
    op: str,
    layout: FlatLayout,
    blocks: Mapping[str, int] | Sequence[int] | None,
    coefficients: Tensor,
    tasks: int,
) -> list[int]:
    """The column of ``coefficients`` of every tensor."""
    tensors = len(layout.parameters)
    if coefficients.dim() == 1:
        if blocks is not None:
            raise ValueError(f"{op}: blocks must be None for coefficients of shape [T], got blocks")
        columns = [0] * tensors
        expected: tuple[int, ...] = (tasks,)
    else:
        columns = checked_blocks(op, layout, blocks)
        count = tensors if blocks is None else max(columns, default=-1) + 1
        # More blocks than tensors refer to are fine: their coefficients take no part.
        if blocks is not None and coefficients.dim() == 2:
            count = max(count, coefficients.shape[1])
        expected = (tasks, count)
    if tuple(coefficients.shape) != expected:
        raise ValueError(
            f"{op}: coefficients must have shape {expected}, got {tuple(coefficients.shape)}"
        )
    return columns


def checked_blocks(
    op: str, layout: FlatLayout, blocks: Mapping[str, int] | Sequence[int] | None
) -> list[int]:
    """The block of every tensor, in flat order."""
    if blocks is None:
        return list(range(len(layout.parameters)))
    if isinstance(blocks, Mapping):
        missing = [key for key in layout.keys if key not in blocks]
        unknown = [key for key in blocks if key not in layout.keys]
        if missing or unknown:
            raise ValueError(
                f"{op}: blocks must name every tensor of base, missing {missing}, unknown {unknown}"
            )
        columns = [blocks[key] for key in layout.keys]
    elif isinstance(blocks, Sequence) and not isinstance(blocks, (str, bytes)):
        columns = list(blocks)
        if len(columns) != len(layout.parameters):
            raise ValueError(
                f"{op}: blocks must hold one number per tensor ({len(layout.parameters)}), got "
                f"{len(columns)}"
            )
    else:
        raise TypeError(
            f"{op}: blocks must be a mapping, a sequence or None, got {type(blocks).__name__}"
        )
    for column in columns:
        if isinstance(column, bool) or not isinstance(column, int):
            raise TypeError(f"{op}: a block must be an int, got {type(column).__name__}")
        if column < 0:
            raise ValueError(f"{op}: a block must not be negative, got {column}")
    return columns


class TaskCoefficients(nn.Module):
    r"""Learned coefficients of task vectors, with the base and the vectors that they belong to.

    ``forward()`` is :func:`combine_task_vectors`; the coefficients are the only parameters.

    Args:
        base: As in :func:`combine_task_vectors`. Kept by reference.
        vectors: The same. Neither is part of the state dict or moved by ``to()``: move them first.
        blocks: The same.
        initial: The value that every coefficient starts from: 0 is the base itself.

    Attributes:
        coefficients: [T, B], float32 (float64 where every tensor of the base is).

    Raises:
        TypeError, ValueError: As :func:`combine_task_vectors`.

    Example:
        >>> import torch
        >>> from robustcore.merging import TaskCoefficients, task_vector
        >>> module = torch.nn.Linear(2, 1)
        >>> base = module.state_dict()
        >>> finetuned = {key: tensor + 1 for key, tensor in base.items()}
        >>> learned = TaskCoefficients(base, [task_vector(base, finetuned)])
        >>> optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
        >>> x, y = torch.ones(4, 2), module(torch.ones(4, 2)).detach() + 3
        >>> for _ in range(50):
        ...     optimizer.zero_grad()
        ...     loss = (torch.func.functional_call(module, learned(), (x,)) - y).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        >>> loss.item() < 1e-4
        True
    """

    def __init__(
        self,
        base: Model,
        vectors: Sequence[Model] | Mapping[str, Model],
        *,
        blocks: Mapping[str, int] | Sequence[int] | None = None,
        initial: float = 0.0,
    ) -> None:
        super().__init__()
        op = "TaskCoefficients"
        check_model(op, "base", base)
        layout, device = read_layout(op, base)
        self.base = base
        self.vectors = _named_vectors(op, vectors)
        columns = checked_blocks(op, layout, blocks)
        self.blocks = None if blocks is None else tuple(columns)
        double = bool(layout.parameters) and set(layout.dtypes) == {torch.float64}
        shape = (len(self.vectors), max(columns, default=-1) + 1)
        self.coefficients = nn.Parameter(
            torch.full(
                shape, initial, device=device, dtype=torch.float64 if double else torch.float32
            )
        )
        with torch.no_grad():
            named: dict[str, Model] = {f"vectors[{n!r}]": m for n, m in self.vectors.items()}
            matching_tensors(op, layout, device, named, vectors=frozenset(named))

    def forward(self) -> Tensor | dict[str, Tensor]:
        """The combined weights, differentiable for the coefficients."""
        return combine_task_vectors(self.base, self.vectors, self.coefficients, blocks=self.blocks)

    def extra_repr(self) -> str:
        tasks, blocks = self.coefficients.shape
        return f"tasks={tasks}, blocks={blocks}"
