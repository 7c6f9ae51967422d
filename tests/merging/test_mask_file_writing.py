"""Writing a mask file: all of it or nothing, and no more than was asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robustcore.merging import PackedMasks, read_mask_file


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
