"""Mask files that are damaged or lie: one clear error each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from merging.mask_files import Contents, read_parts, write_parts

from robustcore.merging import PackedMasks


def edit(field: str, value: str) -> Callable[[Contents], None]:
    def change(contents: Contents) -> None:
        contents[0]["__metadata__"][field] = value

    return change


def replace(field: str, old: str, new: str) -> Callable[[Contents], None]:
    def change(contents: Contents) -> None:
        metadata = contents[0]["__metadata__"]
        assert old in metadata[field]
        metadata[field] = metadata[field].replace(old, new, 1)

    return change


def drop(field: str) -> Callable[[Contents], None]:
    def change(contents: Contents) -> None:
        del contents[0]["__metadata__"][field]

    return change


def set_byte(key: str, index: int, value: int) -> Callable[[Contents], None]:
    def change(contents: Contents) -> None:
        start, end = contents[0][key]["data_offsets"]
        contents[1][(start if index >= 0 else end) + index] ^= value

    return change


def rename(old: str, new: str) -> Callable[[Contents], None]:
    def change(contents: Contents) -> None:
        contents[0][new] = contents[0].pop(old)

    return change


def reshape(key: str, **entry: Any) -> Callable[[Contents], None]:
    def change(contents: Contents) -> None:
        contents[0][key].update(entry)

    return change


def add_tensor(contents: Contents) -> None:
    end = len(contents[1])
    contents[0]["more"] = {"dtype": "U8", "shape": [4], "data_offsets": [end, end + 4]}
    contents[1].extend(b"1234")


HASH = "0" * 64
LIES = {
    "another format": (edit("format", "x"), "its format is 'x'"),
    "no format": (drop("format"), "its format is None"),
    "another version": (edit("format_version", "2"), "format_version must be '1', got '2'"),
    "unknown field": (edit("note", "x"), "has unknown ['note']"),
    "bit order": (edit("bit_order", "msb"), "bit_order must be"),
    "P": (edit("num_parameters", "102"), "num_parameters is 102, yet the layout holds 101"),
    "absurd P": (edit("num_parameters", "9" * 30), "num_parameters has no valid value"),
    "negative P": (edit("num_parameters", "-1"), "num_parameters has no valid value"),
    "P is no number": (edit("num_parameters", '"a"'), "num_parameters has no valid value"),
    "T": (edit("num_tasks", "4"), "num_tasks is 4, yet 3 tasks are named"),
    "task names": (replace("tasks", "task 1", "task 0"), "tasks has no valid value"),
    "no tasks": (edit("tasks", "[]"), "yet 0 tasks are named"),
    "tasks are no names": (edit("tasks", "[1,2,3]"), "tasks has no valid value"),
    "broken JSON": (edit("tasks", "["), "tasks has no valid value"),
    "lambda": (replace("lambdas", "0.4", "-0.4"), "lambdas has no valid value"),
    "lambda NaN": (replace("lambdas", "0.4", "NaN"), "lambdas has no valid value"),
    "too few lambdas": (edit("lambdas", "[0.2]"), "lambdas has no valid value"),
    "k": (edit("k", "2"), "k is 2, yet there are 0 sources"),
    "k of many": (edit("k", "0"), "k has no valid value"),
    "sources": (edit("sources", '["a"]'), "k is None, yet there are 1 sources"),
    "comparison": (edit("comparison", '">="'), "comparison has no valid value"),
    "shape": (replace("layout", "[70]", "[71]"), "yet the layout holds 102"),
    "negative shape": (replace("layout", "[70]", "[-70]"), "layout has no valid value"),
    "absurd shape": (replace("layout", "[70]", f"[{2**62},8]"), "layout has no valid value"),
    "dtype": (replace("layout", "float32", "float99"), "layout has no valid value"),
    "integer parameters": (replace("layout", "float32", "int32"), "layout has no valid value"),
    "order of keys": (replace("layout", "layer0", "layer9"), "layout has no valid value"),
    "key twice": (replace("layout", "layer1", "layer0"), "the layout names a key twice"),
    "layout of something else": (edit("layout", "{}"), "layout has no valid value"),
    "short layout entry": (edit("layout", '[["a"]]'), "layout has no valid value"),
    "skipped": (replace("skipped", "int64", "float32"), "skipped has no valid value"),
    "skipped key": (replace("skipped", "steps", "layer0"), "the layout names a key twice"),
    "is_tensor": (edit("is_tensor", "true"), "yet the layout is that of a state dict"),
    "masks_sha256": (edit("masks_sha256", HASH), "masks_sha256 does not match"),
    "base_sha256": (edit("base_sha256", HASH), f"base_sha256 is {HASH}, yet the base has"),
    "no base_sha256": (edit("base_sha256", ""), "base is embedded, yet base_sha256 is empty"),
    "no hash": (edit("merged_sha256", "xyz"), "merged_sha256 is not a SHA-256"),
    "merged_sha256": (edit("merged_sha256", HASH), f"merged_sha256 is {HASH}, yet the merged has"),
    "embedded": (edit("embedded", '["masks"]'), "embedded has no valid value"),
    "buffers_sha256": (edit("buffers_sha256", HASH), "yet the buffers has"),
    "no buffers_sha256": (edit("buffers_sha256", ""), "yet buffers_sha256 is empty"),
    "buffer changed": (set_byte("base/steps", 0, 1), "yet the buffers has"),
    "buffer dtype": (reshape("base/steps", dtype="U64"), "tensor 'base/steps' must be I64 []"),
    "surrogates": (edit("tasks", '["a","b","\\ud800"]'), "tasks has no valid value"),
    "nothing embedded": (edit("embedded", "[]"), "or not expected: ['base/layer0'"),
    "masks changed": (set_byte("masks/1", 0, 1), "masks_sha256 does not match"),
    "padding bits": (set_byte("masks/1", -1, 128), "bits set past the last parameter"),
    "base changed": (set_byte("base/layer0", 2, 1), "yet the base has"),
    "merged changed": (set_byte("merged/layer2", 2, 1), "yet the merged has"),
    "missing mask": (rename("masks/1", "masks/7"), "tensors are missing: ['masks/1']"),
    "missing key": (rename("base/layer1", "base/x"), "tensors are missing: ['base/layer1']"),
    "extra tensor": (add_tensor, "not expected: ['more']"),
    "mask dtype": (reshape("masks/1", dtype="I8"), "tensor 'masks/1' must be U8 [13], got I8"),
    "base dtype": (reshape("base/layer2", dtype="F16"), "tensor 'base/layer2' must be BF16"),
    "base shape": (
        reshape("base/layer2", shape=[6, 5]),
        "tensor 'base/layer2' must be BF16 [5, 6]",
    ),
    "mask shape": (reshape("masks/1", shape=[1, 13]), "tensor 'masks/1' must be U8 [13]"),
    "wrong length": (reshape("masks/1", shape=[14]), "not a complete safetensors file"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_file_that_contradicts_itself(saved: Path, name: str) -> None:
    change, message = LIES[name]
    contents = read_parts(saved)
    change(contents)
    write_parts(saved, contents)
    with pytest.raises(ValueError) as raised:
        PackedMasks.load(saved)
    assert str(raised.value).startswith("PackedMasks.load: ")
    assert str(saved) in str(raised.value)
    assert message in str(raised.value)


def every_field() -> list[str]:
    from robustcore.merging._mask_header import REQUIRED

    return list(REQUIRED)


@pytest.mark.parametrize("field", every_field())
def test_no_field_can_change_unnoticed(saved: Path, field: str) -> None:
    header, data = read_parts(saved)
    header["__metadata__"][field] += " "
    write_parts(saved, (header, data), sign=False)
    with pytest.raises(ValueError, match=r"PackedMasks\.load"):
        PackedMasks.load(saved)


@pytest.mark.parametrize("field", [f for f in every_field() if not f.startswith("format")])
def test_no_field_can_be_missing(saved: Path, field: str) -> None:
    contents = read_parts(saved)
    drop(field)(contents)
    write_parts(saved, contents)
    with pytest.raises(ValueError, match="its metadata lacks"):
        PackedMasks.load(saved)


@pytest.mark.parametrize("keep", [0, 4, 8, 200, -1])
def test_truncated(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        PackedMasks.load(saved)


def test_bytes_after_the_end(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"more")
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        PackedMasks.load(saved)


def test_other_safetensors_files(tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.zeros(3)}, tmp_path / "a")
    with pytest.raises(ValueError, match="its format is None"):
        PackedMasks.load(tmp_path / "a")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PackedMasks.load(tmp_path / "none")
