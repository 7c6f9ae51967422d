"""A LoRA adapter as a task vector: scaling * B @ A, computed for the part that is asked for."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ._file import check_range
from ._json_file import read_json_object
from .checkpoint import Checkpoint, StoredTensor
from .folder import ADAPTER_CONFIG
from .lora_config import LoraConfig
from .pytorch_file import open_pytorch_file
from .safetensors_file import SafetensorsFile

__all__ = ["LoraAdapter"]

Matrix: TypeAlias = npt.NDArray[np.float32]

_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")
# Always the same tiles are computed, so that bits do not depend on the part that is asked for. They
# are so small that linear algebra libraries use one thread: others are busy with the merge, and the
# sum of a row of factors is always in the same order.
_TILE_WORK = 1 << 18
_TILE_COLUMNS = 256
_TILE_RANK = 64
# Layers whose factors are kept: the parts of a large layer are read one after the other.
_KEPT_LAYERS = 2
_MAXIMUM_LISTED = 20


@dataclass(frozen=True)
class _Update:
    """One weight: as a matrix it is ``scaling * left @ right``.

    The factors are stored as A [r, inputs] and B [outputs, r]; a transposed update is
    ``scaling * A.T @ B.T``.
    """

    key_a: str
    key_b: str
    rows: int
    columns: int
    rank: int
    scaling: float
    transposed: bool


class LoraAdapter(Checkpoint):
    r"""A folder that PEFT saved a LoRA adapter to.

    The update of a weight :math:`W` with factors :math:`A \in R^{r \times n}` and
    :math:`B \in R^{m \times r}` is :math:`s B A`, :math:`s` = lora_alpha / r (with use_rslora
    lora_alpha / √r), in the shape of :math:`W`: for a linear layer (m, n), transposed with
    fan_in_fan_out; for a convolution (m, n / kernel size, kernel size ...); for an embedding the
    transposed product. It is computed in float32, in tiles that are always the same; at no time
    there is more than one tile of it and the factors of two layers.

    Args:
        path: The folder, or the file of the weights in it.

    Raises:
        OSError: A file cannot be read.
        ValueError: The configuration does not fit the weights, or the adapter is more than updates
            of this kind: ``modules_to_save``, DoRA, biases, initializations that change the base.

    Source: LoRA, arXiv 2106.09685; rank-stabilized LoRA, arXiv 2312.03732.
    """

    is_task_vector = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        config_path = os.path.join(os.path.dirname(self.name), ADAPTER_CONFIG)
        values, text = read_json_object(config_path)
        self._config_sha256 = hashlib.sha256(text).hexdigest()
        config = LoraConfig(config_path, values)
        is_safetensors = self.name.endswith(".safetensors")
        self._factors: Checkpoint = (
            SafetensorsFile(self.name) if is_safetensors else open_pytorch_file(self.name)
        )
        try:
            self._updates = self._find_updates(config)
        except BaseException:
            self._factors.close()
            raise
        self.aliases = {}
        self.files = (config_path, *self._factors.files)
        self._guard = threading.Lock()
        self._kept: OrderedDict[str, tuple[Matrix, Matrix]] = OrderedDict()
        largest = max((u.rank * (u.rows + u.columns) for u in self._updates.values()), default=0)
        # While a layer's factors are read they are there twice, in their dtype and in float32.
        self.working_memory = (_KEPT_LAYERS + 2) * 4 * largest + 8 * _TILE_WORK

    def _fail(self, what: str, lines: Iterable[str]) -> NoReturn:
        found = list(lines)
        listed = found[:_MAXIMUM_LISTED]
        if len(found) > _MAXIMUM_LISTED:
            listed.append(f"and {len(found) - _MAXIMUM_LISTED} more")
        raise ValueError("\n".join([f"{self.name}: {what}:", *(f"  {line}" for line in listed)]))

    def _find_updates(self, config: LoraConfig) -> dict[str, _Update]:
        pairs: dict[tuple[str, bool], dict[str, str]] = {}
        others = []
        for key, tensor in self._factors.tensors.items():
            match = _FACTOR.fullmatch(key)
            if match is None or not tensor.dtype.is_floating_point:
                others.append(f"{key}: {tuple(tensor.shape)} {tensor.dtype}")
            else:
                place = (match[1], match[2] is not None)
                pairs.setdefault(place, {})[match[3]] = key
        if others:
            hint = (
                f" (modules_to_save is {', '.join(config.modules_to_save)}: whole weights instead "
                "of updates; merge the adapter into its base first)"
                if config.modules_to_save
                else ""
            )
            self._fail(f"must hold only lora_A and lora_B, got{hint}", others)
        missing = [
            f"{layer} has only lora_{next(iter(keys))}"
            for (layer, _), keys in pairs.items()
            if len(keys) == 1
        ]
        if missing:
            self._fail("must hold lora_A and lora_B of every layer, got", missing)
        self.tensors: dict[str, StoredTensor] = {}
        updates = {}
        for (layer, is_embedding), keys in sorted(pairs.items()):
            key = f"{layer}.weight"
            shape, updates[key] = self._update(config, layer, is_embedding, keys["A"], keys["B"])
            self.tensors[key] = StoredTensor(key, shape, torch.float32)
        return updates

    def _update(
        self, config: LoraConfig, layer: str, is_embedding: bool, key_a: str, key_b: str
    ) -> tuple[tuple[int, ...], _Update]:
        a, b = self._factors.tensors[key_a].shape, self._factors.tensors[key_b].shape
        rank = a[0] if a else 0
        matching = len(a) >= 2 and len(b) == len(a) and b[1] == rank
        if not matching or any(size != 1 for size in b[2:]) or (is_embedding and len(a) != 2):
            self._fail(
                "lora_A must be (r, inputs, ...) and lora_B (outputs, r, 1 ...), got",
                [f"{layer}: lora_A {a}, lora_B {b}"],
            )
        if rank != config.rank(layer):
            self._fail(
                f"the rank of {config.name} must be that of the weights, got",
                [f"{layer}: {config.rank(layer):g}, yet lora_A {a}"],
            )
        inputs = self._factors.tensors[key_a].numel // rank
        transposed = is_embedding or (config.fan_in_fan_out and len(a) == 2)
        shape = (a[1], b[0]) if transposed else (b[0], *a[1:])
        rows, columns = (inputs, b[0]) if transposed else (b[0], inputs)
        scaling = config.scaling(layer)
        return shape, _Update(key_a, key_b, rows, columns, rank, scaling, transposed)

    def read(self, key: str, start: int, stop: int, into: Tensor) -> Tensor:
        check_range(self.name, self.tensors[key], start, stop, into)
        if start == stop:
            return into
        update = self._updates[key]
        left, right = self._factors_of(key)
        target, scaling = into.numpy(), np.float32(update.scaling)
        width = update.columns
        columns = min(_TILE_COLUMNS, width)
        rows = _TILE_WORK // (columns * min(_TILE_RANK, update.rank))
        first = start // width // rows * rows
        for row in range(first, -(-stop // width), rows):
            for column in range(0, width, columns):
                below, after = min(row + rows, update.rows), min(column + columns, width)
                found = list(_rectangles(row, below, column, after, width, start, stop))
                if not found:
                    continue
                tile = _product(left[row:below], right[:, column:after])
                for top, bottom, begin, end in found:
                    part = tile[top - row : bottom - row, begin - column : end - column]
                    if bottom - top == 1:
                        at = top * width - start
                        np.multiply(part[0], scaling, out=target[at + begin : at + end])
                    else:
                        whole = target[top * width - start : bottom * width - start]
                        np.multiply(part, scaling, out=whole.reshape(-1, width)[:, begin:end])
        return into

    def _factors_of(self, key: str) -> tuple[Matrix, Matrix]:
        with self._guard:
            if key not in self._kept:
                update = self._updates[key]
                a, b = self._factor(update.key_a), self._factor(update.key_b)
                a, b = a.view(update.rank, -1), b.view(-1, update.rank)
                left, right = (
                    (a.t().contiguous(), b.t().contiguous()) if update.transposed else (b, a)
                )
                self._kept[key] = left.numpy(), right.numpy()
                while len(self._kept) > _KEPT_LAYERS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def _factor(self, key: str) -> Tensor:
        stored = self._factors.tensors[key]
        into = torch.empty(stored.numel, dtype=stored.dtype, device="cpu")
        # A copy of what is resident, so that it is aligned in memory as every other.
        return self._factors.read(key, 0, stored.numel, into).to(torch.float32, copy=True)

    def identity(self) -> dict[str, Any]:
        return {
            "path": os.path.realpath(self.name),
            "config_sha256": self._config_sha256,
            "weights": self._factors.identity(),
        }

    def close(self) -> None:
        self._factors.close()
        self._kept.clear()


def _product(left: Matrix, right: Matrix) -> Matrix:
    tile = left[:, :_TILE_RANK] @ right[:_TILE_RANK]
    for begin in range(_TILE_RANK, len(right), _TILE_RANK):
        tile += left[:, begin : begin + _TILE_RANK] @ right[begin : begin + _TILE_RANK]
    return tile


def _rectangles(
    row: int, below: int, column: int, after: int, width: int, start: int, stop: int
) -> Iterator[tuple[int, int, int, int]]:
    """What a tile has of a range of the row-major order: whole rows, and pieces of one row."""
    first, last = max(row, -(-start // width)), min(below, stop // width)
    if first < last:
        yield first, last, column, after
    for cut in {start // width, stop // width}:
        if row <= cut < below and not first <= cut < last:
            begin, end = max(start - cut * width, column), min(stop - cut * width, after)
            if begin < end:
                yield cut, cut + 1, begin, end
