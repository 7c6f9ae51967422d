"""A file of the output while it is not complete."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from .._atomic_file import give_mode
from .plan import PlannedFile

__all__ = ["PartialFile"]

# What a file system that cannot reserve space says.
_CANNOT_RESERVE = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})


class PartialFile:
    """Space for one file, reserved under its temporary name.

    Attributes:
        placed: It has its final name already: an earlier run was killed while it finished.
    """

    def __init__(self, plan: PlannedFile) -> None:
        self.plan = plan
        self.placed = False
        self._descriptor = -1

    def create(self) -> None:
        """Makes the file in its full size, so that a full disk is found now."""
        self._descriptor = self._open(self.plan.partial, os.O_CREAT | os.O_TRUNC)
        try:
            self._reserve()
            self.write(0, memoryview(self.plan.header))
        except BaseException:
            self.delete()
            raise

    def _reserve(self) -> None:
        size, folder = self.plan.size, os.path.dirname(self.plan.path)
        try:
            if hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(self._descriptor, 0, size)
                    return
                except OSError as error:
                    if error.errno not in _CANNOT_RESERVE:
                        raise
            if size > (free := _free(folder)):
                raise OSError(errno.ENOSPC, f"{free} bytes are free")
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise OSError(
                error.errno,
                f"the output needs {size} bytes in {folder}, where {_free(folder)} are free: "
                f"{os.strerror(error.errno or 0)}",
                self.plan.partial,
            ) from None

    def reopen(self) -> bool:
        """Takes what an earlier run left; False where it is not there or not as planned."""
        for path, placed in ((self.plan.partial, False), (self.plan.path, True)):
            try:
                self._descriptor = self._open(path, 0)
            except OSError:
                continue
            head = os.pread(self._descriptor, len(self.plan.header), 0)
            if head == self.plan.header and os.fstat(self._descriptor).st_size == self.plan.size:
                self.placed = placed
                return True
            self.close()
        return False

    def _open(self, path: str, flags: int) -> int:
        flags |= os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        return os.open(path, flags, 0o666)

    def write(self, offset: int, data: memoryview) -> None:
        """Writes at a place, from any thread."""
        if self.placed:
            raise ValueError(f"{self.plan.path}: is complete, got more to write")
        try:
            while data:
                count = os.pwrite(self._descriptor, data, offset)
                data, offset = data[count:], offset + count
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.plan.partial) from None

    def sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.plan.partial) from None

    def place(self) -> None:
        """Gives the file its final name; one that was there goes, its permissions stay."""
        if self.placed:
            return
        with contextlib.suppress(FileNotFoundError):
            give_mode(self._descriptor, stat.S_IMODE(os.stat(self.plan.path).st_mode))
        os.replace(self.plan.partial, self.plan.path)
        self.placed = True

    def delete(self) -> None:
        self.close()
        if not self.placed:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.plan.partial)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


def _free(folder: str) -> int:
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize
