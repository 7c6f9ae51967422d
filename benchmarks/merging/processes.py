"""Programs that run in processes of their own: how long they take and how much memory they hold."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Measured", "ProgramFailed", "environment", "measure"]

_STEP_SECONDS = 0.01


class ProgramFailed(Exception):
    """A program ended with an error; the message is the end of what it said."""


@dataclass(frozen=True)
class Measured:
    """A program that ended.

    Attributes:
        seconds: From its start to its end.
        cpu_seconds: Of all its threads: what a busy machine changes least.
        peak_rss: Resident bytes of it and all its descendants together at the worst moment; parts
            of files that are mapped into memory count.
        peak_anonymous: The same without what belongs to files.
        told: What it printed as its last line, in JSON.
    """

    seconds: float
    cpu_seconds: float
    peak_rss: int
    peak_anonymous: int
    told: Any


def environment() -> dict[str, str]:
    """For a Python program that imports what this process imports."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def measure(command: Sequence[str], *, env: dict[str, str] | None = None) -> Measured:
    """Runs a program to its end.

    Memory is looked at every 10 ms through ``/proc``; for single processes the kernel's own account
    of the peak counts, which misses nothing.

    Raises:
        ProgramFailed: If it ends with an error.
    """
    begin, cpu = time.perf_counter(), _cpu_seconds()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        watch = _Watch(process.pid)
        watch.start()
        out, errors = process.communicate()
        seconds = time.perf_counter() - begin
        watch.end()
    if process.returncode:
        raise ProgramFailed("\n".join(errors.strip().splitlines()[-12:]) or "no message")
    lines = out.strip().splitlines()
    told = json.loads(lines[-1]) if lines else None
    return Measured(seconds, _cpu_seconds() - cpu, watch.rss, watch.anonymous, told)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class _Watch(threading.Thread):
    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._ended = threading.Event()
        self.rss = self.anonymous = 0

    def run(self) -> None:
        while not self._ended.wait(_STEP_SECONDS):
            with contextlib.suppress(OSError):  # it ends at this moment
                self._look()

    def _look(self) -> None:
        found = [_memory(pid) for pid in _family(self._pid)]
        together = sum(entry["VmRSS"] for entry in found)
        alone = max(entry["VmHWM"] for entry in found)
        self.rss = max(self.rss, together, alone)
        self.anonymous = max(self.anonymous, sum(entry["RssAnon"] for entry in found))

    def end(self) -> None:
        self._ended.set()
        self.join()


def _family(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found


def _memory(pid: int) -> dict[str, int]:
    text = Path(f"/proc/{pid}/status").read_text()
    fields = dict.fromkeys(("VmRSS", "VmHWM", "RssAnon"), 0)  # a zombie has none
    for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE):
        if name in fields:
            fields[name] = int(value) * 1024
    return fields
