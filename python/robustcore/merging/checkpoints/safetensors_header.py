"""The header of a safetensors file: written and checked in one place.

A file is the length of the header (8 bytes, little-endian), the header (JSON, padded with spaces)
and the data. The header maps each key to ``{"dtype", "shape", "data_offsets": [begin, end]}`` with
offsets from the start of the data, and may hold ``"__metadata__"``, strings by string.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from .checkpoint import StoredTensor

__all__ = [
    "MAXIMUM_HEADER",
    "SAFETENSORS_NAMES",
    "HeaderEntry",
    "ParsedHeader",
    "encode_header",
    "header_length",
    "in_file_order",
    "is_text",
    "parse_header",
]

#: The limit of the safetensors package itself.
MAXIMUM_HEADER = 100_000_000

#: In the order in which the safetensors package places tensors in a file.
_DTYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "F4": torch.float4_e2m1fn_x2,
    "BOOL": torch.bool,
}
#: The name in a header of each dtype that a file can hold.
SAFETENSORS_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in _DTYPES.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(_DTYPES.values())}
# Two values share a byte: the file counts values, PyTorch counts bytes.
_PAIRED = torch.float4_e2m1fn_x2
_METADATA = "__metadata__"


def in_file_order(tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    """The order of the safetensors package: wide dtypes first, so that all are aligned; by key."""
    tensors = list(tensors)
    for tensor in tensors:
        _name_of(tensor)
    return sorted(tensors, key=lambda tensor: (_RANK[tensor.dtype], tensor.key))


def encode_header(
    tensors: Sequence[StoredTensor], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int]]:
    """The bytes before the data, for tensors that follow each other as given.

    Returns:
        The bytes, and where in the file each tensor starts, by key.

    Raises:
        ValueError: A key comes twice, is not Unicode text or is ``"__metadata__"``; a dtype that
            safetensors files do not have; a header above 100 MB.
    """
    header: dict[str, Any] = {}
    if metadata:
        for key, value in metadata.items():
            if not (is_text(key) and is_text(value)):
                raise ValueError(f"metadata must be Unicode text by name, got {key!r}: {value!r}")
        header[_METADATA] = dict(metadata)
    starts: dict[str, int] = {}
    end = 0
    for tensor in tensors:
        if not is_text(tensor.key):
            raise ValueError(f"a tensor's key must be Unicode text, got {tensor.key!r}")
        if tensor.key in starts or tensor.key == _METADATA:
            raise ValueError(f"a tensor's key must be free, got {tensor.key!r} a second time")
        shape = list(tensor.shape)
        if tensor.dtype is _PAIRED:
            if not shape:
                raise ValueError(f"tensor {tensor.key!r}: {_PAIRED} must have a dimension, got ()")
            shape[-1] *= 2
        starts[tensor.key], end = end, end + tensor.nbytes
        header[tensor.key] = {
            "dtype": _name_of(tensor),
            "shape": shape,
            "data_offsets": [starts[tensor.key], end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data starts aligned
    if len(text) > MAXIMUM_HEADER:
        raise ValueError(f"the header must have at most {MAXIMUM_HEADER} bytes, got {len(text)}")
    data = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {key: data + at for key, at in starts.items()}


def _name_of(tensor: StoredTensor) -> str:
    try:
        return SAFETENSORS_NAMES[tensor.dtype]
    except KeyError:
        raise ValueError(
            f"tensor {tensor.key!r}: a safetensors file must hold one of "
            f"{', '.join(str(dtype).removeprefix('torch.') for dtype in SAFETENSORS_NAMES)}, "
            f"got {str(tensor.dtype).removeprefix('torch.')}"
        ) from None


@dataclass(frozen=True)
class HeaderEntry:
    """A tensor of a file; ``begin`` counts from the start of the data."""

    tensor: StoredTensor
    begin: int


@dataclass(frozen=True)
class ParsedHeader:
    """What a header says, checked: the tensors fill the data without holes or overlaps."""

    entries: tuple[HeaderEntry, ...]
    metadata: Mapping[str, str]


def header_length(name: str, first_bytes: bytes, file_size: int) -> int:
    """The length of the header, from the first eight bytes of the file."""
    if len(first_bytes) < 8:
        raise ValueError(
            f"{name}: a safetensors file must have at least 8 bytes, got {len(first_bytes)}"
        )
    (length,) = struct.unpack("<Q", first_bytes[:8])
    if length > MAXIMUM_HEADER:
        raise ValueError(
            f"{name}: the header must have at most {MAXIMUM_HEADER} bytes, got {length}; this is "
            "no safetensors file, or it is damaged"
        )
    if length > file_size - 8:
        raise ValueError(
            f"{name}: the header must have at most {file_size - 8} bytes, which is the rest of the "
            f"file, got {length}; the file is truncated or damaged"
        )
    return int(length)


def parse_header(name: str, text: bytes, data_size: int) -> ParsedHeader:
    """Reads and checks a header.

    Args:
        name: What messages call the file.
        text: The header without its length.
        data_size: The number of bytes that follow it.

    Raises:
        ValueError: Whatever is wrong; names file, tensor, what was expected and what came.
    """
    header = _parse_json(name, text)
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(map(is_text, metadata.values())):
        raise ValueError(f"{name}: {_METADATA} must be strings by name, got {_shown(metadata)}")
    entries = [_entry(name, key, value, data_size) for key, value in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.tensor.nbytes))
    end = 0
    last = "the header"
    for entry in entries:
        key = entry.tensor.key
        if entry.begin != end:
            kind = "overlaps with" if entry.begin < end else "leaves a hole after"
            raise ValueError(
                f"{name}: tensor {key!r}: data_offsets must begin at {end}, got {entry.begin}: it "
                f"{kind} {last}"
            )
        end += entry.tensor.nbytes
        last = f"tensor {key!r}"
    if end != data_size:
        raise ValueError(
            f"{name}: the file must have {end} bytes of data, got {data_size}: "
            + ("it is truncated" if end > data_size else "nobody owns the last ones")
        )
    return ParsedHeader(tuple(entries), metadata)


def _parse_json(name: str, text: bytes) -> dict[str, Any]:
    def fail(what: str) -> NoReturn:
        raise ValueError(f"{name}: the header must be a JSON object, got {what}")

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"the key {_shown(key)} twice")
            if not is_text(key):
                raise ValueError(f"the key {_shown(key)}, which is not Unicode text")
            found[key] = value
        return found

    def refuse_constant(constant: str) -> NoReturn:
        raise ValueError(f"the number {constant}")

    if not text.startswith(b"{"):
        fail(f"{_shown(text[:20])} at its start")
    try:
        header = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=without_duplicates,
            parse_constant=refuse_constant,
        )
    except RecursionError:
        fail("objects nested too deeply")
    except ValueError as error:  # also JSONDecodeError, UnicodeDecodeError
        fail(f"{error}")
    assert isinstance(header, dict)  # it starts with a brace
    return header


def _entry(name: str, key: str, value: Any, data_size: int) -> HeaderEntry:
    def fail(what: str, got: Any) -> NoReturn:
        raise ValueError(f"{name}: tensor {key!r}: {what}, got {_shown(got)}")

    fields = {"dtype", "shape", "data_offsets"}
    if not isinstance(value, dict) or value.keys() != fields:
        fail(f"its entry must have {', '.join(sorted(fields))}", value)
    if not isinstance(value["dtype"], str) or value["dtype"] not in _DTYPES:
        fail(f"dtype must be one of {', '.join(_DTYPES)}", value["dtype"])
    dtype = _DTYPES[value["dtype"]]
    shape = value["shape"]
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        fail("shape must be a list of sizes", shape)
    offsets = value["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        fail("data_offsets must be [begin, end]", offsets)
    begin, end = offsets
    if not begin <= end <= data_size:
        fail(f"data_offsets must lie in the file's {data_size} bytes of data", offsets)
    stored = list(shape)
    if dtype is _PAIRED:
        if not shape or shape[-1] % 2:
            fail("shape must end in an even size, since two values share a byte", shape)
        stored[-1] //= 2
    tensor = StoredTensor(key, tuple(stored), dtype)
    # Sizes before a zero may be anything: what reads strides would overflow on them.
    if math.prod(size for size in shape if size) * dtype.itemsize >= 2**63:
        fail("shape must not overflow", shape)
    if end - begin != tensor.nbytes:
        fail(
            f"data_offsets must span {tensor.nbytes} bytes, which is {value['dtype']} "
            f"{_shown(shape)}",
            offsets,
        )
    return HeaderEntry(tensor, begin)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_text(value: Any) -> bool:
    """A string that UTF-8 can hold, that is without lone surrogates."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
