"""The packed mask file: what is stored comes back; whatever is wrong is one clear error."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from robustcore.merging import PackedMasks, multi_task_vector, read_mask_file, tall_masks
from robustcore.merging.state_dict import FlatLayout, TensorInfo
from robustcore.testing.samples_merging import random_models

Contents = tuple[dict[str, Any], bytearray]


def models() -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    base, finetuned = random_models((70, 1, 30), 3)
    base["layer2"] = base["layer2"].bfloat16().view(5, 6)
    base["steps"] = torch.tensor(4)
    for model in finetuned.values():
        model["layer2"] = model["layer2"].bfloat16().view(5, 6)
        model["steps"] = torch.tensor(5)
    return base, finetuned


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    base, finetuned = models()
    path = tmp_path / "tasks.masks"
    masks = tall_masks(base, finetuned).select((0.2, 0.4, 0.6))
    masks.save(path, base=base, merged=multi_task_vector(base, finetuned), embed=True)
    return path


def read_parts(path: Path) -> Contents:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])


def write_parts(path: Path, contents: Contents, *, sign: bool = True) -> None:
    """With ``sign`` the hash of the metadata is made to fit: what remains is a lie inside it."""
    header, data = contents
    metadata = header["__metadata__"]
    if sign and "metadata_sha256" in metadata:
        rest = sorted(item for item in metadata.items() if item[0] != "metadata_sha256")
        text = json.dumps([list(item) for item in rest], ensure_ascii=False, separators=(",", ":"))
        metadata["metadata_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_round_trip(saved: Path) -> None:
    base, finetuned = models()
    vector = multi_task_vector(base, finetuned)
    masks = tall_masks(base, finetuned).select((0.2, 0.4, 0.6))
    loaded = PackedMasks.load(saved, base=base, merged=vector)
    assert torch.equal(loaded.words, masks.words)
    for name in ("tasks", "layout", "lambdas", "comparison", "k", "sources"):
        assert getattr(loaded, name) == getattr(masks, name)
    file = read_mask_file(saved)
    for key in ("layer0", "layer1", "layer2"):
        assert torch.equal(file.base[key], base[key])
        assert torch.equal(file.merged[key], vector[key])
    assert file.base["layer2"].dtype == torch.bfloat16
    assert torch.equal(file.base["steps"], base["steps"])
    expected = masks.apply("task 1", base, vector)
    actual = file.masks.apply("task 1", file.base, file.merged)
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


@pytest.mark.parametrize("parameters", [0, 1, 7, 8, 9, 63, 64, 65])
def test_round_trip_of_a_tensor(tmp_path: Path, parameters: int) -> None:
    base = torch.randn(parameters)
    masks = tall_masks(base, {'ä \n"': torch.randn(parameters)}).select(0.2)
    masks.save(tmp_path / "a", base=base)
    loaded = PackedMasks.load(tmp_path / "a", base=base)
    assert loaded.tasks == masks.tasks
    assert loaded.layout.is_tensor
    assert torch.equal(loaded.words, masks.words)


def test_consensus_round_trip(tmp_path: Path) -> None:
    base, finetuned = models()
    masks = tall_masks(base, finetuned, comparison="paper").select(0.3).consensus(2)
    masks.save(tmp_path / "a")
    loaded = PackedMasks.load(tmp_path / "a")
    assert (loaded.k, loaded.sources, loaded.comparison) == (2, tuple(finetuned), "paper")
    assert loaded.lambdas == (0.3,) * 3
    assert torch.equal(loaded.words, masks.words)


def test_consensus_of_a_consensus_round_trip(tmp_path: Path) -> None:
    base, finetuned = models()
    masks = tall_masks(base, finetuned).select(0.2).consensus(2).consensus(1)
    masks.save(tmp_path / "a")
    loaded = PackedMasks.load(tmp_path / "a")
    assert (loaded.k, loaded.sources, loaded.lambdas) == (1, ("consensus",), None)
    assert torch.equal(loaded.words, masks.words)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int16", "int32", "int64", "uint16"])
def test_an_embedded_base_is_a_whole_model(tmp_path: Path, dtype: str) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    module.register_buffer("extra", torch.tensor([1, 0, 1]).to(getattr(torch, dtype)))
    base = module.state_dict()
    finetuned = [{k: t + 1 if t.is_floating_point() else t for k, t in base.items()}] * 2
    vector = multi_task_vector(base, finetuned)
    masks = tall_masks(base, finetuned).select(0.2)
    masks.save(tmp_path / "a", base=base, merged=vector, embed=True)
    file = read_mask_file(tmp_path / "a")
    assert file.base.keys() == base.keys()
    assert all(
        torch.equal(file.base[k], t) and file.base[k].dtype == t.dtype for k, t in base.items()
    )
    module.load_state_dict(file.masks.apply(0, file.base, file.merged))
    loaded = PackedMasks.load(tmp_path / "a", base=file.base, merged=file.merged)
    assert torch.equal(loaded.words, masks.words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lambdas": (0.2, 0.3)}, "lambdas has no valid value"),
        ({"lambdas": (0.2, 0.3, float("nan"))}, "lambdas has no valid value"),
        ({"comparison": ">"}, "comparison has no valid value"),
        ({"k": 2}, "k is 2, yet there are 0 sources"),
        ({"tasks": ("a", "b", "\udc80")}, "tasks must be Unicode text, got '\\udc80'"),
    ],
)
def test_what_cannot_be_loaded_is_not_saved(
    saved: Path, change: dict[str, Any], message: str
) -> None:
    masks = PackedMasks.load(saved)
    for name, value in change.items():
        setattr(masks, name, value)
    with pytest.raises(ValueError) as raised:
        masks.save(saved.parent / "a")
    assert str(raised.value).startswith("PackedMasks.save: ")
    assert message in str(raised.value)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_the_default_device_does_not_matter(saved: Path) -> None:
    expected = read_mask_file(saved)
    base, finetuned = models()
    masks = tall_masks(base, finetuned)
    with torch.device("meta"):
        file = read_mask_file(saved)
        assert torch.equal(file.masks.words, expected.masks.words)
        file.masks.save(saved, base=file.base, merged=file.merged, embed=True)
        assert masks.densities.device.type == "cpu"
        assert tall_masks({}, [{}]).select(0.2).words.device.type == "cpu"
    again = read_mask_file(saved)
    for key, tensor in expected.base.items():
        assert torch.equal(again.base[key], tensor)


def test_other_programs_can_read_it(saved: Path) -> None:
    tensors = safetensors.torch.load_file(saved)
    masks = PackedMasks.load(saved)
    for index, row in enumerate(masks.packed):
        assert torch.equal(tensors[f"masks/{index}"], row)
    bits = tensors["masks/1"].view(-1, 1) >> torch.arange(8) & 1
    assert torch.equal(bits.flatten()[:101].bool(), masks.unpack(1))


def test_size(tmp_path: Path) -> None:
    """A residual network's worth of tensors: at most 0.1251 bytes per parameter and task."""
    infos = tuple(
        TensorInfo(f"stage{i // 40}.block{i % 40:02d}.conv.weight", (130, 1090), torch.float32)
        for i in range(160)
    )
    layout = FlatLayout(infos)
    parameters, tasks = layout.num_parameters, 8
    assert 22_000_000 < parameters < 23_000_000
    words = torch.zeros((tasks, (parameters + 63) // 64), dtype=torch.int64)
    names = [f"task {index}" for index in range(tasks)]
    PackedMasks(words, layout, names, lambdas=(0.4,) * tasks).save(tmp_path / "large")
    assert (tmp_path / "large").stat().st_size <= 0.1251 * parameters * tasks
    assert torch.equal(PackedMasks.load(tmp_path / "large").words, words)


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


def test_masks_of_other_models(saved: Path) -> None:
    base, finetuned = models()
    base["layer0"] = base["layer0"] + 1
    with pytest.raises(ValueError, match=r"base_sha256 is .*, yet the base has"):
        PackedMasks.load(saved, base=base)
    vector = multi_task_vector(base, finetuned)
    with pytest.raises(ValueError, match="merged_sha256 is"):
        PackedMasks.load(saved, merged=vector)
    with pytest.raises(ValueError, match="merged\\['layer0'\\] is missing"):
        PackedMasks.load(saved, merged={})


def test_no_hash_to_compare_with(tmp_path: Path) -> None:
    base, finetuned = models()
    tall_masks(base, finetuned).select(0.4).save(tmp_path / "a")
    with pytest.raises(ValueError, match="holds no hash of base"):
        PackedMasks.load(tmp_path / "a", base=base)


def test_embedding_nothing(tmp_path: Path) -> None:
    base, finetuned = models()
    with pytest.raises(ValueError, match="embed must be False"):
        tall_masks(base, finetuned).select(0.4).save(tmp_path / "a", embed=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("unnamed", [True, False])
def test_a_failed_save_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    before = saved.read_bytes()
    masks = PackedMasks.load(saved)
    if not unnamed:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)

    def fail(descriptor: int) -> None:
        raise OSError("disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk is gone"):
            masks.save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    masks.save(saved)
    assert saved.read_bytes() != before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_replaced_file_keeps_its_mode_and_links(saved: Path, tmp_path: Path) -> None:
    masks = PackedMasks.load(saved)
    saved.chmod(0o640)
    (tmp_path / "link").symlink_to(saved)
    masks.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert read_mask_file(saved).base is None  # the file behind the link is the new one
    assert saved.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", saved.name]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_files_are_replaced(saved: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"PackedMasks\.save: path must be a regular file"):
        PackedMasks.load(saved).save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_permissions_are_the_usual_ones(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    assert saved.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_saving_where_nothing_can_be_saved(saved: Path, tmp_path: Path) -> None:
    masks = PackedMasks.load(saved)
    with pytest.raises(FileNotFoundError):
        masks.save(tmp_path / "no such folder" / "a")
    with pytest.raises(IsADirectoryError):
        masks.save(tmp_path)


KILLED = """
import os, signal, sys, torch
from robustcore.merging import tall_masks
masks = tall_masks(torch.zeros(100000), [torch.ones(100000)] * 3).select(0.2)
fsync = os.fsync
def kill(descriptor):
    fsync(descriptor)
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = kill
masks.save(sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs unnamed files (Linux)")
def test_a_killed_save_leaves_nothing(tmp_path: Path) -> None:
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY))
    except OSError:
        pytest.skip("the file system of the temporary folder has no unnamed files")
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "masks"], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_never_has_another_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = PackedMasks.load(saved)
    try:
        os.close(os.open(saved.parent, os.O_TMPFILE | os.O_WRONLY))
    except (AttributeError, OSError):
        pytest.skip("there are no unnamed files here")
    monkeypatch.delattr(os, "replace")
    masks.save(saved.parent / "new")
    assert torch.equal(PackedMasks.load(saved.parent / "new").words, masks.words)
