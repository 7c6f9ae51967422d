"""What a merge will do, found out before any weight is read: which tensors are merged and which are
carried from the base, every mismatch, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..checkpoints import Checkpoint, StoredTensor

__all__ = ["POLICIES", "MergePlan", "MergedTensor", "Mismatch", "make_plan"]

POLICIES = ("error", "skip", "crop", "pad")

_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class MergedTensor:
    """One tensor of the result that is merged from all models.

    Attributes:
        flat_start: Index of its first parameter in the flat order of all merged tensors.
        stored: How many parameters, from the start, the base (first) and each task really have; the
            rest is zero in the base and no change in a task.
    """

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    flat_start: int
    stored: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Mismatch:
    """A difference between a model and the base, and what is done about it."""

    model: str
    key: str
    problem: str
    action: str  # "error", or what happens instead

    def __str__(self) -> str:
        return f"{self.model}[{self.key!r}] {self.problem}"


@dataclass(frozen=True)
class MergePlan:
    """What will be done.

    Attributes:
        tensors: The tensors that are merged, in flat order.
        carried: Tensors copied from the base: integers, booleans, skipped mismatches.
        tied: Keys of the base that are other names of one of its tensors.
        mismatches: Every difference, those with action ``"error"`` first.
    """

    base: Checkpoint
    tasks: Mapping[str, Checkpoint]
    tensors: tuple[MergedTensor, ...]
    carried: tuple[StoredTensor, ...]
    tied: Mapping[str, str]
    mismatches: tuple[Mismatch, ...] = field(default=())

    @property
    def models(self) -> tuple[Checkpoint, ...]:
        return (self.base, *self.tasks.values())

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel for tensor in self.tensors)

    @property
    def bytes_read(self) -> int:
        """Bytes of one walk over all models, and of what is carried."""
        merged = sum(
            model.tensors[tensor.key].dtype.itemsize * count
            for tensor in self.tensors
            for model, count in zip(self.models, tensor.stored, strict=True)
            if count
        )
        return merged + sum(info.nbytes for info in self.carried)

    @property
    def bytes_written(self) -> int:
        return sum(t.nbytes for t in self.tensors) + sum(info.nbytes for info in self.carried)

    def outputs(self) -> list[StoredTensor]:
        """All tensors of the result, sorted by key."""
        merged = [StoredTensor(t.key, t.shape, t.dtype) for t in self.tensors]
        return sorted([*merged, *self.carried], key=lambda info: info.key)


def make_plan(
    op: str,
    base: Checkpoint,
    tasks: Mapping[str, Checkpoint],
    *,
    mismatch: str = "error",
    dtype: torch.dtype | None = None,
) -> MergePlan:
    """Compares every model with the base.

    Args:
        mismatch: What is done about a tensor of other rows, a missing or surplus one: ``"error"``;
            ``"skip"``: the base's tensor is kept; ``"crop"``: the rows that all models have are
            merged; ``"pad"``: all rows are, where a model lacks some it has no say.
        dtype: Of merged tensors; by default that of the base.

    Raises:
        ValueError: With ``"error"``, or where a policy does not apply; one message lists all.
    """
    found: list[Mismatch] = []
    merged: list[MergedTensor] = []
    carried: list[StoredTensor] = []
    start = 0
    for key in sorted(base.tensors.keys() - base.aliases.keys()):
        info = base.tensors[key]
        if info.dtype not in _FLOATING:
            carried.append(info)
            _compare_carried(info, tasks, mismatch, found)
            continue
        before = len(found)
        shape, stored = _compare_merged(info, tasks, mismatch, found)
        skipped = any(entry.action.startswith("kept") for entry in found[before:])
        if skipped or any(entry.action == "error" for entry in found[before:]):
            carried.append(info)
            continue
        merged.append(MergedTensor(key, shape, dtype or info.dtype, start, stored))
        start += math.prod(shape)
    for name, task in tasks.items():
        for key in sorted(task.tensors.keys() - task.aliases.keys() - base.tensors.keys()):
            action = "error" if mismatch == "error" else "left out"
            found.append(Mismatch(name, key, "is not in base", action))
    _compare_ties(base, tasks, mismatch, found)
    found.sort(key=lambda entry: entry.action != "error")
    errors = [entry for entry in found if entry.action == "error"]
    if errors:
        raise ValueError(_report(op, errors))
    return MergePlan(
        base, dict(tasks), tuple(merged), tuple(carried), dict(base.aliases), tuple(found)
    )


def _report(op: str, errors: Sequence[Mismatch]) -> str:
    count = "1 difference" if len(errors) == 1 else f"{len(errors)} differences"
    lines = [f"  {entry}" for entry in errors[:200]]
    if len(errors) > 200:
        lines.append(f"  and {len(errors) - 200} more")
    return "\n".join([f"{op}: the models must match base, got {count}:", *lines])


def _found(task: Checkpoint, key: str) -> StoredTensor | None:
    return task.tensors.get(key)


def _compare_merged(
    info: StoredTensor, tasks: Mapping[str, Checkpoint], mismatch: str, found: list[Mismatch]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of the merged tensor, and how many parameters each model has of it."""
    rows = [info.shape[0] if info.shape else 1]
    width = math.prod(info.shape[1:])
    problems: list[tuple[str, str, bool]] = []  # model, problem, whether rows can be cropped
    for name, task in tasks.items():
        other = _found(task, info.key)
        if other is None:
            if not task.is_task_vector:
                problems.append((name, "is missing", False))
            rows.append(0 if task.is_task_vector else rows[0])
            continue
        if other.dtype not in _FLOATING:
            problems.append((name, f"must be floating-point, got {_name(other.dtype)}", False))
        if other.shape != info.shape:
            comparable = bool(info.shape) and other.shape[1:] == info.shape[1:]
            comparable &= len(other.shape) == len(info.shape)
            problems.append((name, f"must have shape {info.shape}, got {other.shape}", comparable))
            rows.append(other.shape[0] if comparable else rows[0])
        else:
            rows.append(rows[0])
    total = rows[0]
    if problems and mismatch in ("crop", "pad") and all(row for _, _, row in problems):
        present = [count for count in rows if count]
        total = min(present) if mismatch == "crop" else max(present)
        action = f"{'cropped' if mismatch == 'crop' else 'padded'} to {total} rows"
        found += [Mismatch(name, info.key, problem, action) for name, problem, _ in problems]
    elif problems:
        action = "error" if mismatch == "error" else "kept as in base"
        found += [Mismatch(name, info.key, problem, action) for name, problem, _ in problems]
    if not info.shape:
        return (), tuple(min(1, count) for count in rows)
    return (total, *info.shape[1:]), tuple(min(total, count) * width for count in rows)


def _compare_carried(
    info: StoredTensor, tasks: Mapping[str, Checkpoint], mismatch: str, found: list[Mismatch]
) -> None:
    for name, task in tasks.items():
        other = _found(task, info.key)
        if task.is_task_vector or (
            other and (other.shape, other.dtype) == (info.shape, info.dtype)
        ):
            continue
        wanted = f"{_name(info.dtype)} {info.shape}"
        got = "is missing" if other is None else f"got {_name(other.dtype)} {other.shape}"
        problem = got if other is None else f"must be {wanted}, {got}"
        action = "error" if mismatch == "error" else "kept as in base"
        found.append(Mismatch(name, info.key, problem, action))


def _compare_ties(
    base: Checkpoint, tasks: Mapping[str, Checkpoint], mismatch: str, found: list[Mismatch]
) -> None:
    """A tensor that is another name of one in the base has to be that in every task."""
    for name, task in tasks.items():
        if task.is_task_vector:
            continue
        for key, target in sorted(base.aliases.items()):
            if key in task.tensors and task.aliases.get(key) != target:
                problem = f"must be another name of {target!r} as in base, got a tensor of its own"
                action = "error" if mismatch == "error" else "left out"
                found.append(Mismatch(name, key, problem, action))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def identity(plan: MergePlan) -> dict[str, Any]:
    """What a journal compares: the inputs and the tensors of the result."""
    return {
        "base": plan.base.identity(),
        "tasks": {name: task.identity() for name, task in plan.tasks.items()},
        "tensors": [[t.key, list(t.shape), _name(t.dtype)] for t in plan.tensors],
        "carried": [info.key for info in plan.carried],
    }
