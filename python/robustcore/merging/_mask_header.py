"""What a mask file says about itself: the metadata, written and checked in one place."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import FLOATING_DTYPES, accumulate_dtype
from .checkpoints.safetensors_header import SAFETENSORS_NAMES, is_text
from .packed_masks import PackedMasks
from .state_dict import FlatLayout, Model, TensorInfo

_FORMAT = "robustcore.packed_masks"
_VERSION = "1"
_BIT_ORDER = "bit i of byte j is parameter 8*j+i of the flat order"
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *FLOATING_DTYPES,
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    )
}
REQUIRED = (
    "format",
    "format_version",
    "bit_order",
    "num_parameters",
    "num_tasks",
    "tasks",
    "lambdas",
    "comparison",
    "k",
    "sources",
    "layout",
    "skipped",
    "is_tensor",
    "masks_sha256",
    "base_sha256",
    "merged_sha256",
    "buffers_sha256",
    "embedded",
    "metadata_sha256",
)


class Header:
    """The metadata of a file, checked against itself and against the list of its tensors."""

    def __init__(self, op: str, name: str, metadata: Mapping[str, str] | None) -> None:
        self.op = op
        self.name = name
        self._fields = dict(metadata or {})
        if self._fields.get("format") != _FORMAT:
            self._fail(f"its format is {self._fields.get('format')!r}, not {_FORMAT!r}")
        version = self._fields.get("format_version")
        if version != _VERSION:
            self._fail(f"format_version must be {_VERSION!r}, got {version!r}")
        missing = [field for field in REQUIRED if field not in self._fields]
        unknown = sorted(self._fields.keys() - set(REQUIRED))
        if missing or unknown:
            self._fail(f"its metadata lacks {missing} and has unknown {unknown}")
        if self._fields["metadata_sha256"] != metadata_sha256(self._fields):
            self._fail("metadata_sha256 does not match the metadata: it was changed")
        if self._fields["bit_order"] != _BIT_ORDER:
            self._fail(f"bit_order must be {_BIT_ORDER!r}, got {self._fields['bit_order']!r}")
        self.layout = self._read_layout()
        self._read_tasks()
        self.num_parameters = self._value("num_parameters", _is_count)
        if self.num_parameters != self.layout.num_parameters:
            self._fail(
                f"num_parameters is {self.num_parameters}, yet the layout holds "
                f"{self.layout.num_parameters}"
            )
        self.row_bytes = (self.num_parameters + 7) // 8
        self.embedded = self._value(
            "embedded", lambda value: value in ([], ["base"], ["merged"], ["base", "merged"])
        )
        self.hashes = {which: self._read_hash(which) for which in ("base", "merged", "buffers")}
        for which in self.embedded:
            if self.hashes[which] is None:
                self._fail(f"{which} is embedded, yet {which}_sha256 is empty")
        if "base" in self.embedded and self.hashes["buffers"] is None:
            self._fail("base is embedded, yet buffers_sha256 is empty")

    def _fail(self, what: str) -> None:
        raise ValueError(f"{self.op}: {self.name}: {what}")

    def _value(self, field: str, valid: Any) -> Any:
        text = self._fields[field]
        try:
            value = json.loads(text)
            good = valid(value)
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            good = False
        if not good:
            shown = text if len(text) <= 200 else text[:200] + "..."
            self._fail(f"{field} has no valid value, got {shown!r}")
        return value

    def _read_layout(self) -> FlatLayout:
        parameters = _infos(self._value("layout", lambda value: _is_layout(value, floating=True)))
        skipped = _infos(self._value("skipped", lambda value: _is_layout(value, floating=False)))
        is_tensor = self._value("is_tensor", lambda value: isinstance(value, bool))
        if is_tensor and (skipped or [info.key for info in parameters] != [""]):
            self._fail("is_tensor is true, yet the layout is that of a state dict")
        keys = [info.key for info in (*parameters, *skipped)]
        if len(set(keys)) != len(keys):
            self._fail("the layout names a key twice")
        return FlatLayout(parameters, skipped, is_tensor)

    def _read_tasks(self) -> None:
        self.tasks = tuple(self._value("tasks", _is_names))
        if not self.tasks or self._value("num_tasks", _is_count) != len(self.tasks):
            self._fail(
                f"num_tasks is {self._fields['num_tasks']}, yet {len(self.tasks)} tasks are named"
            )
        self.comparison = self._value("comparison", lambda value: value in ("strict", "paper"))
        self.sources = tuple(self._value("sources", _is_names))
        self.k = self._value("k", lambda value: value is None or (_is_count(value) and value > 0))
        if (self.k is None) != (not self.sources) or (self.k or 0) > len(self.sources):
            self._fail(f"k is {self.k}, yet there are {len(self.sources)} sources")
        if self.k is not None and len(self.tasks) != 1:
            self._fail(f"k is {self.k}, yet there are {len(self.tasks)} masks and not one")
        wanted = len(self.sources or self.tasks)
        values = self._value(
            "lambdas", lambda value: value is None or (_is_lambdas(value) and len(value) == wanted)
        )
        self.lambdas = None if values is None else tuple(values)

    def _read_hash(self, which: str) -> str | None:
        text = self._fields[f"{which}_sha256"]
        if text and (len(text) != 64 or set(text) - set("0123456789abcdef")):
            self._fail(f"{which}_sha256 is not a SHA-256, got {text[:80]!r}")
        return text or None

    def check_tensors(self, file: Any) -> None:
        """Names, dtypes and shapes of all tensors, before any is read."""
        expected = {f"masks/{index}": ("U8", [self.row_bytes]) for index in range(len(self.tasks))}
        for which in self.embedded:
            for info in self._embedded_infos(which):
                expected[f"{which}/{info.key}"] = (
                    SAFETENSORS_NAMES[info.dtype],
                    list(info.shape),
                )
        present = set(file.keys())
        missing, extra = sorted(expected.keys() - present), sorted(present - expected.keys())
        if missing or extra:
            self._fail(f"tensors are missing: {missing[:20]}, or not expected: {extra[:20]}")
        for key, (dtype, shape) in expected.items():
            part = file.get_slice(key)
            found = (part.get_dtype(), part.get_shape())
            if found != (dtype, shape):
                self._fail(f"tensor {key!r} must be {dtype} {shape}, got {found[0]} {found[1]}")

    def _embedded_infos(self, which: str) -> list[TensorInfo]:
        """What is stored of a model: of the base all, of a task vector the parameters."""
        layout = self.layout
        if which == "base":
            return [*layout.parameters, *layout.skipped]
        return [
            TensorInfo(info.key, info.shape, accumulate_dtype(info.dtype))
            for info in layout.parameters
        ]

    def read_words(self, file: Any) -> Tensor:
        shape = (len(self.tasks), (self.num_parameters + 63) // 64)
        words = torch.zeros(shape, dtype=torch.int64, device="cpu")
        rows = words.view(torch.uint8)[:, : self.row_bytes]
        for index, row in enumerate(rows):
            row.copy_(file.get_tensor(f"masks/{index}"))
        used = self.num_parameters % 8
        if used:
            for task, last in zip(self.tasks, rows[:, -1].tolist(), strict=True):
                if last >> used:
                    self._fail(f"the mask of task {task!r} has bits set past the last parameter")
        if sha256(list(rows)) != self._fields["masks_sha256"]:
            self._fail("masks_sha256 does not match the masks: they were changed")
        return words

    def read_model(self, file: Any, which: str) -> list[Tensor]:
        infos = self._embedded_infos(which)
        tensors = [file.get_tensor(f"{which}/{info.key}").clone() for info in infos]
        count = len(self.layout.parameters)
        self.check_model(which, tensors[:count])
        if which == "base":
            self.check_model("buffers", tensors[count:])
        return tensors

    def check_model(self, which: str, tensors: Sequence[Tensor]) -> None:
        if self.hashes[which] is None:
            self._fail(f"it holds no hash of {which} to compare with")
        found = sha256(tensors)
        if found != self.hashes[which]:
            self._fail(f"{which}_sha256 is {self.hashes[which]}, yet the {which} has {found}")

    def as_model(self, tensors: list[Tensor] | None) -> Model | None:
        if tensors is None:
            return None
        if self.layout.is_tensor:
            return tensors[0]
        keys = [info.key for info in (*self.layout.parameters, *self.layout.skipped)]
        return dict(zip(keys, tensors, strict=False))  # a task vector has no buffers


def tensor_values(model: Any) -> list[Tensor]:
    values = model.values() if isinstance(model, Mapping) else []
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]


def describe(masks: PackedMasks, rows: Tensor) -> dict[str, str]:
    """The metadata that follow from the masks; JSON but for the first three and hashes."""
    layout = masks.layout
    return {
        "format": _FORMAT,
        "format_version": _VERSION,
        "bit_order": _BIT_ORDER,
        "num_parameters": as_json(masks.num_parameters),
        "num_tasks": as_json(len(masks.tasks)),
        "tasks": as_json(masks.tasks),
        "lambdas": as_json(masks.lambdas),
        "comparison": as_json(masks.comparison),
        "k": as_json(masks.k),
        "sources": as_json(masks.sources),
        "layout": as_json([_entry(info) for info in layout.parameters]),
        "skipped": as_json([_entry(info) for info in layout.skipped]),
        "is_tensor": as_json(layout.is_tensor),
        "masks_sha256": sha256(list(rows)),
    }


def _entry(info: TensorInfo) -> list[Any]:
    return [info.key, list(info.shape), str(info.dtype).removeprefix("torch.")]


def _infos(entries: Sequence[Any]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(key, tuple(shape), _DTYPES[dtype]) for key, shape, dtype in entries)


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def sha256(tensors: Sequence[Tensor]) -> str:
    """SHA-256 of the tensors' bytes, one after the other, each row-major."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(as_bytes(tensor))
    return digest.hexdigest()


def as_bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def metadata_sha256(metadata: Mapping[str, str]) -> str:
    rest = {key: value for key, value in metadata.items() if key != "metadata_sha256"}
    return hashlib.sha256(
        as_json(sorted(rest.items())).encode("utf-8", "surrogatepass")
    ).hexdigest()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_names(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(is_text(name) for name in value)
        and len(set(value)) == len(value)
    )


def _is_lambdas(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(number, float) and math.isfinite(number) and number > 0 for number in value
    )


def _is_layout(value: Any, *, floating: bool) -> bool:
    """Entries [key, shape, dtype], sorted by key."""
    if not isinstance(value, list):
        return False
    for key, shape, dtype in value:
        if not (is_text(key) and isinstance(shape, list) and all(map(_is_count, shape))):
            return False
        if dtype not in _DTYPES or (_DTYPES[dtype] in FLOATING_DTYPES) != floating:
            return False
        if not _is_count(math.prod(shape)):
            return False
    keys = [key for key, _, _ in value]
    return keys == sorted(keys)
