"""The packed mask file: a safetensors file with one uint8 tensor per task and full metadata.

Tensors: ``masks/<index>`` uint8 [ceil(P / 8)], bit ``i`` of byte ``j`` is parameter ``8 j + i`` of
the flat order; where models are embedded, ``base/<key>`` and ``merged/<key>``, with the base also
its integer and boolean buffers. Metadata: see ``describe``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .._checks import accumulate_dtype
from ._atomic_file import atomic_file
from ._mask_header import (
    Header,
    as_bytes,
    as_json,
    describe,
    metadata_sha256,
    sha256,
    tensor_values,
)
from .checkpoints.checkpoint import StoredTensor
from .checkpoints.safetensors_header import encode_header, is_text
from .packed_masks import PackedMasks
from .state_dict import FlatLayout, Model, matching_tensors

__all__ = ["MaskFile", "read_mask_file", "write_mask_file"]


@dataclass(frozen=True)
class MaskFile:
    """What a packed mask file holds.

    Attributes:
        masks: The masks.
        base: The embedded base with its integer and boolean buffers, or None.
        merged: The embedded multi-task vector, or None.
        base_sha256: The hash of the base that the masks were made for, or None.
        merged_sha256: The same for the multi-task vector.
    """

    masks: PackedMasks
    base: Model | None
    merged: Model | None
    base_sha256: str | None
    merged_sha256: str | None


def write_mask_file(
    masks: PackedMasks,
    path: str | os.PathLike[str],
    *,
    base: Model | None = None,
    merged: Model | None = None,
    embed: bool = False,
    hashes: Mapping[str, str] | None = None,
) -> None:
    """What :meth:`PackedMasks.save` does.

    Args:
        hashes: SHA-256 of ``base`` and ``merged``, where the models themselves are not given.
    """
    op = "PackedMasks.save"
    given = {
        name: model for name, model in (("base", base), ("merged", merged)) if model is not None
    }
    if embed and not given:
        raise ValueError(
            f"{op}: embed must be False where neither base nor merged is given, got True"
        )
    models = {name: _tensors_of(op, masks.layout, name, model) for name, model in given.items()}
    _check_text(op, masks)
    rows = masks.packed.cpu()
    metadata = describe(masks, rows)
    for name in ("base", "merged"):
        known = (hashes or {}).get(name, "")
        metadata[f"{name}_sha256"] = sha256(models[name]) if name in models else known
    embedded = sorted(models) if embed else []
    buffers = _buffers_of(masks.layout, base) if "base" in embedded else []
    metadata["buffers_sha256"] = sha256(buffers) if "base" in embedded else ""
    metadata["embedded"] = as_json(embedded)
    metadata["metadata_sha256"] = metadata_sha256(metadata)
    Header(op, os.fspath(path), metadata)  # what could not be read again is not written
    tensors = {f"masks/{index}": row for index, row in enumerate(rows)}
    for name in embedded:
        for key, tensor in zip(masks.layout.keys, models[name], strict=True):
            tensors[f"{name}/{key}"] = tensor
    for info, buffer in zip(masks.layout.skipped, buffers, strict=False):
        tensors[f"base/{info.key}"] = buffer
    with atomic_file(path) as file:
        _write_safetensors(file, tensors, metadata)


def _write_safetensors(
    file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """One tensor after the other, each on the CPU only while it is written.

    The package's own writer makes a temporary file of its own, which stays if the process is
    killed.
    """
    stored = [
        StoredTensor(key, tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()
    ]
    file.write(encode_header(stored, metadata)[0])
    for tensor in tensors.values():
        file.write(as_bytes(tensor))


def read_mask_file(
    path: str | os.PathLike[str], *, base: Model | None = None, merged: Model | None = None
) -> MaskFile:
    """Reads a file that :meth:`PackedMasks.save` wrote, with the models embedded in it.

    Arguments and errors as for :meth:`PackedMasks.load`.

    Example:
        >>> import os, tempfile, torch
        >>> from robustcore.merging import read_mask_file, tall_masks
        >>> base = torch.zeros(4)
        >>> tasks = {"up": torch.tensor([1.0, 1.0, 0.0, 0.0]), "down": torch.full((4,), -1.0)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "masks.safetensors")
        ...     tall_masks(base, tasks).select(0.4).save(path)
        ...     file = read_mask_file(path)
        >>> file.masks.tasks, file.base is None
        (('up', 'down'), True)
    """
    op = "PackedMasks.load"
    name = os.fspath(path)
    with open(name, "rb"):  # a missing or unreadable file is an OSError with its own message
        pass
    try:
        with safe_open(name, framework="pt", device="cpu") as file:
            header = Header(op, name, file.metadata())
            header.check_tensors(file)
            words = header.read_words(file)
            embedded = {which: header.read_model(file, which) for which in header.embedded}
    except SafetensorError as error:
        raise ValueError(f"{op}: {name} is not a complete safetensors file: {error}") from None
    masks = PackedMasks(
        words,
        header.layout,
        header.tasks,
        lambdas=header.lambdas,
        comparison=header.comparison,
        k=header.k,
        sources=header.sources,
    )
    for which, model in (("base", base), ("merged", merged)):
        if model is not None:
            header.check_model(which, _tensors_of(op, header.layout, which, model))
    return MaskFile(
        masks,
        header.as_model(embedded.get("base")),
        header.as_model(embedded.get("merged")),
        header.hashes["base"],
        header.hashes["merged"],
    )


def _tensors_of(op: str, layout: FlatLayout, name: str, model: Model) -> list[Tensor]:
    """A model's tensors in flat order, on whatever device; a task vector in its wide dtype."""
    first = model if isinstance(model, Tensor) else next(iter(tensor_values(model)), None)
    device = first.device if first is not None else torch.device("cpu")
    vectors = frozenset({"merged"})
    tensors = matching_tensors(op, layout, device, {name: model}, vectors=vectors)[name]
    if name == "base":
        return tensors
    pairs = zip(tensors, layout.dtypes, strict=True)
    return [tensor.to(accumulate_dtype(dtype)) for tensor, dtype in pairs]


def _buffers_of(layout: FlatLayout, base: Model | None) -> list[Tensor]:
    return [base[info.key] for info in layout.skipped] if isinstance(base, Mapping) else []


def _check_text(op: str, masks: PackedMasks) -> None:
    keys = [info.key for info in (*masks.layout.parameters, *masks.layout.skipped)]
    for field, names in (("tasks", masks.tasks), ("sources", masks.sources), ("layout", keys)):
        for name in names:
            if not is_text(name):
                raise ValueError(f"{op}: {field} must be Unicode text, got {name!r}")
