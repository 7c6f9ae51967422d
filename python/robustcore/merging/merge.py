"""Merging models by a named method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .checkpoints import Checkpoint, StateDictCheckpoint
from .engine.execute import Execution, MergeReport, execute
from .engine.plan import POLICIES, MergePlan, make_plan
from .methods import make_recipe
from .state_dict import Model, check_model, named_models

__all__ = ["StateDictSink", "merge"]


def merge(
    base: Model,
    finetuned: Sequence[Model] | Mapping[str, Model],
    *,
    method: str = "task_arithmetic",
    mismatch: str = "error",
    dtype: torch.dtype | None = None,
    nonfinite: str = "error",
    max_memory: int = 1 << 30,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> Any:
    op = "merge"
    checkpoint, tasks = _checkpoints(op, base, finetuned)
    recipe = make_recipe(op, method, len(tasks), options)
    plan = make_plan(op, checkpoint, tasks, mismatch=mismatch, dtype=dtype)
    sink = StateDictSink(plan)
    execute(op, plan, recipe, sink, how=Execution(max_memory=max_memory, progress=progress, allow_nonfinite=nonfinite == "allow"))
    return sink.model() if not isinstance(base, Tensor) else sink.model()[""]


def _checkpoints(op: str, base: Any, finetuned: Any) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    check_model(op, "base", base)
    models = named_models(op, finetuned)
    for name, model in models.items():
        check_model(op, f"finetuned[{name!r}]", model)
    return _checkpoint("base", base), {name: _checkpoint(name, m) for name, m in models.items()}


def _checkpoint(name: str, model: Model) -> Checkpoint:
    return StateDictCheckpoint(name, {"": model} if isinstance(model, Tensor) else model)


class StateDictSink:
    """A state dict that is filled part by part."""

    def __init__(self, plan: MergePlan) -> None:
        self._plan = plan
        self._values = {
            info.key: torch.empty(info.shape, dtype=info.dtype) for info in plan.outputs()
        }

    def write(self, key: str, start: int, values: Tensor) -> None:
        self._values[key].view(-1)[start : start + values.numel()] = values

    def model(self) -> dict[str, Tensor]:
        """All tensors, those tied in the base tied again."""
        tied = {key: self._values[target] for key, target in self._plan.tied.items()}
        return self._values | tied
