"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["atomic_file", "give_mode", "sync_folder"]


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Gives a file to write to; what was written becomes ``path`` at the end of the block.

    After an exception nothing is left behind and an older file is as it was. Where the system can
    (Linux, most file systems), the new file has no name until it is complete and on disk, so that
    even a process that is killed leaves nothing. A file that is replaced is the exception: the new
    one has a name of its own, ``.robustcore-<hex>``, for the moment before it takes the old name.

    A symbolic link stays one: the file it leads to is written. A replaced file keeps its mode.

    Raises:
        ValueError: There is something at ``path`` that is not a regular file.
        OSError: ``path`` is a folder, or the file cannot be written.
    """
    target = os.path.realpath(os.fspath(path))
    folder = os.path.dirname(target)
    mode = _mode_of(target)
    temporary: str | None = None
    descriptor = _open_unnamed(folder)
    if descriptor is None:
        descriptor, temporary = tempfile.mkstemp(prefix=".robustcore-", dir=folder)
        give_mode(descriptor, 0o666 & ~_usual_mask())
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if mode is not None:
                give_mode(descriptor, mode)
            os.fsync(descriptor)
            if temporary is None and not _link(descriptor, target):
                temporary = _give_name(descriptor, folder)
        if temporary is not None:
            os.replace(temporary, target)
            temporary = None
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    sync_folder(folder)


def _mode_of(target: str) -> int | None:
    """Permissions of the file that will be replaced, None where there is none."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    if not stat.S_ISREG(mode):
        raise ValueError(f"PackedMasks.save: path must be a regular file, got {target}")
    return stat.S_IMODE(mode)


def _open_unnamed(folder: str) -> int | None:
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.open(folder, flag | os.O_WRONLY, 0o666)
    except OSError:
        # The file system has no unnamed files; if the folder itself is at fault, mkstemp says so.
        return None


def _give_name(descriptor: int, folder: str) -> str:
    for _ in range(100):
        name = os.path.join(folder, f".robustcore-{os.urandom(8).hex()}")
        if _link(descriptor, name):
            return name
    raise FileExistsError(f"no free temporary name in {folder}")


def _link(descriptor: int, name: str) -> bool:
    """Names an unnamed file; False if the name is taken."""
    try:
        # A folder descriptor makes Python call linkat, which follows the link in /proc.
        os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=descriptor, follow_symlinks=True)
    except FileExistsError:
        return False
    return True


def _usual_mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def give_mode(descriptor: int, mode: int) -> None:
    """Sets the permissions of a file where the system can."""
    with contextlib.suppress(AttributeError, OSError):  # not every system or file system can
        os.fchmod(descriptor, mode)


def sync_folder(folder: str) -> None:
    """Names that were given or taken in a folder are on the disk."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
