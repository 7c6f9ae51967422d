"""Files of torch.save read in parts: every dtype and stride, tied weights, no code is run."""

from __future__ import annotations

import os
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustcore.merging.checkpoints import PyTorchFile, PyTorchFileInMemory, open_checkpoint
from robustcore.merging.checkpoints._tensors import copy_part
from robustcore.merging.checkpoints.safetensors_header import SAFETENSORS_NAMES


def read(file: Any, key: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
    stored = file.tensors[key]
    stop = stored.numel if stop is None else stop
    return file.read(key, start, stop, torch.empty(stop - start, dtype=stored.dtype))


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().view(-1).view(torch.uint8).tolist() if tensor.numel() else []


def parts(count: int) -> list[tuple[int, int]]:
    return [(0, count), (1, count), (0, count - 1), (count // 3, count // 2 + 1), (2, 2)]


@pytest.mark.parametrize("dtype", [*SAFETENSORS_NAMES, torch.complex128], ids=str)
def test_every_dtype_in_parts(tmp_path: Path, dtype: torch.dtype) -> None:
    raw = torch.randint(0, 2, (12 * dtype.itemsize,), dtype=torch.uint8)
    tensor = raw.view(dtype).view(4, 3)
    saved = {"a": tensor, "none": tensor[:0], "strided": tensor.t(), "row": tensor[2]}
    torch.save(saved, tmp_path / "a.bin")
    file = PyTorchFile(tmp_path / "a.bin")
    order = [3 * column + row for row in range(3) for column in range(4)]
    expected = {"a": bits(tensor), "none": [], "row": bits(tensor[2])}
    size = dtype.itemsize
    expected["strided"] = [b for i in order for b in expected["a"][i * size : (i + 1) * size]]
    for key, values in expected.items():
        assert file.tensors[key].dtype == dtype
        assert file.tensors[key].shape == tuple(saved[key].shape)
        for start, stop in parts(file.tensors[key].numel):
            if 0 <= start <= stop <= file.tensors[key].numel:
                assert bits(read(file, key, start, stop)) == values[start * size : stop * size]
    file.close()


def test_tied_weights_are_aliases(tmp_path: Path) -> None:
    weight = torch.randn(4, 4)
    saved = {
        "head": weight,
        "embedding": weight,
        "transposed": weight.t(),
        "rows": weight[:2],
        "copy": weight.clone(),
        "none": weight[:0],
        "nothing": weight[:0],
    }
    torch.save(saved, tmp_path / "a")
    file = PyTorchFile(tmp_path / "a")
    assert file.aliases == {"head": "embedding"}
    for key, tensor in saved.items():
        assert torch.equal(read(file, key), tensor.reshape(-1))


def test_what_training_scripts_save(tmp_path: Path) -> None:
    weights = OrderedDict(a=torch.nn.Parameter(torch.randn(3)), b=torch.tensor(4))
    for nested in ("state_dict", "model_state_dict", "model"):
        torch.save({nested: weights, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "a")
        file = open_checkpoint(tmp_path / "a")
        assert set(file.tensors) == {"a", "b"}
        assert torch.equal(read(file, "a"), weights["a"].detach())
    torch.save({"model": weights, "state_dict": weights}, tmp_path / "a")
    with pytest.raises(TypeError, match="must hold one state dict, got state_dict, model"):
        open_checkpoint(tmp_path / "a")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": torch.ones(2), "b": 3, "c": None}, "'b': int\n  'c': NoneType"),
        ({"a": torch.eye(2).to_sparse()}, r"'a': a tensor with layout .*; convert it with to_den"),
        ({3: torch.ones(2)}, "key 3, which is not a string"),
        ([torch.ones(2)], "must be a state dict, got list"),
        (torch.ones(2), "must be a state dict, got Tensor"),
        ({"a": torch.zeros(2, dtype=torch.complex64).conj()}, "'a': a lazily conjugated"),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, value: Any, message: str) -> None:
    torch.save(value, tmp_path / "a")
    with pytest.raises(TypeError, match=message) as raised:
        PyTorchFile(tmp_path / "a")
    assert str(raised.value).startswith(f"{tmp_path / 'a'}: ")


class _Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("was-run",)


@pytest.mark.parametrize("new", [True, False])
def test_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": _Code()}, "a", _use_new_zipfile_serialization=new)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"GLOBAL posix\.mkdir") as raised:
            open_checkpoint("a")
    assert "weights_only" not in str(raised.value)  # no advice to run it
    assert os.listdir() == ["a"]


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a"
    torch.save({"a": torch.randn(5), "b": torch.randn(3)}, path)
    whole = path.read_bytes()
    for length in [*range(4, len(whole), 61), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"must be a (whole )?file of"):
            PyTorchFile(path)


def test_compressed_and_foreign_archives(tmp_path: Path) -> None:
    torch.save({"a": torch.randn(500), "b": torch.randn(3)}, tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a") as source:
        for name, method in (("deflated", zipfile.ZIP_DEFLATED), ("stored", zipfile.ZIP_STORED)):
            with zipfile.ZipFile(tmp_path / name, "w", method) as target:
                for entry in reversed(source.infolist()):
                    target.writestr(entry.filename, source.read(entry))
    for name in ("deflated", "stored"):  # records are not where torch.save would have put them
        with pytest.raises(ValueError, match="the file is damaged"):
            PyTorchFile(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "other", "w") as target:
        target.writestr("hello.txt", "hello")
    with pytest.raises(ValueError, match=r"must be a file of tensors that torch.save wrote, got: "):
        PyTorchFile(tmp_path / "other")


def test_the_other_byte_order(tmp_path: Path) -> None:
    torch.save({"a": torch.randn(5)}, tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    other = b"bigend" if sys.byteorder == "little" else b"little"
    assert data.count(b"little") == 1
    (tmp_path / "a").write_bytes(data.replace(b"little", other))
    with pytest.raises(ValueError):
        PyTorchFile(tmp_path / "a")


def test_the_old_format_is_loaded_with_a_warning(tmp_path: Path) -> None:
    saved = {"a": torch.randn(4, 3), "b": torch.arange(3)}
    saved["tied"] = saved["a"]
    torch.save(saved, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match="in PyTorch's old format, .* loaded into memory"):
        file = open_checkpoint(tmp_path / "a.pt")
    assert isinstance(file, PyTorchFileInMemory)
    assert file.is_resident
    assert file.files == (str(tmp_path / "a.pt"),)
    assert file.aliases == {"tied": "a"}
    assert file.identity()["size"] == os.path.getsize(tmp_path / "a.pt")
    assert torch.equal(read(file, "a"), saved["a"].view(-1))


def test_identity(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "a")
    before = PyTorchFile(tmp_path / "a").identity()
    assert PyTorchFile(tmp_path / "a").identity() == before
    torch.save({"b": torch.zeros(3)}, tmp_path / "a")
    os.utime(tmp_path / "a", ns=(before["mtime_ns"], before["mtime_ns"]))
    assert PyTorchFile(tmp_path / "a").identity() != before


@given(
    shape=st.lists(st.integers(1, 4), max_size=4),
    data=st.data(),
)
def test_any_part_of_any_strides(shape: list[int], data: st.DataObject) -> None:
    count = torch.Size(shape).numel()
    order = data.draw(st.permutations(range(len(shape))))
    steps = data.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=4, max_size=4))
    whole = torch.arange(10_000)
    strides, step = [0] * len(shape), 1
    for place in order:
        strides[place] = step * steps[place]
        step *= max(1, shape[place] * steps[place])
    tensor = whole.as_strided(shape, strides)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    into = torch.full((stop - start,), -1)
    copied = sum(rectangle.numel() for rectangle in copy_part(tensor, start, into))
    assert copied == stop - start
    assert torch.equal(into, tensor.reshape(-1)[start:stop])


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize(("key", "most"), [("in order", 4 << 20), ("strided", 24 << 20)])
def test_memory_is_given_back(tmp_path: Path, key: str, most: int) -> None:
    weight = torch.randn(4096, 4096)
    torch.save({"in order": weight, "strided": weight.t()}, tmp_path / "a")
    expected = weight.t()[-1].clone() if key == "strided" else weight[-1].clone()
    del weight
    file = PyTorchFile(tmp_path / "a")
    into = torch.zeros(1 << 21)
    file.read(key, 0, len(into), into)
    before, worst = resident(), 0
    for start in range(0, file.tensors[key].numel, len(into)):
        file.read(key, start, start + len(into), into)
        worst = max(worst, resident() - before)
    assert torch.equal(into[-4096:], expected)
    assert worst < most  # of 64 MiB
