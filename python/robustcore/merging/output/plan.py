"""Which files an output consists of, and whether they can be written: found before work starts."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..checkpoints.checkpoint import StoredTensor
from ..checkpoints.safetensors_header import encode_header, in_file_order

__all__ = ["OutputPlan", "PlannedFile", "plan_output"]

_STEM = "model"
PARTIAL = ".partial"


@dataclass(frozen=True)
class PlannedFile:
    """One safetensors file.

    Attributes:
        path: Its final name.
        tensors: Its tensors, in the order of the file.
        header: The bytes before the data.
        starts: Where in the file each tensor starts, by key.
        size: Its length in bytes.
    """

    path: str
    tensors: tuple[StoredTensor, ...]
    header: bytes = field(repr=False)
    starts: Mapping[str, int] = field(repr=False)
    size: int

    @property
    def partial(self) -> str:
        """Its name until everything is complete."""
        return self.path + PARTIAL


@dataclass(frozen=True)
class OutputPlan:
    """The files of an output.

    Attributes:
        files: The safetensors files.
        journal: The path of the journal.
        index: Path and text of the index of several files; None where there is one.
        stale: Files of an earlier model in the same folder, which the output replaces.
        folder: Where everything lies.
        makes_folder: The folder is made where it is not there.
    """

    files: tuple[PlannedFile, ...]
    journal: str
    index: tuple[str, str] | None
    stale: tuple[str, ...]
    folder: str
    makes_folder: bool

    @property
    def size(self) -> int:
        """Bytes that it needs on the disk."""
        return sum(file.size for file in self.files)

    def existing(self) -> list[str]:
        """What is there already and would be replaced."""
        names = [file.path for file in self.files]
        names += [self.index[0]] if self.index else []
        return [name for name in (*names, *self.stale) if os.path.lexists(name)]

    def check_existing(self, *, overwrite: bool, ours: Iterable[str] = ()) -> None:
        """FileExistsError where something is there that must not be replaced."""
        found = [name for name in self.existing() if name not in set(ours)]
        if found and not overwrite:
            raise FileExistsError(
                errno.EEXIST, "the output exists; overwrite=True replaces it", found[0]
            )


def plan_output(
    path: str | os.PathLike[str],
    tensors: Sequence[StoredTensor],
    metadata: Mapping[str, str] | None = None,
    *,
    inputs: Iterable[str | os.PathLike[str]] = (),
    max_shard_size: int | None = None,
    overwrite: bool = False,
) -> OutputPlan:
    """Plans an output and checks its place; creates nothing.

    Arguments and errors as for :class:`CheckpointWriter`.
    """
    plan = _plan(os.fspath(path), tensors, metadata, max_shard_size)
    check_place(plan, inputs)
    plan.check_existing(overwrite=overwrite)
    return plan


def _plan(
    path: str,
    tensors: Sequence[StoredTensor],
    metadata: Mapping[str, str] | None,
    max_shard_size: int | None,
) -> OutputPlan:
    # A symbolic link stays one: what it leads to is written.
    target = os.path.realpath(path)
    if max_shard_size is None:
        if os.path.isdir(target) or path.endswith(os.sep):
            raise IsADirectoryError(
                errno.EISDIR, "the output must be a file where max_shard_size is None", path
            )
        file = _file(target, tensors, metadata)
        return OutputPlan((file,), target + ".journal", None, (), os.path.dirname(target), False)
    if not max_shard_size > 0:
        raise ValueError(f"max_shard_size must be above 0, got {max_shard_size}")
    if os.path.lexists(target) and not os.path.isdir(target):
        raise NotADirectoryError(
            errno.ENOTDIR, "the output must be a folder where max_shard_size is given", path
        )
    shards = _shards(tensors, max_shard_size)
    names = [f"{_STEM}.safetensors"]
    if len(shards) > 1:
        count = len(shards)
        names = [f"{_STEM}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    files = tuple(
        _file(os.path.join(target, name), shard, metadata)
        for name, shard in zip(names, shards, strict=True)
    )
    index_path = os.path.join(target, f"{_STEM}.safetensors.index.json")
    index = None
    if len(files) > 1:
        weights = {tensor.key: name for name, shard in zip(names, shards) for tensor in shard}
        total = sum(tensor.nbytes for tensor in tensors)
        facts = {"metadata": {"total_size": total}, "weight_map": weights}
        index = (index_path, json.dumps(facts, indent=2, sort_keys=True) + "\n")
    kept = {file.path for file in files} | ({index_path} if index else set())
    stale = tuple(name for name in _model_in(target, index_path) if name not in kept)
    journal = os.path.join(target, f"{_STEM}.safetensors.journal")
    return OutputPlan(files, journal, index, stale, target, True)


def _file(
    path: str, tensors: Sequence[StoredTensor], metadata: Mapping[str, str] | None
) -> PlannedFile:
    ordered = in_file_order(tensors)
    header, starts = encode_header(ordered, dict(sorted((metadata or {}).items())))
    size = len(header) + sum(tensor.nbytes for tensor in ordered)
    return PlannedFile(path, tuple(ordered), header, starts, size)


def _shards(tensors: Sequence[StoredTensor], limit: int) -> list[list[StoredTensor]]:
    """Tensors in the given order; a shard ends before the tensor that would make it too large."""
    shards: list[list[StoredTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _model_in(folder: str, index_path: str) -> list[str]:
    """The safetensors files of the model that a folder holds, and their index."""
    found = [os.path.join(folder, f"{_STEM}.safetensors")]
    try:
        with open(index_path, encoding="utf-8") as file:
            shards = set(json.load(file)["weight_map"].values())
        names = sorted(
            name
            for name in shards
            if os.path.basename(name) == name and name.endswith(".safetensors")
        )
        found += [os.path.join(folder, name) for name in names]
        found.append(index_path)
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        found.append(index_path)  # an index that says nothing has no shards that we know of
    return [name for name in found if os.path.isfile(name)]


def check_place(plan: OutputPlan, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """The folder can be written to and nothing that is read is written or removed."""
    absent = plan.makes_folder and not os.path.lexists(plan.folder)
    parent = os.path.dirname(plan.folder) if absent else plan.folder
    if not os.path.isdir(parent):
        missing = FileNotFoundError if not os.path.lexists(parent) else NotADirectoryError
        code = errno.ENOENT if missing is FileNotFoundError else errno.ENOTDIR
        raise missing(code, "the folder of the output must exist", parent)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "the folder of the output must be writable", parent)
    written = [plan.journal, *plan.stale, *([plan.index[0]] if plan.index else [])]
    for file in plan.files:
        written += [file.path, file.partial]
        if os.path.lexists(file.path) and not os.path.isfile(file.path):
            raise ValueError(f"the output must be a regular file, got {file.path}")
    for name in inputs:
        for target in written:
            if os.path.exists(target) and os.path.samefile(name, target):
                raise ValueError(
                    f"the output must not be a file that is read, got {target}, which is the "
                    f"input {os.fspath(name)}"
                )
