"""Merging models by a named method, in memory or from file to file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor

from .._checks import check_choice
from .checkpoints import Checkpoint, StateDictCheckpoint, open_checkpoint
from .engine.execute import Execution, MergeReport, execute
from .engine.plan import POLICIES, MergePlan, make_plan
from .engine.plan import identity as plan_identity
from .methods import make_recipe
from .output import CheckpointWriter
from .recipe import Recipe
from .state_dict import Model

__all__ = ["MergeReport", "Source", "merge"]

#: A model: a tensor, a state dict, the path of a checkpoint, or an open one.
Source: TypeAlias = Model | str | os.PathLike[str] | Checkpoint

#: Called with what is done, how many parameters of it are done, and how many there are.
Progress: TypeAlias = Callable[[str, int, int], None]


@overload
def merge(
    base: Source,
    finetuned: Sequence[Source] | Mapping[str, Source],
    *,
    method: str = ...,
    output: None = ...,
    mismatch: str = ...,
    dtype: torch.dtype | None = ...,
    nonfinite: str = ...,
    max_memory: int = ...,
    device: torch.device | str | None = ...,
    progress: Progress | None = ...,
    **options: Any,
) -> dict[str, Tensor] | Tensor: ...


@overload
def merge(
    base: Source,
    finetuned: Sequence[Source] | Mapping[str, Source],
    *,
    output: str | os.PathLike[str],
    method: str = ...,
    mismatch: str = ...,
    dtype: torch.dtype | None = ...,
    nonfinite: str = ...,
    max_memory: int = ...,
    device: torch.device | str | None = ...,
    progress: Progress | None = ...,
    overwrite: bool = ...,
    restart: bool = ...,
    max_shard_size: int | None = ...,
    **options: Any,
) -> MergeReport: ...


def merge(
    base: Source,
    finetuned: Sequence[Source] | Mapping[str, Source],
    *,
    method: str = "task_arithmetic",
    output: str | os.PathLike[str] | None = None,
    mismatch: str = "error",
    dtype: torch.dtype | None = None,
    nonfinite: str = "error",
    max_memory: int = 1 << 30,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    restart: bool = False,
    max_shard_size: int | None = None,
    **options: Any,
) -> Any:
    r"""Merges models that were fine-tuned from one base.

    .. math::
        \theta = \theta_0 + s \sum_t w_t\, \text{kept}(\theta_t - \theta_0)

    where the method says what is kept of a task vector, which tasks have a say about a parameter,
    and what the factors are: see ``docs/merging.md`` and :data:`robustcore.merging.METHODS`.

    Args:
        base: :math:`\theta_0`: a tensor, a state dict, or the path of a checkpoint: a safetensors
            file, a PyTorch file, an index of shards, or a folder with one of them.
        finetuned: :math:`\theta_t`: a sequence of T models or a mapping from task names to models,
            of any kind above, or folders of LoRA adapters. Floating dtypes may differ.
        method: A key of :data:`robustcore.merging.METHODS`; ``options`` are those of the method.
        output: Where to write a safetensors file (with ``max_shard_size`` a folder). It is written
            part by part and appears under its name when it is complete; a merge that was killed
            goes on where it was when it is called again with the same arguments.
        mismatch: What is done where a model does not match the base. ``"error"``; ``"skip"``: the
            base's tensor is kept; ``"crop"``, ``"pad"``: for tensors with more or fewer rows (a
            vocabulary), the rows that all have, or all rows, where a model has no say in rows that
            it lacks.
        dtype: Of the merged tensors, by default that of the base's.
        nonfinite: ``"error"`` refuses NaN and infinities, ``"allow"`` merges them.
        max_memory: Bytes that buffers may take, whatever the number and size of models and
            tensors. Models and results in memory are not counted.
        device: Where the arithmetic is done; by default where a state dict of the base is, else the
            CPU. The bits of the result are the same.
        progress: Called as ``progress(what, done, total)``, in parameters.
        overwrite: Replace an output that exists.
        restart: Forget what a journal says about an unfinished merge to this output.
        max_shard_size: Write a folder with files of at most so many bytes, and an index.

    Returns:
        Without ``output`` a tensor or a state dict like the base: integer and boolean buffers are
        the base's. With it a :class:`MergeReport`.

    Raises:
        TypeError: An argument has the wrong type; the method has no such option.
        ValueError: Models do not match (one message lists all differences), an option is out of
            range, a file is corrupted, the output is an input or belongs to another merge.
        OSError: A file cannot be read or written; the disk is too full (found before the start).

    Numerics: everything is computed in float32 (float64 if one of the tensors is), one task after
    the other in the given order, every operation rounded by itself; sums over tensors are exact
    sums of sums over 4096 parameters. So the result has the same bits for any ``max_memory``,
    number of threads, and device.

    Cost: each model is read once; ``ties`` reads three times (histograms of magnitudes), and so do
    methods that rank magnitudes within a tensor for tensors that do not fit into the memory;
    ``lines`` once more for its norms. Reading, arithmetic and writing overlap.

    Example:
        >>> import torch
        >>> from robustcore.merging import merge
        >>> base = {"w": torch.zeros(4)}
        >>> tasks = {
        ...     "a": {"w": torch.tensor([3.0, 1.0, 0.0, 0.0])},
        ...     "b": {"w": torch.tensor([-1.0, 2.0, 0.0, 1.0])},
        ... }
        >>> merge(base, tasks, method="task_arithmetic", scale=0.5)["w"]
        tensor([1.0000, 1.5000, 0.0000, 0.5000])
        >>> merge(base, tasks, method="ties", density=0.5)["w"]
        tensor([3.0000, 1.5000, 0.0000, 1.0000])
    """
    op = "merge"
    check_choice(op, "nonfinite", nonfinite, ("error", "allow"))
    plan, recipe = prepare(
        op, base, finetuned, method=method, mismatch=mismatch, dtype=dtype, options=options
    )
    how = Execution(
        max_memory=max_memory,
        device=_device(plan.base, device),
        allow_nonfinite=nonfinite == "allow",
        progress=progress,
    )
    if output is None:
        given = {"overwrite": overwrite, "restart": restart, "max_shard_size": max_shard_size}
        for name, value in given.items():
            if value:
                raise ValueError(f"{op}: {name} is for merges with an output, got {value!r}")
        sink = StateDictSink(plan, how.device)
        execute(op, plan, recipe, sink, how=how)
        merged = sink.model()
        return merged[""] if isinstance(base, Tensor) else merged
    return write_merged(
        op,
        plan,
        recipe,
        output,
        how,
        overwrite=overwrite,
        restart=restart,
        max_shard_size=max_shard_size,
    )


def prepare(
    op: str,
    base: Any,
    finetuned: Any,
    *,
    method: str,
    mismatch: str,
    dtype: torch.dtype | None,
    options: Mapping[str, Any],
) -> tuple[MergePlan, Recipe]:
    """Opens everything, checks everything; reads and writes no weights."""
    check_choice(op, "mismatch", mismatch, POLICIES)
    floating = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    if dtype is not None and dtype not in floating:
        raise ValueError(f"{op}: dtype must be a floating-point dtype, got {dtype}")
    recipe = make_recipe(op, method, len(_tasks(op, finetuned)), options)
    first, models = open_tasks(op, base, finetuned)
    return make_plan(op, first, models, mismatch=mismatch, dtype=dtype), recipe


def open_tasks(op: str, base: Any, finetuned: Any) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """The base and the tasks by name, opened."""
    tasks = _tasks(op, finetuned)
    first = open_source("base", base)
    return first, {
        name: open_source(f"finetuned[{name!r}]", model) for name, model in tasks.items()
    }


def write_merged(
    op: str,
    plan: MergePlan,
    recipe: Recipe,
    output: str | os.PathLike[str],
    how: Execution,
    *,
    overwrite: bool = False,
    restart: bool = False,
    max_shard_size: int | None = None,
) -> MergeReport:
    """Runs a plan into a file or a folder of shards."""
    identity = {"recipe": recipe.identity(), **plan_identity(plan)}
    metadata = {"format": "pt"} | dict(plan.tied)
    with CheckpointWriter(
        output,
        plan.outputs(),
        metadata,
        identity=identity,
        inputs=[path for model in plan.models for path in model.files],
        max_shard_size=max_shard_size,
        overwrite=overwrite,
        restart=restart,
    ) as writer:
        return execute(op, plan, recipe, _FileSink(writer), how=how, journal=writer)


def _tasks(op: str, finetuned: Any) -> dict[str, Any]:
    if isinstance(finetuned, Mapping):
        wrong = [name for name in finetuned if not isinstance(name, str)]
        if wrong:
            raise TypeError(f"{op}: the names in finetuned must be strings, got {wrong[0]!r}")
        tasks = dict(finetuned)
    elif isinstance(finetuned, Sequence) and not isinstance(finetuned, (str, bytes)):
        tasks = {str(index): model for index, model in enumerate(finetuned)}
    else:
        raise TypeError(
            f"{op}: finetuned must be a sequence or a mapping of models, got "
            f"{type(finetuned).__name__}"
        )
    if not tasks:
        raise ValueError(f"{op}: finetuned must hold at least one model, got none")
    return tasks


def open_source(name: str, source: Any) -> Checkpoint:
    if isinstance(source, Tensor):
        return StateDictCheckpoint(name, {"": source})
    return open_checkpoint(source, name)


def _device(base: Checkpoint, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    if isinstance(base, StateDictCheckpoint):
        return base.device
    return torch.device("cpu")


class StateDictSink:
    """A state dict that is filled part by part: a new one, or one given to be overwritten."""

    def __init__(
        self, plan: MergePlan, device: torch.device, given: Mapping[str, Tensor] | None = None
    ) -> None:
        self._plan = plan
        carried = {info.key for info in plan.carried}
        self._values = (
            dict(given)
            if given is not None
            else {
                info.key: torch.empty(
                    info.shape, dtype=info.dtype, device="cpu" if info.key in carried else device
                )
                for info in plan.outputs()
            }
        )

    def place(self, key: str, start: int, stop: int) -> Tensor | None:
        return self._values[key].view(-1)[start:stop]

    def write(self, key: str, start: int, values: Tensor) -> None:
        self._values[key].view(-1)[start : start + values.numel()] = values

    def model(self) -> dict[str, Tensor]:
        """All tensors, those tied in the base tied again."""
        tied = {key: self._values[target] for key, target in self._plan.tied.items()}
        return self._values | tied


class _FileSink:
    def __init__(self, writer: CheckpointWriter) -> None:
        self._writer = writer

    def place(self, key: str, start: int, stop: int) -> Tensor | None:
        return None

    def write(self, key: str, start: int, values: Tensor) -> None:
        # Killed while files got their names: all of it is written, only names may be missing.
        if not self._writer.journal.finishing:
            self._writer.write(key, start, values.cpu())
