"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["atomic_file"]


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Gives a file to write to; what was written becomes ``path`` at the end of the block.

    After an exception nothing is left behind and an older file is as it was. Where the system can
    (Linux, most file systems), the new file has no name until it is complete, so that even a
    process that is killed leaves nothing. It is on disk before it gets its name.
    """
    target = os.path.abspath(os.fspath(path))
    folder = os.path.dirname(target)
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    temporary: str | None = None
    descriptor = _open_unnamed(folder)
    if descriptor is None:
        descriptor, temporary = tempfile.mkstemp(prefix=".robustcore-", dir=folder)
        _give_usual_mode(descriptor)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
            if temporary is None:
                temporary = _give_name(descriptor, folder)
        os.replace(temporary, target)
        temporary = None
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    _sync_folder(folder)


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
        with contextlib.suppress(FileExistsError):
            # A folder descriptor makes Python call linkat, which follows the link in /proc.
            os.link(
                f"/proc/self/fd/{descriptor}", name, src_dir_fd=descriptor, follow_symlinks=True
            )
            return name
    raise FileExistsError(f"no free temporary name in {folder}")


def _give_usual_mode(descriptor: int) -> None:
    mask = os.umask(0)
    os.umask(mask)
    with contextlib.suppress(AttributeError, OSError):
        os.fchmod(descriptor, 0o666 & ~mask)


def _sync_folder(folder: str) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
