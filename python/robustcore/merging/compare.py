"""What changed between two models, tensor by tensor and layer by layer."""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import FLOATING_DTYPES, accumulate_dtype
from ._operators import implementation
from .checkpoints import Checkpoint, StoredTensor
from .depth import layer_names
from .engine.capacity import parameters_per_chunk
from .engine.chunks import cut
from .engine.pieces import Pieces
from .engine.plan import MergedTensor, MergePlan
from .engine.stream import Stream
from .merge import Source, open_source

__all__ = ["BufferDifference", "Comparison", "Difference", "compare"]

# Columns of compare_weights (csrc/merging/compare_weights.h).
_L1, _SQUARES, _FIRST, _SECOND, _PRODUCTS, _CHANGED, _LARGEST, _NONFINITE = range(8)
_COLUMNS = 8
_STEP_BYTES = 16 << 20


@dataclass(frozen=True)
class Difference:
    """How far the weights of two models are apart in one tensor, one layer, or all: d = b - a.

    Attributes:
        name: Of the tensor or the layer.
        parameters: How many weights were compared.
        changed: How many are not equal.
        norm: ||d||, Euclidean.
        first_norm: ||a||.
        second_norm: ||b||.
        mean: The mean of |d|.
        largest: The largest |d|.
        product: a·b.
        nonfinite: How many weights are NaN or infinite in a or b; where there are any, sums and
            what follows from them are NaN or infinite too.
    """

    name: str
    parameters: int
    changed: int
    norm: float
    first_norm: float
    second_norm: float
    mean: float
    largest: float
    product: float
    nonfinite: int = 0

    @property
    def relative_norm(self) -> float:
        """||d|| / ||a||: 0 where nothing changed, infinite where a is zero and b is not."""
        if self.first_norm == 0:
            return 0.0 if self.norm == 0 else math.inf
        return self.norm / self.first_norm

    @property
    def cosine(self) -> float:
        """Of the angle between a and b; 1 where nothing changed, NaN where one of them is zero."""
        if self.changed == 0 and self.nonfinite == 0:
            return 1.0
        norms = self.first_norm * self.second_norm
        return self.product / norms if norms > 0 else math.nan

    @property
    def density(self) -> float:
        """The share of weights that changed."""
        return self.changed / self.parameters if self.parameters else 0.0

    def as_json(self) -> dict[str, Any]:
        """All of it, for JSON: what is not finite is None."""
        fields = dataclasses.asdict(self)
        for name in ("relative_norm", "cosine", "density"):
            fields[name] = getattr(self, name)
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in fields.items()
        }


@dataclass(frozen=True)
class BufferDifference:
    """A tensor of integers or booleans: how many of its elements are not equal."""

    name: str
    elements: int
    changed: int


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` finds.

    Attributes:
        tensors: The floating-point tensors that both models have in the same shape, by name.
        layers: The same added up by layer: what carries a number below ``layers``, ``blocks`` and
            the like, and the rest by the first parts of its name.
        total: Everything added up.
        buffers: Tensors of integers and booleans.
        mismatches: Tensors of other shapes, which were not compared, and of other dtypes, which
            were, one line each.
        missing: Names that only the first model has.
        extra: Names that only the second model has.
    """

    tensors: tuple[Difference, ...]
    layers: tuple[Difference, ...]
    total: Difference
    buffers: tuple[BufferDifference, ...] = ()
    mismatches: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Same names, shapes, dtypes and values; NaN is equal to nothing."""
        changed = self.total.changed or any(buffer.changed for buffer in self.buffers)
        return not (changed or self.mismatches or self.missing or self.extra)

    def as_json(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "equal": self.is_equal,
            "total": self.total.as_json(),
            "layers": [entry.as_json() for entry in self.layers],
            "tensors": [entry.as_json() for entry in self.tensors],
            "buffers": [dataclasses.asdict(entry) for entry in self.buffers],
            "mismatches": list(self.mismatches),
            "missing": list(self.missing),
            "extra": list(self.extra),
        }


def compare(
    a: Source,
    b: Source,
    *,
    max_memory: int = 1 << 30,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    r"""What changed from one model to another.

    .. math::
        d = b - a, \quad \|d\|_2, \quad \|d\|_2 / \|a\|_2, \quad
        \frac{a \cdot b}{\|a\|_2 \|b\|_2}, \quad \frac{\#\{d \ne 0\}}{n}, \quad \max |d|

    for each tensor, for each layer and for all weights.

    Args:
        a: A tensor, a state dict, or the path of a checkpoint of any kind.
        b: The same, or the folder of a LoRA adapter: then it is a with the adapter added. Of two
            adapters the updates themselves are compared.
        max_memory: Bytes that buffers may take.
        progress: Called as ``progress(what, done, total)``, in parameters.

    Returns:
        A :class:`Comparison`. Names, shapes and dtypes may differ: what differs is listed.

    Raises:
        TypeError: An argument is not a model.
        ValueError: A file is damaged; only ``a`` is a LoRA adapter.
        OSError: A file cannot be read.

    Numerics: differences and products are taken in float64, sums in float64 over blocks of 4096
    weights that are then added exactly. The result does not depend on ``max_memory`` or the number
    of threads.

    Cost: reads both models once.

    Example:
        >>> import torch
        >>> from robustcore.merging import compare
        >>> a = {"layers.0.w": torch.tensor([3.0, 4.0]), "layers.1.w": torch.tensor([1.0, 0.0])}
        >>> b = {"layers.0.w": torch.tensor([3.0, 4.5]), "layers.1.w": torch.tensor([1.0, 0.0])}
        >>> found = compare(a, b)
        >>> found.total.norm, found.total.changed, found.layers[0].relative_norm
        (0.5, 1, 0.1)
    """
    op = "compare"
    first = open_source("a", a)
    try:
        second = open_source("b", b)
        try:
            return _compare(op, first, second, max_memory, progress)
        finally:
            if second is not b:
                second.close()
    finally:
        if first is not a:
            first.close()


def _compare(
    op: str,
    first: Checkpoint,
    second: Checkpoint,
    max_memory: int,
    progress: Callable[[str, int, int], None] | None,
) -> Comparison:
    if first.is_task_vector and not second.is_task_vector:
        raise ValueError(f"{op}: a must be a model where b is one, got a LoRA adapter")
    added = second.is_task_vector and not first.is_task_vector
    shared = [key for key in _names(first) if added or key in second.tensors]
    merged, buffers, mismatches, start = [], [], [], 0
    for key in shared:
        info, other = first.tensors[key], second.tensors.get(key)
        line = _mismatch(info, other)
        if line and not added:
            mismatches.append(line)
        if other is not None and other.shape != info.shape:
            mismatches += [line] if line and added else []
            continue
        if all(entry.dtype in FLOATING_DTYPES for entry in (info, other) if entry):
            count = info.numel if other else 0
            merged.append(MergedTensor(key, info.shape, info.dtype, start, (info.numel, count)))
            start += info.numel
        elif other is not None and other.dtype == info.dtype:
            buffers.append(_compare_buffer(info, first, second))
    plan = MergePlan(first, {"b": second}, tuple(merged), (), {})
    sums = _walk(op, plan, added, max_memory, progress)
    rows = {tensor.key: (tensor.numel, sums[tensor.key]) for tensor in merged}
    layers: dict[str, list[tuple[int, list[float]]]] = {}
    for key, layer in layer_names(rows).items():
        layers.setdefault(layer, []).append(rows[key])
    return Comparison(
        tuple(_difference(key, [row]) for key, row in rows.items()),
        tuple(_difference(layer, group) for layer, group in layers.items()),
        _difference("total", list(rows.values())),
        tuple(buffers),
        tuple(mismatches),
        () if added else tuple(key for key in _names(first) if key not in second.tensors),
        tuple(key for key in _names(second) if key not in first.tensors),
    )


def _names(model: Checkpoint) -> list[str]:
    """Tied weights once."""
    return sorted(model.tensors.keys() - model.aliases.keys())


def _mismatch(info: StoredTensor, other: StoredTensor | None) -> str | None:
    if other is None or (info.shape, info.dtype) == (other.shape, other.dtype):
        return None
    dtypes = [str(entry.dtype).removeprefix("torch.") for entry in (info, other)]
    if info.shape == other.shape:
        return f"{info.key}: {dtypes[0]} and {dtypes[1]}"
    return f"{info.key}: {dtypes[0]} {info.shape} and {dtypes[1]} {other.shape}"


def _walk(
    op: str,
    plan: MergePlan,
    added: bool,
    max_memory: int,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, list[float]]:
    """The sums of each tensor."""
    scratch = 16 if added else 1
    capacity = parameters_per_chunk(op, plan, max_memory, scratch)
    chunks = cut(plan.tensors, capacity, capacity, whole=False)
    sums = {tensor.key: [0.0] * _COLUMNS for tensor in plan.tensors}
    rows = [array("d") for _ in range(_COLUMNS)]
    done = 0
    for pieces in Stream(plan, capacity, torch.device("cpu")).walk(chunks):
        base, others = pieces.base, _second(pieces, added)
        blocks = iter(implementation(base[0]).compare_weights(base, others).split(_blocks(base)))
        for piece, found in zip(pieces.slices, blocks, strict=True):
            for column, row in enumerate(rows):
                row.extend(found[:, column].tolist())
            done += piece.parameters
            if piece.stop == piece.tensor.numel:
                sums[piece.tensor.key] = [_total(column, row) for column, row in enumerate(rows)]
                rows = [array("d") for _ in range(_COLUMNS)]
        if progress is not None:
            progress("comparing", done, plan.num_parameters)
    return sums


def _blocks(tensors: Iterable[Tensor]) -> list[int]:
    return [math.ceil(tensor.numel() / 4096) for tensor in tensors]


def _second(pieces: Pieces, added: bool) -> list[Tensor]:
    if not added:
        return pieces.tasks
    sums = []
    for start, change in zip(pieces.base, pieces.tasks, strict=True):
        wide = start.to(accumulate_dtype(start.dtype))
        sums.append(wide + change.to(wide.dtype))
    return sums


def _total(column: int, values: Iterable[float]) -> float:
    if column == _LARGEST:
        return max(values, default=0.0)
    try:
        return math.fsum(values)
    except (ValueError, OverflowError):  # infinities of both signs, or too large
        return math.nan


def _difference(name: str, rows: list[tuple[int, list[float]]]) -> Difference:
    """Tensors added up."""
    parameters = sum(count for count, _ in rows)
    sums = [_total(column, [row[column] for _, row in rows]) for column in range(_COLUMNS)]
    return Difference(
        name=name,
        parameters=parameters,
        changed=int(sums[_CHANGED]),
        norm=math.sqrt(sums[_SQUARES]),
        first_norm=math.sqrt(sums[_FIRST]),
        second_norm=math.sqrt(sums[_SECOND]),
        mean=sums[_L1] / parameters if parameters else 0.0,
        largest=sums[_LARGEST],
        product=sums[_PRODUCTS],
        nonfinite=int(sums[_NONFINITE]),
    )


def _compare_buffer(info: StoredTensor, first: Checkpoint, second: Checkpoint) -> BufferDifference:
    step = max(1, _STEP_BYTES // info.dtype.itemsize)
    changed = 0
    for start in range(0, info.numel, step):
        stop = min(info.numel, start + step)
        values = [
            model.read(info.key, start, stop, torch.empty(stop - start, dtype=info.dtype))
            for model in (first, second)
        ]
        changed += int((values[0].cpu() != values[1].cpu()).sum())
    return BufferDifference(info.key, info.numel, changed)
