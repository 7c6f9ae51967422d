"""What a user can name a model by: paths, folders, indices, state dicts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from robustcore.merging.checkpoints import (
    PyTorchFile,
    SafetensorsFile,
    ShardedCheckpoint,
    StateDictCheckpoint,
    open_checkpoint,
)

TENSORS = {f"t{i}": torch.arange(6.0).view(2, 3) + 10 * i for i in range(4)}
INDEX = "model.safetensors.index.json"


def read(model: Any, key: str) -> torch.Tensor:
    stored = model.tensors[key]
    into = torch.empty(stored.numel, dtype=stored.dtype)
    return model.read(key, 0, stored.numel, into).view(stored.shape)


def save_shards(folder: Path, *, pytorch: bool = False) -> dict[str, str]:
    weights = {}
    for number, keys in enumerate((("t0", "t2"), ("t1", "t3"))):
        shard = {key: TENSORS[key] for key in keys}
        name = f"pytorch_model-{number}.bin" if pytorch else f"model-{number}.safetensors"
        if pytorch:
            torch.save(shard, folder / name)
        else:
            save_file(shard, folder / name)
        weights |= dict.fromkeys(keys, name)
    write_index(folder, weights, "pytorch_model.bin.index.json" if pytorch else INDEX)
    return weights


def write_index(folder: Path, weights: Any, name: str = INDEX) -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weights}))


@pytest.mark.parametrize("pytorch", [False, True])
def test_shards(tmp_path: Path, pytorch: bool) -> None:
    weights = save_shards(tmp_path, pytorch=pytorch)
    model = open_checkpoint(tmp_path)
    assert isinstance(model, ShardedCheckpoint)
    assert set(model.tensors) == set(TENSORS)
    for key, tensor in TENSORS.items():
        assert torch.equal(read(model, key), tensor)
    assert [os.path.basename(file) for file in model.files[1:]] == sorted(set(weights.values()))
    before = model.identity()
    assert open_checkpoint(model.name).identity() == before == json.loads(json.dumps(before))
    os.utime(model.files[2], ns=(1, 1))
    assert open_checkpoint(tmp_path).identity() != before
    model.close()


def test_tied_weights_in_shards(tmp_path: Path) -> None:
    shared = torch.randn(3)
    torch.save({"a": shared, "b": shared}, tmp_path / "x.bin")
    write_index(tmp_path, {"a": "x.bin", "b": "x.bin"}, "pytorch_model.bin.index.json")
    assert open_checkpoint(tmp_path).aliases == {"b": "a"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t9": "model-0.safetensors"}, "tensor 't9' is not in 'model-0.safetensors'"),
        ({"t9": "model-9.safetensors"}, "the file 'model-9.safetensors' is missing"),
        ({"t0": "model-1.safetensors"}, "tensor 't0' is not in 'model-1.safetensors'"),
        ({"t9": "../x.safetensors"}, "in a file of the same folder, got '../x.safetensors'"),
        ({"t9": "/etc/passwd"}, "in a file of the same folder, got '/etc/passwd'"),
        ({"t9": 3}, "in a file of the same folder, got 3"),
        ({"t0": None}, "in a file of the same folder, got None"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path: Path, change: Any, message: str) -> None:
    write_index(tmp_path, save_shards(tmp_path) | change)
    with pytest.raises(ValueError, match=message) as raised:
        open_checkpoint(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / INDEX}: the index must fit its files")


def test_an_index_that_leaves_out_a_tensor(tmp_path: Path) -> None:
    weights = save_shards(tmp_path)
    del weights["t3"]
    write_index(tmp_path, weights)
    with pytest.raises(ValueError, match=r"tensor 't3' of 'model-1.safetensors' is not in the ind"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must be a JSON object, got list"),
        ("{", "must be a JSON object"),
        ("{}", "weight_map must name a file for each tensor"),
        ('{"weight_map": {}}', "weight_map must name a file for each tensor"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "the key 'a' twice"),
        ("[" * 100_000, "must be a JSON object"),
    ],
)
def test_an_index_that_is_damaged(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path)


def test_which_file_of_a_folder(tmp_path: Path) -> None:
    def opened(name: str) -> None:
        model = open_checkpoint(tmp_path)
        assert model.name == str(tmp_path / name)
        assert torch.equal(read(model, "t1"), TENSORS["t1"])

    with pytest.raises(FileNotFoundError, match=r"the folder must hold model.safetensors"):
        open_checkpoint(tmp_path)
    save_file(TENSORS, tmp_path / "diffusion.safetensors")
    opened("diffusion.safetensors")
    save_file(TENSORS, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"got diffusion.safetensors, other.safetensors; name the"):
        open_checkpoint(tmp_path)
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    opened("pytorch_model.bin")
    save_file(TENSORS, tmp_path / "model.safetensors")
    opened("model.safetensors")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"got model.safetensors, adapter_model.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    save_shards(tmp_path)
    with pytest.raises(
        ValueError, match=rf"must hold one checkpoint, got model.safetensors, {INDEX}"
    ):
        open_checkpoint(tmp_path)


def test_contents_decide_where_the_name_does_not(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.bin")
    assert isinstance(open_checkpoint(tmp_path / "a.bin"), SafetensorsFile)
    torch.save(TENSORS, tmp_path / "a.ckpt")
    assert isinstance(open_checkpoint(tmp_path / "a.ckpt"), PyTorchFile)
    torch.save(TENSORS, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="this is no safetensors file, or it is damaged"):
        open_checkpoint(tmp_path / "a.safetensors")
    (tmp_path / "a.gguf").write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(ValueError, match="must be a safetensors or PyTorch file, got GGUF"):
        open_checkpoint(tmp_path / "a.gguf")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ValueError, match="must have at least 8 bytes, got 0"):
        open_checkpoint(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        open_checkpoint(tmp_path / "missing")


def test_models_in_memory() -> None:
    module = torch.nn.Linear(2, 3)
    model = open_checkpoint({"state_dict": module.state_dict(), "epoch": 1}, "base")
    assert isinstance(model, StateDictCheckpoint)
    assert (model.name, model.is_resident, model.files) == ("base", True, ())
    assert torch.equal(read(model, "weight"), module.weight)
    assert open_checkpoint(model) is model
    assert torch.equal(read(open_checkpoint(torch.ones(2, 2)), ""), torch.ones(2, 2))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.nn.Linear(2, 3), "base must be a path or a state dict, got Linear; pass module.st"),
        (3, "base must be a path or a state dict, got int"),
        (None, "base must be a path or a state dict, got NoneType"),
        ({"a": 1}, "base: must hold dense tensors by name, got\n  'a': int"),
        ({"a": torch.eye(2).to_sparse()}, "base: must hold dense tensors"),
        (torch.eye(2).to_sparse(), "base: must hold dense tensors"),
    ],
)
def test_what_is_no_model(source: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        open_checkpoint(source, "base")
