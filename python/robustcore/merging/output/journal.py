"""What a merge has done so far, so that one that was killed goes on where it was.

A journal is a file of JSON lines that only grows:

- the first names the format and the job (``identity``);
- ``fact``: a result that later parts need, by name;
- ``done``: the number of a finished part;
- ``synced``: that many lines are about data that are on the disk and not only in the page cache;
- ``boot``: the job went on after a restart of the machine, with all lines before it;
- ``finishing``: everything is done, files may have their final names.

A kill loses nothing but the line that was being written. A machine that stops loses what it had not
written to its disk, so that afterwards only lines count that a ``synced`` covers.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from typing import Any, NoReturn

__all__ = ["Journal", "differences"]

_FORMAT = "robustcore.merge_journal"
_VERSION = 1
_MAXIMUM_LISTED = 20


class Journal:
    """The journal at ``path``, made if it is not there, and held against other processes.

    Attributes:
        identity: The job of an earlier run, None where there was none.

    Raises:
        BlockingIOError: Another merge holds it.
        ValueError: The file is not a journal.
        OSError: It cannot be read or made.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._guard = threading.Lock()
        self._descriptor = -1
        self._descriptor = _open_locked(path)
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        lines = _complete_lines(_read_all(self._descriptor))
        self.identity: dict[str, Any] | None = None
        self._clear()
        if not lines:
            if os.fstat(self._descriptor).st_size > 0 and not self._starts_like_one():
                self._refuse("something else")
            return
        first = lines[0][0]
        if first.get("format") != _FORMAT:
            self._refuse(f"format {first.get('format')!r}")
        if first.get("version") != _VERSION or not isinstance(first.get("identity"), dict):
            self._refuse(f"version {first.get('version')!r}")
        self.identity = first["identity"]
        boot = first.get("boot")
        covered = 1
        for number, (line, _) in enumerate(lines):
            if "boot" in line:
                boot, covered = line["boot"], number + 1
            covered = max(covered, line.get("synced", 0))
        self._boot_is_other = boot is None or boot != _boot_id()
        kept = lines[:covered] if self._boot_is_other else lines
        for line, _ in kept:
            if "done" in line:
                self._done.add(line["done"])
            elif "fact" in line:
                self._facts[line["fact"]] = line["value"]
            elif "finishing" in line:
                self.finishing = True
        self._kept_lines, self._kept_bytes = len(kept), kept[-1][1]

    def _clear(self) -> None:
        self._done: set[int] = set()
        self._facts: dict[str, Any] = {}
        self._lines = 0
        self._kept_lines = self._kept_bytes = 0
        self._boot_is_other = False
        self.finishing = False

    def _starts_like_one(self) -> bool:
        """A first line that was cut off."""
        head = f'{{"format": "{_FORMAT}"'.encode()
        found = os.pread(self._descriptor, len(head), 0)
        return head.startswith(found)

    def _refuse(self, got: str) -> NoReturn:
        raise ValueError(
            f"{self.path}: must be a journal of robustcore ({_FORMAT}, version {_VERSION}), got "
            f"{got}; move it away"
        )

    def start(self, identity: dict[str, Any]) -> None:
        """Forgets what was there and begins the journal of a job."""
        with self._guard:
            self._clear()
            self.identity = identity
            os.ftruncate(self._descriptor, 0)
            self._append(
                {
                    "format": _FORMAT,
                    "version": _VERSION,
                    "boot": _boot_id(),
                    "identity": identity,
                }
            )

    def resume(self) -> None:
        """Goes on with the job that is there; what does not count is cut off."""
        with self._guard:
            os.ftruncate(self._descriptor, self._kept_bytes)
            self._lines = self._kept_lines
            if self._boot_is_other:
                self._append({"boot": _boot_id()})
                os.fsync(self._descriptor)

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the finished parts."""
        with self._guard:
            return frozenset(self._done)

    def is_done(self, part: int) -> bool:
        with self._guard:
            return part in self._done

    def mark_done(self, part: int) -> None:
        with self._guard:
            if part not in self._done:
                self._append({"done": part})
                self._done.add(part)

    def remember(self, name: str, value: Any) -> None:
        """Stores a fact: anything that JSON holds. A later value of the same name replaces it."""
        with self._guard:
            self._append({"fact": name, "value": value})
            # As it will be read: a tuple, for one, comes back as a list.
            self._facts[name] = json.loads(json.dumps(value))

    def recall(self, name: str, default: Any = None) -> Any:
        """The fact of that name."""
        with self._guard:
            return self._facts.get(name, default)

    def lines(self) -> int:
        """How many lines there are: give it to :meth:`mark_synced` after the data are on disk."""
        with self._guard:
            return self._lines

    def mark_synced(self, lines: int) -> None:
        """The data that the first ``lines`` lines are about are on the disk."""
        with self._guard:
            self._append({"synced": lines})
            os.fsync(self._descriptor)

    def mark_finishing(self) -> None:
        """All data are on the disk and complete."""
        with self._guard:
            if not self.finishing:
                self._append({"finishing": True})
                self._append({"synced": self._lines})
                os.fsync(self._descriptor)
                self.finishing = True

    def _append(self, line: dict[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        while data:
            data = data[os.write(self._descriptor, data) :]
        self._lines += 1

    def remove(self) -> None:
        """Deletes the file and lets it go."""
        if self._descriptor >= 0:
            os.unlink(self.path)
            self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)  # with it goes the lock
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


def _open_locked(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_NOFOLLOW", 0)
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            _lock(descriptor, path)
            # Its holder may have deleted it between our opening and our locking it.
            try:
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
            except FileNotFoundError:
                pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: str) -> None:
    try:
        import fcntl
    except ImportError:  # not every system has it
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return  # nor every file system
        raise BlockingIOError(
            error.errno, "another merge is writing to this output and holds its journal", path
        ) from None


def _read_all(descriptor: int) -> bytes:
    parts, offset = [], 0
    while part := os.pread(descriptor, 1 << 24, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _complete_lines(data: bytes) -> list[tuple[dict[str, Any], int]]:
    """The lines up to the first that is torn or damaged, and where in the file each ends."""
    lines: list[tuple[dict[str, Any], int]] = []
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        try:
            line = json.loads(data[start:end])
        except ValueError:
            break
        if not isinstance(line, dict):
            break
        start = end + 1
        lines.append((line, start))
    return lines


def _boot_id() -> str | None:
    """Changes with every start of the machine; None where the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None


def differences(before: Any, now: Any, place: str = "") -> list[str]:
    """Where two JSON values differ, one line each."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted(before.keys() | now.keys()):
            inner = f"{place}.{key}" if place else str(key)
            if key not in before:
                found.append(f"{inner} is new: {_shown(now[key])}")
            elif key not in now:
                found.append(f"{inner} is gone, it was {_shown(before[key])}")
            else:
                found += differences(before[key], now[key], inner)
        return found[:_MAXIMUM_LISTED]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [
            line
            for index, (old, new) in enumerate(zip(before, now, strict=True))
            for line in differences(old, new, f"{place}[{index}]")
        ][:_MAXIMUM_LISTED]
    if before == now and type(before) is type(now):
        return []
    return [f"{place or 'it'} was {_shown(before)}, is {_shown(now)}"]


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:120] + "..."
