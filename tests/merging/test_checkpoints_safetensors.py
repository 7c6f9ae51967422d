"""safetensors files read in parts: what is stored comes back, whatever is damaged is one error."""

from __future__ import annotations

import copy
import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from robustcore.merging.checkpoints import SafetensorsFile, StoredTensor
from robustcore.merging.checkpoints.safetensors_header import (
    MAXIMUM_HEADER,
    SAFETENSORS_NAMES,
    encode_header,
    parse_header,
)

BASE = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]},
    "c": {"dtype": "F32", "shape": [0, 4], "data_offsets": [32, 32]},
    "d": {"dtype": "F16", "shape": [3], "data_offsets": [32, 38]},
}
DATA = 38


def random_tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    count = torch.Size(shape).numel() * dtype.itemsize
    high = 2 if dtype is torch.bool else 256
    return torch.randint(0, high, (count,), dtype=torch.uint8).view(dtype).view(shape)


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().view(-1).view(torch.uint8).tolist() if tensor.numel() else []


def write(path: Path, header: dict[str, Any] | str | bytes, data: int = DATA) -> Path:
    text = json.dumps(header) if isinstance(header, dict) else header
    text = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


@pytest.mark.parametrize("dtype", SAFETENSORS_NAMES, ids=str)
def test_every_dtype_in_parts(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "matrix": random_tensor(dtype, 5, 6),
        "one": random_tensor(dtype, 1),
        "none": random_tensor(dtype, 3, 0),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    file = SafetensorsFile(tmp_path / "a.safetensors")
    for key, tensor in tensors.items():
        stored = file.tensors[key]
        assert stored == StoredTensor(key, tuple(tensor.shape), dtype)
        flat = tensor.view(-1)
        for start, stop in ((0, stored.numel), (1, stored.numel), (stored.numel // 2,) * 2):
            if start <= stop:
                into = torch.empty(stop - start, dtype=dtype)
                assert file.read(key, start, stop, into) is into
                assert bits(into) == bits(flat[start:stop])
    file.close()


def test_a_part_is_read_into_a_slice_of_a_buffer(tmp_path: Path) -> None:
    save_file({"a": torch.arange(10.0)}, tmp_path / "a")
    buffer = torch.full((8,), -1.0)
    SafetensorsFile(tmp_path / "a").read("a", 3, 6, buffer[2:5])
    assert buffer.tolist() == [-1, -1, 3, 4, 5, -1, -1, -1]


def test_metadata_and_identity(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save_file({"a": torch.zeros(3)}, path, metadata={"format": "pt", "ä": "\n"})
    file = SafetensorsFile(path)
    assert dict(file.metadata) == {"format": "pt", "ä": "\n"}
    assert file.files == (str(path),)
    before = file.identity()
    assert before == SafetensorsFile(path).identity()
    assert json.loads(json.dumps(before)) == before
    os.utime(path, ns=(1, 1))
    assert SafetensorsFile(path).identity() != before
    save_file({"b": torch.zeros(3)}, path, metadata={"format": "pt", "ä": "\n"})
    os.utime(path, ns=(before["mtime_ns"], before["mtime_ns"]))
    changed = SafetensorsFile(path).identity()
    assert [key for key in before if changed[key] != before[key]] == ["header_sha256"]


def test_a_scalar_and_no_tensors(tmp_path: Path) -> None:
    save_file({"a": torch.tensor(7)}, tmp_path / "a")
    into = torch.empty(1, dtype=torch.int64)
    assert SafetensorsFile(tmp_path / "a").read("a", 0, 1, into).tolist() == [7]
    save_file({}, tmp_path / "b")
    assert dict(SafetensorsFile(tmp_path / "b").tensors) == {}


@pytest.mark.parametrize(
    ("start", "stop", "into"),
    [
        (0, 5, torch.empty(5)),
        (-1, 1, torch.empty(2)),
        (3, 2, torch.empty(0)),
        (0, 2, torch.empty(3)),
        (0, 2, torch.empty(2, dtype=torch.int32)),
        (0, 2, torch.empty(4)[::2]),
        (0, 2, torch.empty(1, 2)),
        (0, 2, torch.empty(2, device="meta")),
    ],
)
def test_what_does_not_fit_is_not_read(
    tmp_path: Path, start: int, stop: int, into: torch.Tensor
) -> None:
    save_file({"a": torch.zeros(4)}, tmp_path / "a")
    with pytest.raises(ValueError, match=r"tensor 'a': (the range|into) must"):
        SafetensorsFile(tmp_path / "a").read("a", start, stop, into)


def test_from_many_threads(tmp_path: Path) -> None:
    values = torch.randn(50_000)
    save_file({"a": values}, tmp_path / "a")
    file = SafetensorsFile(tmp_path / "a")

    def part(index: int) -> torch.Tensor:
        start = index * 997
        return file.read("a", start, start + 997, torch.empty(997))

    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(part, range(50)))
    assert torch.equal(torch.cat(parts), values[: 50 * 997])


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(100)
    save_file({"a": values}, tmp_path / "a")
    file = SafetensorsFile(tmp_path / "a")
    whole = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, offset: whole(fd, [buffers[0][:7]], offset)
    )
    assert torch.equal(file.read("a", 0, 100, torch.empty(100)), values)


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    save_file({"a": torch.randn(100)}, tmp_path / "a")
    file = SafetensorsFile(tmp_path / "a")
    os.truncate(tmp_path / "a", 200)
    with pytest.raises(OSError, match="it was changed while it was read"):
        file.read("a", 0, 100, torch.empty(100))


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save_file({"a": torch.zeros(3), "b": torch.zeros(2, 2).bfloat16()}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError) as raised:
            SafetensorsFile(path)
        assert str(raised.value).startswith(f"{path}: ")
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="nobody owns the last ones"):
        SafetensorsFile(path)


def changed(key: str, **fields: Any) -> dict[str, Any]:
    header: dict[str, Any] = copy.deepcopy(BASE)
    header[key] |= fields
    return header


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("[]", "the header must be a JSON object, got b'\\[\\]' at its start"),
        (" {}", "at its start"),
        ("{", "the header must be a JSON object"),
        ("{}{}", "the header must be a JSON object, got Extra data"),
        (b'{"\xff":1}', "can't decode byte 0xff"),
        ('{"a":' + "[" * 100_000, "nested too deeply"),
        ('{"a": NaN}', "the number NaN"),
        ('{"a": ' + "9" * 5000 + "}", "the header must be a JSON object"),
        ('{"__metadata__":{},"__metadata__":{}}', "the key '__metadata__' twice"),
        (
            '{"a":{"dtype":"F32","dtype":"F16","shape":[],"data_offsets":[0,4]}}',
            "the key 'dtype' twice",
        ),
        (json.dumps(BASE)[:-1] + ',"a":' + json.dumps(BASE["a"]) + "}", "the key 'a' twice"),
        ('{"\\ud800":1}', "which is not Unicode text"),
        ({**BASE, "__metadata__": {"a": 1}}, "__metadata__ must be strings by name"),
        ({**BASE, "__metadata__": []}, "__metadata__ must be strings by name"),
        ({**BASE, "e": 3}, "tensor 'e': its entry must have data_offsets, dtype, shape, got 3"),
        (changed("a", more=1), "tensor 'a': its entry must have"),
        (changed("a", dtype="F33"), "tensor 'a': dtype must be one of U64, .*, got 'F33'"),
        (changed("a", dtype=[]), "tensor 'a': dtype must be one of"),
        (changed("a", shape=[2, -3]), "tensor 'a': shape must be a list of sizes"),
        (changed("a", shape=[2.0, 3]), "tensor 'a': shape must be a list of sizes"),
        (changed("a", shape=[True, 6]), "tensor 'a': shape must be a list of sizes"),
        (changed("a", shape=6), "tensor 'a': shape must be a list of sizes"),
        (changed("a", shape=[2**62, 2**62]), "tensor 'a': shape must not overflow"),
        (changed("c", shape=[2**62, 0, 2**62]), "tensor 'c': shape must not overflow"),
        (changed("a", shape=[2, 4]), "tensor 'a': data_offsets must span 32 bytes"),
        (changed("a", data_offsets=[0, 20]), "must span 24 bytes, which is F32 \\[2, 3\\], got"),
        (changed("a", data_offsets=[24, 0]), "data_offsets must lie in the file's 38 bytes"),
        (changed("a", data_offsets=[0, 24, 30]), "data_offsets must be \\[begin, end\\]"),
        (changed("a", data_offsets=["0", 24]), "data_offsets must be \\[begin, end\\]"),
        (changed("a", data_offsets=[-8, 16]), "data_offsets must be \\[begin, end\\]"),
        (changed("d", data_offsets=[33, 39]), "data_offsets must lie in the file's 38 bytes"),
        (changed("b", data_offsets=[16, 24]), "tensor 'b': .* overlaps with tensor 'a'"),
        (changed("d", data_offsets=[24, 30]), "tensor 'b': .* overlaps with tensor 'd'"),
        (changed("c", data_offsets=[30, 30]), "tensor 'c': .* overlaps with tensor 'b'"),
        ({key: BASE[key] for key in "acd"}, "leaves a hole after"),
        ({key: BASE[key] for key in "bcd"}, "tensor 'b': .* leaves a hole after the header"),
        ({key: BASE[key] for key in "abc"}, "must have 32 bytes of data, got 38: nobody"),
        (changed("d", dtype="F4", shape=[12, 1], data_offsets=[32, 38]), "end in an even size"),
    ],
)
def test_damage_is_found(tmp_path: Path, header: Any, message: str) -> None:
    path = write(tmp_path / "a", header)
    with pytest.raises(ValueError, match=message) as raised:
        SafetensorsFile(path)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, MAXIMUM_HEADER + 1, 1000])
def test_the_length_of_the_header(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(ValueError, match=f"the header must have at most .* got {length}"):
        SafetensorsFile(path)


scalars = st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=4)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner)
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The text of a header with a few changes of its values or of its bytes."""
    header: dict[str, Any] = copy.deepcopy(BASE)
    for _ in range(draw(st.integers(0, 2))):
        key = draw(st.sampled_from("abcd"))
        field = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        if not isinstance(header.get(key), dict):
            continue
        match draw(st.integers(0, 4)):
            case 0:
                header[key][field] = draw(anything)
            case 1:
                header[key][field] = header[draw(st.sampled_from("abcd"))].get(field)
            case 2 if isinstance(header[key][field], list) and header[key][field]:
                values = list(header[key][field])
                place = draw(st.integers(0, len(values) - 1))
                values[place] = draw(st.integers(-1, 40) | st.integers())
                header[key][field] = values
            case 3:
                del header[key][field]
                break
            case _:
                header[key]["dtype"] = draw(st.sampled_from(list(SAFETENSORS_NAMES.values())))
    text = bytearray(json.dumps(header).encode())
    for _ in range(draw(st.integers(0, 2))):
        text[draw(st.integers(0, len(text) - 1))] = draw(st.integers(0, 255))
    return bytes(text)


@given(text=mutated())
def test_a_changed_header_is_an_error_or_means_what_it_says(text: bytes) -> None:
    try:
        header = parse_header("name", text, DATA)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert message.startswith("name: ")
        return
    spans = sorted((e.begin, e.begin + e.tensor.nbytes) for e in header.entries)
    ends = [0, *(end for _, end in spans)]
    assert [begin for begin, _ in spans] == ends[:-1]
    assert ends[-1] == DATA


@given(data=st.binary(max_size=60), length=st.integers(0, 60))
def test_any_bytes_are_an_error_or_a_file(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(struct.pack("<Q", length) + data)
    try:
        keys = list(SafetensorsFile(path).tensors)
    except ValueError as error:
        keys, message = None, str(error)
    if keys is None:
        assert message.startswith(f"{path}: ")
    else:
        assert keys == list(load_file(path)) == []


def test_a_header_that_cannot_be_read_is_not_written() -> None:
    tensor = StoredTensor("a", (2,), torch.float32)
    with pytest.raises(ValueError, match="got 'a' a second time"):
        encode_header([tensor, tensor])
    with pytest.raises(ValueError, match="must be free, got '__metadata__'"):
        encode_header([StoredTensor("__metadata__", (2,), torch.float32)])
    with pytest.raises(ValueError, match="must be Unicode text, got '\\\\ud800'"):
        encode_header([StoredTensor("\ud800", (2,), torch.float32)])
    with pytest.raises(ValueError, match="metadata must be Unicode text by name, got 'a': 1"):
        encode_header([tensor], {"a": 1})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"must hold one of .*, got complex128"):
        encode_header([StoredTensor("a", (2,), torch.complex128)])
    with pytest.raises(ValueError, match="must have a dimension"):
        encode_header([StoredTensor("a", (), torch.float4_e2m1fn_x2)])


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SafetensorsFile(tmp_path / "a")
    with pytest.raises(IsADirectoryError):
        SafetensorsFile(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="must be a regular file"):
        SafetensorsFile(tmp_path / "pipe")
