"""TALL-masks of models in files, chunk by chunk: made, and applied."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import accumulate_dtype, check_choice
from ._mask_header import as_bytes
from ._operators import implementation
from .checkpoints import Checkpoint, StoredTensor
from .engine.capacity import parameters_per_chunk
from .engine.chunks import Chunk, Slice
from .engine.pieces import Pieces
from .engine.plan import MergedTensor, MergePlan
from .engine.plan import identity as plan_identity
from .engine.stream import Stream
from .merge import Progress, Source, open_tasks
from .output import CheckpointWriter
from .packed_masks import PackedMasks
from .state_dict import FlatLayout, Model, raise_differences, read_layout
from .tall_masks import TallMasks, checked_lambdas

__all__ = [
    "MaskPlan",
    "StreamedMasks",
    "apply_to_file",
    "plan_masks",
    "tall_masks_from_files",
    "unpack_to_file",
]

_WORD = 64


def tall_masks_from_files(
    base: Source,
    finetuned: Sequence[Source] | Mapping[str, Source],
    *,
    lambdas: Sequence[float] = (0.2, 0.3, 0.4, 0.5, 0.6),
    comparison: str = "strict",
    max_memory: int = 1 << 30,
    progress: Progress | None = None,
) -> TallMasks:
    r"""TALL-masks of models that need not fit into memory; bit for bit :func:`tall_masks`.

    .. math::
        m_t^\lambda = \mathbf 1\{\, |\theta_0 - \theta_t| > |(\theta_0 + \tau_M) - \theta_t|
        \cdot \lambda \,\}, \qquad \tau_M = \sum_t (\theta_t - \theta_0)

    Args:
        base: :math:`\theta_0`: the path of a checkpoint of any kind, or a state dict.
        finetuned: :math:`\theta_t`: a sequence of T models ("0", "1", ...) or a mapping from task
            names to models, with the names, shapes and dtypes of ``base``; or folders of LoRA
            adapters, each of which stands for the base with the adapter added (in float32).
        lambdas, comparison: As for :func:`tall_masks`.
        max_memory: Bytes that buffers may take. The masks themselves are not counted.
        progress: Called as ``progress(what, done, total)``, in parameters.

    Returns:
        A :class:`TallMasks` on the CPU.

    Raises:
        TypeError: An argument is not a model, or not a sequence or mapping of models.
        ValueError: Models differ from the base (one message lists all differences), there is no
            model, an option is out of range, or a file is damaged.
        OSError: A file cannot be read.

    Numerics: those of :func:`tall_masks`; the bits do not depend on ``max_memory``.

    Cost: reads every model once, ahead of the computation; holds ceil(log2(L + 1)) bits per
    parameter and task.

    Source: Wang et al., arXiv 2405.07813.

    Example:
        >>> import os, tempfile, torch
        >>> from robustcore.merging import tall_masks_from_files
        >>> base, task = {"w": torch.zeros(3)}, {"w": torch.tensor([1.0, 0.0, 2.0])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = [os.path.join(folder, name) for name in ("base.pt", "task.pt")]
        ...     for model, path in zip((base, task), paths):
        ...         torch.save(model, path)
        ...     masks = tall_masks_from_files(paths[0], {"task": paths[1]}, lambdas=[0.4])
        >>> masks.select(0.4).unpack("task")
        tensor([ True, False,  True])
    """
    op = "tall_masks_from_files"
    plan = plan_masks(op, *open_tasks(op, base, finetuned))
    return plan.build(
        lambdas=lambdas, comparison=comparison, max_memory=max_memory, progress=progress
    ).masks


@dataclass(frozen=True)
class StreamedMasks:
    """Masks, and the SHA-256 of the models that they were made from."""

    masks: TallMasks
    hashes: Mapping[str, str]


@dataclass(frozen=True)
class MaskPlan:
    """Models that were found to match.

    Attributes:
        layout: The flat order of the base.
        merge: The same for the streaming engine.
    """

    op: str
    layout: FlatLayout
    merge: MergePlan

    def build(
        self,
        *,
        lambdas: Sequence[float],
        comparison: str = "strict",
        max_memory: int = 1 << 30,
        progress: Progress | None = None,
        vector: CheckpointWriter | None = None,
    ) -> StreamedMasks:
        """The masks, in one walk.

        Args:
            vector: Where to write the multi-task vector, whose tensors are :meth:`vector_tensors`.
        """
        op, tasks = self.op, list(self.merge.tasks)
        values = checked_lambdas(op, lambdas)
        check_choice(op, "comparison", comparison, ("strict", "paper"))
        # The widened copies and the vector, and codes of a chunk.
        scratch = 8 * (len(tasks) + 3) + len(tasks)
        step = _whole_words(parameters_per_chunk(op, self.merge, max_memory, scratch))
        words = -(-self.layout.num_parameters // _WORD)
        codes = torch.zeros((len(tasks), len(values).bit_length(), words), dtype=torch.int64)
        counts = torch.zeros((len(tasks), len(values)), dtype=torch.int64)
        digests = {"base": hashlib.sha256()} | ({"merged": hashlib.sha256()} if vector else {})
        ascending, strict = sorted(values), comparison == "strict"
        done = 0
        for pieces in _walk(self.merge, step):
            for tensor in pieces.base:
                digests["base"].update(as_bytes(tensor))
            start, rows = _finetuned(pieces)
            merged = _summed(pieces) if vector else []
            if vector:
                for piece, change in zip(pieces.slices, merged, strict=True):
                    digests["merged"].update(as_bytes(change))
                    vector.write(piece.tensor.key, piece.start, change)
            found, kept = implementation(start[0]).tall_mask_codes(
                start, rows, merged, len(tasks), ascending, strict
            )
            word = done // _WORD
            codes[:, :, word : word + found.shape[2]] = found
            counts += kept
            done += sum(piece.parameters for piece in pieces.slices)
            if progress is not None:
                progress("masks", done, self.layout.num_parameters)
        masks = TallMasks(codes, counts, values, tuple(tasks), self.layout, comparison)
        return StreamedMasks(masks, {name: digest.hexdigest() for name, digest in digests.items()})

    def vector_tensors(self) -> list[StoredTensor]:
        """The tensors of the multi-task vector, in the dtype of computation."""
        return [
            StoredTensor(info.key, info.shape, accumulate_dtype(info.dtype))
            for info in self.layout.parameters
        ]


def plan_masks(op: str, base: Checkpoint, models: Mapping[str, Checkpoint]) -> MaskPlan:
    """Compares all models with the base.

    Raises:
        ValueError: They differ; one message lists all differences.
    """
    if base.is_task_vector:
        raise ValueError(f"{op}: base must be a model, got the LoRA adapter {base.name}")
    layout, device = read_layout(op, _shapes(base))
    found = []
    for name, model in models.items():
        label = f"finetuned[{name!r}]"
        if model.is_task_vector:
            found += _adapter_differences(label, layout, model)
        else:
            found += layout.differences(label, _shapes(model), device)
    raise_differences(op, found)
    return MaskPlan(op, layout, _merge_plan(layout, base, models))


def apply_to_file(
    op: str,
    masks: PackedMasks,
    task: str,
    base: Checkpoint,
    merged: Checkpoint,
    output: str | os.PathLike[str],
    *,
    hashes: Mapping[str, str | None],
    max_memory: int = 1 << 30,
    progress: Progress | None = None,
    max_shard_size: int | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the model of one task, base + mask * merged, to a file; see ``PackedMasks.apply``.

    Args:
        hashes: SHA-256 of the ``base`` and ``merged`` that the masks were made for; a model that is
            not the one is refused, and nothing is left. None: not known.
    """
    layout = masks.layout
    _, device = read_layout(op, _shapes(base))
    found = layout.differences("base", _shapes(base), device)
    found += layout.differences("merged", _shapes(merged), device, vector=True)
    raise_differences(op, found)
    plan = _merge_plan(layout, base, {"merged": merged})
    step = _whole_words(parameters_per_chunk(op, plan, max_memory, 16))
    row = masks.words[masks.tasks.index(task)]
    digests = {name: hashlib.sha256() for name in ("base", "merged")}
    skipped = [StoredTensor(info.key, info.shape, info.dtype) for info in layout.skipped]
    tensors = sorted([*plan.outputs(), *skipped], key=lambda info: info.key)
    identity = {"masks": _digest([row]), "task": task, **plan_identity(plan)}
    with CheckpointWriter(
        output,
        tensors,
        {"format": "pt"},
        identity=identity,
        inputs=[file for model in plan.models for file in model.files],
        max_shard_size=max_shard_size,
        overwrite=overwrite,
        restart=True,
    ) as writer:
        done = 0
        for pieces in _walk(plan, step):
            changes = [
                change.to(accumulate_dtype(start.dtype))
                for start, change in zip(pieces.base, pieces.tasks, strict=True)
            ]
            for name, values in (("base", pieces.base), ("merged", changes)):
                for tensor in values:
                    digests[name].update(as_bytes(tensor))
            count = sum(piece.parameters for piece in pieces.slices)
            words = row[done // _WORD : -(-(done + count) // _WORD)]
            results = implementation(row).mask_apply(pieces.base, changes, words)
            for piece, result in zip(pieces.slices, results, strict=True):
                writer.write(piece.tensor.key, piece.start, result)
            done += count
            if progress is not None:
                progress("applying", done, masks.num_parameters)
        for name, expected in hashes.items():
            if expected is not None and digests[name].hexdigest() != expected:
                raise ValueError(
                    f"{op}: {name} must be the model that the masks were made for (SHA-256 "
                    f"{expected}), got {digests[name].hexdigest()}"
                )
        for info in skipped:
            _carry(info, base, writer)


def unpack_to_file(
    masks: PackedMasks,
    task: str,
    output: str | os.PathLike[str],
    *,
    inputs: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Writes the mask of one task as a state dict of booleans, in the shapes of the parameters."""
    row = masks.words[masks.tasks.index(task)]
    tensors, start = [], 0
    for info in masks.layout.parameters:
        tensors.append(MergedTensor(info.key, info.shape, torch.bool, start, ()))
        start += info.numel
    stored = [StoredTensor(info.key, info.shape, torch.bool) for info in masks.layout.parameters]
    identity = {"masks": _digest([row]), "task": task}
    with CheckpointWriter(
        output,
        stored,
        {"format": "pt"},
        identity=identity,
        inputs=inputs,
        overwrite=overwrite,
        restart=True,
    ) as writer:
        done = 0
        for chunk in _flat_chunks(tensors, 1 << 24):
            words = row[done // _WORD : -(-(done + chunk.parameters) // _WORD)]
            flat = implementation(row).mask_unpack(words, chunk.parameters)
            parts = flat.split([piece.parameters for piece in chunk.slices])
            for piece, part in zip(chunk.slices, parts, strict=True):
                writer.write(piece.tensor.key, piece.start, part)
            done += chunk.parameters


def _walk(plan: MergePlan, step: int) -> Iterable[Pieces]:
    chunks = _flat_chunks(plan.tensors, step)
    longest = max((chunk.parameters for chunk in chunks), default=0)
    return Stream(plan, longest, torch.device("cpu")).walk(chunks)


def _whole_words(parameters: int) -> int:
    return max(_WORD, parameters // _WORD * _WORD)


def _flat_chunks(tensors: Iterable[MergedTensor], step: int) -> list[Chunk]:
    """Chunks of ``step`` parameters, so that each but the last fills its words of a mask."""
    chunks: list[Chunk] = []
    pieces: list[Slice] = []
    room = step
    for tensor in tensors:
        start = 0
        while start < tensor.numel:
            stop = min(tensor.numel, start + room)
            pieces.append(Slice(tensor, start, stop))
            room -= stop - start
            start = stop
            if not room:
                chunks.append(Chunk(len(chunks), tuple(pieces)))
                pieces, room = [], step
    if pieces:
        chunks.append(Chunk(len(chunks), tuple(pieces)))
    return chunks


def _shapes(model: Checkpoint) -> Model:
    """The tensors of a checkpoint without their values, tied ones under each of their names."""
    return {
        key: torch.empty(info.shape, dtype=info.dtype, device="meta")
        for key, info in model.tensors.items()
    }


def _merge_plan(
    layout: FlatLayout, base: Checkpoint, models: Mapping[str, Checkpoint]
) -> MergePlan:
    tensors, start = [], 0
    for info in layout.parameters:
        present = [info.numel if info.key in model.tensors else 0 for model in models.values()]
        stored = (info.numel, *present)
        tensors.append(MergedTensor(info.key, info.shape, info.dtype, start, stored))
        start += info.numel
    return MergePlan(base, dict(models), tuple(tensors), (), {})


def _adapter_differences(label: str, layout: FlatLayout, model: Checkpoint) -> list[str]:
    shapes = {info.key: info.shape for info in layout.parameters}
    found = []
    for key, info in model.tensors.items():
        if key not in shapes:
            found.append(f"{label}[{key!r}] is not in base")
        elif info.shape != shapes[key]:
            found.append(f"{label}[{key!r}] must have shape {shapes[key]}, got {info.shape}")
    return found


def _finetuned(pieces: Pieces) -> tuple[list[Tensor], list[Tensor]]:
    """Pieces of the base and of all tasks, of one dtype: wide where an adapter has to be added."""
    if not any(pieces.vectors):
        return pieces.base, pieces.tasks
    base = [tensor.to(accumulate_dtype(tensor.dtype)) for tensor in pieces.base]
    rows = []
    for index, values in enumerate(pieces.tasks):
        start = base[index % len(base)]
        wide = values.to(start.dtype)
        rows.append(start + wide if pieces.vectors[index // len(base)] else wide)
    return base, rows


def _summed(pieces: Pieces) -> list[Tensor]:
    """The multi-task vector, one task after the other, as ``multi_task_vector`` adds."""
    base, rows = _finetuned(pieces)
    totals = []
    for index, start in enumerate(base):
        wide = start.to(accumulate_dtype(start.dtype))
        total: Tensor | None = None
        for task in range(pieces.task_count):
            change = rows[task * len(base) + index].to(wide.dtype) - wide
            total = change if total is None else total.add_(change)
        assert total is not None
        totals.append(total)
    return totals


def _carry(info: StoredTensor, base: Checkpoint, writer: CheckpointWriter) -> None:
    step = (16 << 20) // info.dtype.itemsize
    for start in range(0, info.numel, step):
        stop = min(info.numel, start + step)
        into = torch.empty(stop - start, dtype=info.dtype)
        writer.write(info.key, start, base.read(info.key, start, stop, into))


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(as_bytes(tensor))
    return digest.hexdigest()
