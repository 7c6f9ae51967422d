"""Merges that were killed go on: what is done stays done, the output has the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from robustcore.merging.checkpoints import StoredTensor
from robustcore.merging.output import CheckpointWriter, Journal
from robustcore.merging.output import journal as journal_module

TENSORS = [StoredTensor("a", (8,), torch.float32), StoredTensor("b", (4,), torch.int64)]
JOB = {"inputs": [{"path": "base", "mtime_ns": 1}], "recipe": {"method": "ties", "density": 0.2}}


def open_writer(path: Path, **options: Any) -> CheckpointWriter:
    return CheckpointWriter(path, TENSORS, **{"identity": JOB, **options})


def write_part(writer: CheckpointWriter, part: int) -> None:
    writer.write("a", 2 * part, torch.full((2,), float(part)))
    writer.write("b", part, torch.full((1,), part))
    writer.mark_done(part)


def interrupted(path: Path, parts: int = 2) -> None:
    writer = open_writer(path)
    writer.remember("norms", [0.1, (2, float("inf"))])
    for part in range(parts):
        write_part(writer, part)
    writer.abort()


def complete(writer: CheckpointWriter) -> list[int]:
    missing = [part for part in range(4) if not writer.is_done(part)]
    for part in missing:
        write_part(writer, part)
    writer.finish(4)
    return missing


def check(path: Path) -> None:
    tensors = load_file(path)
    assert tensors["a"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert tensors["b"].tolist() == [0, 1, 2, 3]


def test_an_interrupted_merge_goes_on(tmp_path: Path) -> None:
    interrupted(tmp_path / "out")
    writer = open_writer(tmp_path / "out")
    assert writer.resumed
    assert writer.journal.done == {0, 1}
    assert writer.recall("norms") == [0.1, [2, float("inf")]]
    assert writer.recall("other") is None
    assert complete(writer) == [2, 3]
    check(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_a_new_merge_knows_nothing(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "out")
    assert not writer.resumed
    assert writer.journal.done == set()
    writer.remember("a", (1, 2))
    assert writer.recall("a") == [1, 2]  # as a later run will have it
    writer.discard()
    assert os.listdir(tmp_path) == []


def test_another_job_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path / "out")
    inputs = [{"path": "base", "mtime_ns": 2}]
    other = {"inputs": inputs, "recipe": {"method": "ties", "scale": 1}}
    with pytest.raises(ValueError, match="an interrupted merge must have the same") as raised:
        open_writer(tmp_path / "out", identity=other)
    assert str(raised.value).splitlines()[1:] == [
        "  job.inputs[0].mtime_ns was 1, is 2",
        "  job.recipe.density is gone, it was 0.2",
        "  job.recipe.scale is new: 1",
    ]
    with pytest.raises(ValueError, match=r"output\[0\].size was"):
        CheckpointWriter(tmp_path / "out", TENSORS[:1], identity=JOB)
    assert open_writer(tmp_path / "out").journal.done == {0, 1}  # nothing was lost by asking


def test_a_restart_forgets(tmp_path: Path) -> None:
    interrupted(tmp_path / "out")
    with pytest.raises(FileExistsError, match="resume=True goes on with it, restart=True"):
        open_writer(tmp_path / "out", resume=False)
    writer = open_writer(tmp_path / "out", identity={}, restart=True)
    assert not writer.resumed
    assert writer.journal.done == set()
    assert writer.recall("norms") is None
    assert complete(writer) == [0, 1, 2, 3]
    check(tmp_path / "out")


def test_a_restart_with_other_files_leaves_none_of_the_old(tmp_path: Path) -> None:
    interrupted(tmp_path / "model.safetensors")
    with open_writer(tmp_path, max_shard_size=32, restart=True) as writer:
        complete(writer)
    assert len(os.listdir(tmp_path)) == 3
    assert not [name for name in os.listdir(tmp_path) if name.endswith((".partial", ".journal"))]


@pytest.mark.parametrize("damage", ["missing", "short", "other"])
def test_a_partial_file_that_is_not_as_it_was_left(tmp_path: Path, damage: str) -> None:
    interrupted(tmp_path / "out")
    partial = tmp_path / "out.partial"
    if damage == "missing":
        partial.unlink()
    elif damage == "short":
        os.truncate(partial, 100)
    else:
        partial.write_bytes(b"x" * partial.stat().st_size)
    writer = open_writer(tmp_path / "out")
    assert not writer.resumed
    assert complete(writer) == [0, 1, 2, 3]
    check(tmp_path / "out")


def test_a_journal_torn_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "out"
    interrupted(path, parts=4)
    partial, journal = (tmp_path / "out.partial").read_bytes(), tmp_path / "out.journal"
    whole = journal.read_bytes()
    first = whole.index(b"\n") + 1
    seen = set()
    for length in [*range(0, first, 17), *range(first, len(whole) + 1, 3), len(whole)]:
        (tmp_path / "out.partial").write_bytes(partial)
        journal.write_bytes(whole[:length])
        writer = open_writer(path, overwrite=True)
        assert writer.resumed == (length >= first)
        lines = whole[:length].split(b"\n")[:-1]  # what follows the last newline is torn
        assert len(writer.journal.done) == sum(b'"done"' in line for line in lines)
        seen.add(len(writer.journal.done))
        complete(writer)
        check(path)
    assert seen == {0, 1, 2, 3, 4}


def test_after_a_torn_line_the_journal_is_whole_again(tmp_path: Path) -> None:
    interrupted(tmp_path / "out")
    with open(tmp_path / "out.journal", "ab") as file:
        file.write(b'{"done": 3')
    writer = open_writer(tmp_path / "out")
    write_part(writer, 2)
    writer.abort()
    assert open_writer(tmp_path / "out").journal.done == {0, 1, 2}


@pytest.mark.parametrize(
    "text", ["weights", "[1]\n", '{"format": "other"}\n', '{"a": 1}\n{"b": 1}\n']
)
def test_a_file_that_is_not_a_journal_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "out.journal").write_text(text)
    for restart in (False, True):
        with pytest.raises(ValueError, match="must be a journal of robustcore"):
            open_writer(tmp_path / "out", restart=restart)
    assert (tmp_path / "out.journal").read_text() == text
    assert os.listdir(tmp_path) == ["out.journal"]


def test_a_journal_of_a_later_version(tmp_path: Path) -> None:
    interrupted(tmp_path / "out")
    journal = tmp_path / "out.journal"
    journal.write_text(journal.read_text().replace('"version": 1', '"version": 2', 1))
    with pytest.raises(ValueError, match=r"version 1.*, got version 2"):
        open_writer(tmp_path / "out")


def restart_machine(monkeypatch: pytest.MonkeyPatch, boot: str | None) -> None:
    monkeypatch.setattr(journal_module, "_boot_id", lambda: boot)


def test_after_a_restart_of_the_machine_only_what_was_forced_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer(tmp_path / "out")
    write_part(writer, 0)
    writer.sync()
    write_part(writer, 1)
    writer.abort()
    restart_machine(monkeypatch, "second")
    writer = open_writer(tmp_path / "out")
    assert writer.resumed
    assert writer.journal.done == {0}
    write_part(writer, 1)
    writer.abort()
    writer = open_writer(tmp_path / "out")  # the machine still runs
    assert writer.journal.done == {0, 1}
    writer.abort()
    restart_machine(monkeypatch, "third")
    writer = open_writer(tmp_path / "out")
    assert writer.journal.done == {0}
    complete(writer)
    check(tmp_path / "out")


def test_where_the_system_does_not_tell_of_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restart_machine(monkeypatch, None)
    writer = open_writer(tmp_path / "out")
    write_part(writer, 0)
    writer.sync()
    write_part(writer, 1)
    writer.abort()
    assert open_writer(tmp_path / "out").journal.done == {0}


def test_what_is_written_while_data_are_forced_is_not_covered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer(tmp_path / "out")
    write_part(writer, 0)
    lines = writer.journal.lines()
    write_part(writer, 1)
    writer.journal.mark_synced(lines)
    writer.abort()
    restart_machine(monkeypatch, "second")
    assert open_writer(tmp_path / "out").journal.done == {0}


def test_data_are_forced_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced = threading.Event()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        if threading.current_thread() is not threading.main_thread():
            forced.set()

    monkeypatch.setattr(os, "fsync", fsync)
    writer = open_writer(tmp_path / "out", sync_seconds=0)
    write_part(writer, 0)
    assert forced.wait(60)
    writer.abort()
    restart_machine(monkeypatch, "second")
    assert open_writer(tmp_path / "out").journal.done == {0}


def test_an_error_in_the_background_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer(tmp_path / "out", sync_seconds=0)

    def fail(descriptor: int) -> None:
        raise OSError(5, "broken")

    monkeypatch.setattr(os, "fsync", fail)
    write_part(writer, 0)
    with pytest.raises(OSError, match=r"broken: .*out\.partial"):
        writer.finish()
    writer.discard()


def test_two_merges_into_one_output(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "out")
    for options in ({}, {"restart": True}, {"overwrite": True}):
        with pytest.raises(BlockingIOError, match="another merge is writing to this output"):
            open_writer(tmp_path / "out", **options)
    assert complete(writer) == [0, 1, 2, 3]
    check(tmp_path / "out")
    with pytest.raises(FileExistsError):
        open_writer(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_a_journal_that_is_deleted_while_another_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    Journal(str(path)).close()
    real = journal_module._lock
    calls = []

    def lock(descriptor: int, name: str) -> None:
        if not calls:
            os.unlink(path)  # its holder is done at this moment
        calls.append(descriptor)
        real(descriptor, name)

    monkeypatch.setattr(journal_module, "_lock", lock)
    journal = Journal(str(path))
    assert len(calls) == 2
    journal.start({"a": 1})
    assert path.read_text().count("\n") == 1


@pytest.mark.parametrize("after", range(5))
@pytest.mark.parametrize("old", [False, True])
def test_a_kill_while_files_get_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, old: bool
) -> None:
    tensors = [StoredTensor(f"t{i}", (4,), torch.float32) for i in range(4)]

    def writer(**options: Any) -> CheckpointWriter:
        return CheckpointWriter(
            tmp_path, tensors, identity=JOB, max_shard_size=16, overwrite=old, **options
        )

    if old:
        with CheckpointWriter(tmp_path, tensors, identity={}, max_shard_size=40):
            pass
    first = writer()
    for number, tensor in enumerate(tensors):
        first.write(tensor.key, 0, torch.full((4,), float(number)))
    first.mark_done(0)
    real = os.replace
    left = [after]

    def replace(*arguments: Any) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        real(*arguments)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr("robustcore.merging.output.writer.sync_folder", lambda _: replace("", ""))
    with pytest.raises(KeyboardInterrupt):
        first.finish(1)
    first.abort()
    monkeypatch.undo()
    second = writer()
    assert second.resumed
    assert second.is_done(0)
    second.finish(1)
    assert len(os.listdir(tmp_path)) == 5
    for number in range(4):
        file = load_file(tmp_path / f"model-0000{number + 1}-of-00004.safetensors")
        assert file[f"t{number}"].tolist() == [number] * 4
    assert len(json.loads((tmp_path / "model.safetensors.index.json").read_text())) == 2


_MERGES = """
import os, random, signal, sys, time
import torch
from robustcore.merging.checkpoints import StoredTensor
from robustcore.merging.output import CheckpointWriter

def merge(path, limit):
    tensors = [StoredTensor(key, (5000,), torch.float32) for key in "abc"]
    with CheckpointWriter(path, tensors, identity={"seed": 1}, max_shard_size=limit) as writer:
        for key in "abc":
            for start in range(0, 5000, 100):
                part = ord(key) * 5000 + start
                if not writer.is_done(part):
                    writer.write(key, start, torch.arange(part, part + 100).float())
                    writer.mark_done(part)

def kill_until_done(path, limit, final):
    random.seed(0)
    delay, kills = 0.0, 0
    while True:
        child = os.fork()  # a new interpreter would take seconds to start
        if child == 0:
            try:
                merge(path, limit)
                os._exit(0)
            finally:
                os._exit(1)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            return kills, os.WEXITSTATUS(status)
        kills += 1
        folder = os.path.dirname(final)
        if os.path.exists(final) and not any(n.endswith(".journal") for n in os.listdir(folder)):
            return kills, 0  # killed after it was done
        # A slow disk must not be hit at the same moment for ever.
        delay = 1.3 * delay + random.uniform(0, 0.002)

folder = sys.argv[1]
print(*kill_until_done(folder + "/out", None, folder + "/out"))
print(*kill_until_done(folder + "/shards", 20_000, folder + "/shards/model.safetensors.index.json"))
"""


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """The merge runs in one process after another until one is not killed."""
    result = subprocess.run(
        [sys.executable, "-c", _MERGES, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for line in result.stdout.splitlines():
        kills, status = map(int, line.split())
        assert status == 0, result.stderr
        assert kills > 1
    for files in ([tmp_path / "out"], sorted((tmp_path / "shards").glob("*.safetensors"))):
        found = {key: tensor for file in files for key, tensor in load_file(file).items()}
        assert found.keys() == set("abc")
        for key, tensor in found.items():
            start = ord(key) * 5000
            assert torch.equal(tensor, torch.arange(start, start + 5000).float())
    assert sorted(os.listdir(tmp_path)) == ["out", "shards"]
    assert len(os.listdir(tmp_path / "shards")) == 4
