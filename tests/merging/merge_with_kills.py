"""Run by test_kill_and_resume.py: merges that are killed at random moments and taken up again.

``python merge_with_kills.py FOLDER METHOD OPTIONS_AS_JSON KILLS`` prints, as JSON, how often the
merge was killed, in how many of these cases a part was done already, and how many outputs were
completed and had the bytes of the merge that nobody killed.

The interpreter takes seconds to start, so this process imports everything and then forks; it
computes nothing itself, so there are no threads that would be missing in the children.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustcore.merging.merge import merge

_MAX_MEMORY = 32 << 20


def main() -> None:
    folder, method, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[4])
    options: dict[str, Any] = json.loads(sys.argv[3])
    models = sorted(str(path) for path in folder.glob("model-*.safetensors"))
    output = folder / "merged.safetensors"

    def run(progress: Callable[[str, int, int], None]) -> None:
        merge(
            models[0],
            models[1:],
            method=method,
            output=output,
            max_memory=_MAX_MEMORY,
            progress=progress,
            **options,
        )

    events, seconds, _ = _child(run)
    expected = _digest(output)
    output.unlink()
    chance = random.Random(method)
    found = {"kills": 0, "resumed": 0, "completed": 0, "identical": 0}
    while found["kills"] < kills or _unfinished(output):
        # What is left of an earlier attempt is less than all: so are the events that come.
        at = chance.randrange(events) if found["kills"] < kills else events + 1
        delay = chance.uniform(0, 2 * seconds / events)
        _, _, killed = _child(run, at, delay)
        if killed:
            found["kills"] += 1
            found["resumed"] += _done_parts(output) > 0
            continue
        found["completed"] += 1
        found["identical"] += _digest(output) == expected
        output.unlink()
    print(json.dumps(found))


def _child(
    run: Callable[[Callable[[str, int, int], None]], None], at: int = 1 << 60, delay: float = 0.0
) -> tuple[int, float, bool]:
    """Runs a merge in a child and kills it ``delay`` seconds after it told of ``at`` steps.

    Moments count in steps of the merge, so that a busy machine does not move them all to its start.
    """
    reading, writing = os.pipe()
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            run(lambda *_: os.write(writing, b".") and None)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writing)
    steps, ended = 0, False
    while not ended and steps < at:
        told = os.read(reading, at - steps if at - steps < 64 else 64)
        steps += len(told)
        ended = not told
    if not ended:
        # Earlier than that only if the child ends by itself.
        select.select([], [], [], delay)
        os.kill(child, signal.SIGKILL)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    if not killed and os.WEXITSTATUS(status):
        raise SystemExit(f"the merge failed with status {os.WEXITSTATUS(status)}")
    return steps, time.monotonic() - begin, killed


def _unfinished(output: Path) -> bool:
    return Path(f"{output}.journal").exists()


def _done_parts(output: Path) -> int:
    journal = Path(f"{output}.journal")
    return journal.read_bytes().count(b'"done"') if journal.exists() else 0


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
