"""Output of merges: complete or not there, the bytes of the safetensors package, one at a time."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from robustcore.merging.checkpoints import ShardedCheckpoint, StoredTensor, open_checkpoint
from robustcore.merging.checkpoints.safetensors_header import SAFETENSORS_NAMES
from robustcore.merging.output import CheckpointWriter, plan_output

ONE = [StoredTensor("a", (4,), torch.float32)]


def stored(tensors: dict[str, torch.Tensor]) -> list[StoredTensor]:
    return [StoredTensor(key, tuple(t.shape), t.dtype) for key, t in tensors.items()]


def open_writer(path: Path, tensors: dict[str, torch.Tensor], **options: Any) -> CheckpointWriter:
    return CheckpointWriter(path, stored(tensors), **{"identity": {}, **options})


def write_all(writer: CheckpointWriter, tensors: dict[str, torch.Tensor]) -> None:
    for key, tensor in tensors.items():
        writer.write(key, 0, tensor.reshape(-1))


def model() -> dict[str, torch.Tensor]:
    return {
        "b": torch.randn(30, 7),
        "a": torch.randn(11).bfloat16(),
        "ä\n\x01": torch.arange(5),
        "flag": torch.tensor([True, False, True]),
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(3.0, dtype=torch.float64),
        "z": torch.randn(9).half(),
    }


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# The package writes several metadata in any order.
@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {'ä\n"': "\x1f\x7f\u2028/"}])
def test_the_bytes_of_the_safetensors_package(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    tensors = model()
    save_file(tensors, tmp_path / "expected", metadata=metadata)
    with open_writer(tmp_path / "actual", tensors, metadata=metadata) as writer:
        write_all(writer, tensors)
    assert (tmp_path / "actual").read_bytes() == (tmp_path / "expected").read_bytes()
    assert names(tmp_path) == ["actual", "expected"]


def test_the_bytes_of_the_safetensors_package_in_every_dtype(tmp_path: Path) -> None:
    tensors = {
        f"{i % 3} {dtype}": torch.randint(0, 2, (48,), dtype=torch.uint8).view(dtype)
        for i, dtype in enumerate(SAFETENSORS_NAMES)
    }
    save_file(tensors, tmp_path / "expected")
    with open_writer(tmp_path / "actual", tensors) as writer:
        write_all(writer, tensors)
    assert (tmp_path / "actual").read_bytes() == (tmp_path / "expected").read_bytes()


def test_no_tensors(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a", {}):
        pass
    assert load_file(tmp_path / "a") == {}


def test_parts_from_many_threads(tmp_path: Path) -> None:
    values = torch.randn(100_003)
    starts = range(0, len(values), 1009)
    with open_writer(tmp_path / "a", {"a": values}) as writer, ThreadPoolExecutor(8) as pool:

        def write(part: int) -> None:
            start = starts[part]
            writer.write("a", start, values[start : start + 1009])
            writer.mark_done(part)

        list(pool.map(write, reversed(range(len(starts)))))
        writer.finish(len(starts))
    assert torch.equal(load_file(tmp_path / "a")["a"], values)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = model()
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, data[:5], offset))
    with open_writer(tmp_path / "a", tensors) as writer:
        write_all(writer, tensors)
    assert torch.equal(load_file(tmp_path / "a")["b"], tensors["b"])


def test_nothing_has_the_final_name_before_the_end(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "a", model())
    assert names(tmp_path) == ["a.journal", "a.partial"]
    assert os.path.getsize(tmp_path / "a.partial") == writer.plan.size
    blocks = os.stat(tmp_path / "a.partial").st_blocks
    assert 512 * blocks >= writer.plan.size  # the space is there
    write_all(writer, model())
    writer.finish()
    writer.finish()  # once is enough
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("start", "values", "message"),
    [
        (0, torch.zeros(5), r"the range must lie in \[0, 4\), got \[0, 5\)"),
        (-1, torch.zeros(2), "the range must lie in"),
        (0, torch.zeros(2, dtype=torch.int32), "values must be torch.float32, got torch.int32"),
        (0, torch.zeros(2, 2), "values must be contiguous"),
        (0, torch.zeros(4)[::2], "values must be contiguous"),
        (0, torch.zeros(4, device="meta"), "on the CPU"),
    ],
)
def test_what_does_not_fit_is_not_written(
    tmp_path: Path, start: int, values: torch.Tensor, message: str
) -> None:
    writer = CheckpointWriter(tmp_path / "out", ONE, identity={})
    with pytest.raises(ValueError, match=message) as raised:
        writer.write("a", start, values)
    assert "tensor 'a'" in str(raised.value)
    with pytest.raises(KeyError):
        writer.write("b", 0, torch.zeros(1))
    writer.discard()
    assert names(tmp_path) == []


def test_a_part_that_is_not_done(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "out", ONE, identity={})
    writer.mark_done(1)
    with pytest.raises(ValueError, match=r"all 3 parts must be done, got 2 .*: \[0, 2\]"):
        writer.finish(3)
    assert names(tmp_path) == ["out.journal", "out.partial"]
    writer.discard()


def test_an_error_leaves_nothing_and_an_interruption_everything(tmp_path: Path) -> None:
    for error in (ValueError, OSError):
        with pytest.raises(error), CheckpointWriter(tmp_path / "out", ONE, identity={}):
            raise error
        assert names(tmp_path) == []
    for interruption in (KeyboardInterrupt, SystemExit):
        with pytest.raises(interruption), CheckpointWriter(tmp_path / "out", ONE, identity={}):
            raise interruption
        assert names(tmp_path) == ["out.journal", "out.partial"]


def test_an_existing_output(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    os.chmod(path, 0o640)
    with pytest.raises(FileExistsError, match="the output exists; overwrite=True replaces it"):
        CheckpointWriter(path, ONE, identity={})
    assert names(tmp_path) == ["out"]
    writer = CheckpointWriter(path, ONE, identity={}, overwrite=True)
    assert path.read_bytes() == b"old"
    writer.write("a", 0, torch.ones(4))
    writer.finish()
    assert torch.equal(load_file(path)["a"], torch.ones(4))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_an_output_that_comes_meanwhile(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "out", ONE, identity={})
    (tmp_path / "out").write_bytes(b"new")
    with pytest.raises(FileExistsError):
        writer.finish()
    writer.discard()
    assert (tmp_path / "out").read_bytes() == b"new"


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "out")
    with CheckpointWriter(tmp_path / "link", ONE, identity={}):
        pass
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == ["out"]


@pytest.mark.parametrize("kind", ["same", "symlink", "hardlink", "relative", "partial", "journal"])
def test_the_output_is_not_an_input(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "in"
    path.write_bytes(b"weights")
    out = tmp_path / "out"
    if kind == "same":
        out = path
    elif kind == "relative":
        out = Path("sub/../in")
        (tmp_path / "sub").mkdir()
    elif kind == "symlink":
        out.symlink_to(path)
    elif kind == "hardlink":
        os.link(path, out)
    else:
        os.link(path, tmp_path / f"out.{kind}")
    before = names(tmp_path)
    with pytest.raises(ValueError, match="the output must not be a file that is read"):
        CheckpointWriter(out, ONE, identity={}, inputs=[path], overwrite=True, restart=True)
    assert path.read_bytes() == b"weights"
    assert names(tmp_path) == before


def test_places_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="the output must be a file"):
        CheckpointWriter(tmp_path, ONE, identity={})
    with pytest.raises(FileNotFoundError, match="the folder of the output must exist"):
        CheckpointWriter(tmp_path / "no" / "out", ONE, identity={})
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        CheckpointWriter(tmp_path / "file" / "out", ONE, identity={})
    with pytest.raises(NotADirectoryError, match="the output must be a folder"):
        CheckpointWriter(tmp_path / "file", ONE, identity={}, max_shard_size=100)
    with pytest.raises(ValueError, match="max_shard_size must be above 0"):
        CheckpointWriter(tmp_path, ONE, identity={}, max_shard_size=0)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="must be a regular file"):
        CheckpointWriter(tmp_path / "pipe", ONE, identity={}, overwrite=True)
    with pytest.raises(TypeError, match="not JSON serializable"):
        CheckpointWriter(tmp_path / "out", ONE, identity={"a": object()})
    with pytest.raises(ValueError, match="must hold one of"):
        CheckpointWriter(tmp_path / "out", [StoredTensor("a", (1,), torch.complex128)], identity={})
    assert names(tmp_path) == ["file", "pipe"]


def test_a_folder_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: mode & os.W_OK == 0 and real(path, mode)
    )  # permissions do not stop root
    with pytest.raises(PermissionError, match="the folder of the output must be writable"):
        CheckpointWriter(tmp_path / "out", ONE, identity={})
    assert names(tmp_path) == []


def test_a_full_disk_is_found_before_work_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"the output needs \d+ bytes in .*, where \d+ are") as raised:
        CheckpointWriter(tmp_path / "out", ONE, identity={})
    assert raised.value.errno == errno.ENOSPC
    assert names(tmp_path) == []
    with pytest.raises(OSError, match="the output needs"):
        CheckpointWriter(tmp_path / "folder", ONE, identity={}, max_shard_size=8)
    assert names(tmp_path) == []


@pytest.fixture
def small_files() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("small_files")
def test_a_limit_of_the_size_of_files(tmp_path: Path) -> None:
    large = [StoredTensor("a", (100_000,), torch.float32)]
    with pytest.raises(OSError, match="the output needs 4000") as raised:
        CheckpointWriter(tmp_path / "out", large, identity={})
    assert raised.value.errno == errno.EFBIG
    assert names(tmp_path) == []


def test_file_systems_that_cannot_reserve_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    with CheckpointWriter(tmp_path / "out", ONE, identity={}) as writer:
        writer.write("a", 0, torch.ones(4))
    assert torch.equal(load_file(tmp_path / "out")["a"], torch.ones(4))
    huge = [StoredTensor("a", (2**60,), torch.uint8)]
    with pytest.raises(OSError, match="the output needs") as raised:
        CheckpointWriter(tmp_path / "huge", huge, identity={})
    assert raised.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["out"]


def test_an_error_while_writing_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CheckpointWriter(tmp_path / "out", ONE, identity={})

    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match=r"out\.partial"):
        writer.write("a", 0, torch.ones(4))
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"out\.partial"):
        writer.finish()
    writer.discard()


def test_shards(tmp_path: Path) -> None:
    tensors = {f"layer{i}": torch.randn(10, 10) for i in range(5)} | {"small": torch.ones(1)}
    folder = tmp_path / "model"
    with open_writer(folder, tensors, max_shard_size=900, metadata={"format": "pt"}) as writer:
        write_all(writer, tensors)
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert names(folder) == [*shards, "model.safetensors.index.json"]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 5 * 400 + 4}
    assert [key for key, name in index["weight_map"].items() if name == shards[0]] == [
        "layer0",
        "layer1",
    ]
    model = open_checkpoint(folder)
    assert isinstance(model, ShardedCheckpoint)
    for key, tensor in tensors.items():
        into = torch.empty(tensor.numel())
        assert torch.equal(model.read(key, 0, tensor.numel(), into), tensor.view(-1))
    expected = {key: tensors[key] for key in ("layer0", "layer1")}
    save_file(expected, tmp_path / "expected", metadata={"format": "pt"})
    assert (folder / shards[0]).read_bytes() == (tmp_path / "expected").read_bytes()


def test_a_tensor_larger_than_a_shard_and_a_single_shard(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(1), "large": torch.randn(100), "z": torch.randn(1)}
    plan = plan_output(tmp_path / "a", stored(tensors), max_shard_size=50)
    assert [[t.key for t in file.tensors] for file in plan.files] == [["a"], ["large"], ["z"]]
    assert names(tmp_path) == []
    with open_writer(tmp_path / "one", tensors, max_shard_size=10_000) as writer:
        write_all(writer, tensors)
    assert names(tmp_path / "one") == ["model.safetensors"]


def test_a_folder_with_another_model(tmp_path: Path) -> None:
    old = {f"layer{i}": torch.randn(100) for i in range(4)}
    with open_writer(tmp_path, old, max_shard_size=400):
        pass
    (tmp_path / "config.json").write_text("{}")
    new = {"layer0": torch.randn(100), "layer1": torch.randn(100)}
    with pytest.raises(FileExistsError, match="the output exists"):
        open_writer(tmp_path, new, max_shard_size=400)
    last = tmp_path / "model-00004-of-00004.safetensors"
    with pytest.raises(ValueError, match="the output must not be a file that is read"):
        open_writer(tmp_path, new, max_shard_size=400, overwrite=True, inputs=[last])
    with open_writer(tmp_path, new, max_shard_size=400, overwrite=True) as writer:
        write_all(writer, new)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert names(tmp_path) == ["config.json", *shards, "model.safetensors.index.json"]
    with open_writer(tmp_path, new, max_shard_size=10_000, overwrite=True) as writer:
        write_all(writer, new)
    assert names(tmp_path) == ["config.json", "model.safetensors"]
    assert torch.equal(load_file(tmp_path / "model.safetensors")["layer1"], new["layer1"])


def test_an_index_cannot_have_other_files_deleted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("precious.txt", "../outside.safetensors"):
        (tmp_path / "in" / name).write_text("precious")
    weights = {"a": "precious.txt", "b": "../outside.safetensors"}
    index = tmp_path / "in" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weights}))
    with CheckpointWriter(tmp_path / "in", ONE, identity={}, max_shard_size=99, overwrite=True):
        pass
    assert names(tmp_path / "in") == ["model.safetensors", "precious.txt"]
    assert names(tmp_path) == ["in", "outside.safetensors"]
