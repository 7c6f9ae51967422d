"""Peak extra memory of one call: what it needs beyond its inputs, outputs included.

On CUDA this is the growth of ``torch.cuda.max_memory_allocated`` over what was allocated before.

On the CPU it is the growth of the process's peak resident memory (VmHWM, reset through
``/proc/self/clear_refs``), in a fresh process in which glibc returns every freed block of 64 KiB
or more to the system at once (``MALLOC_MMAP_THRESHOLD_``), so that no memory of an earlier call is
used again unseen. Before the measured call, a call at a small size starts threads and loads code.
Whole pages count, with huge pages 2 MiB each. Without ``/proc`` nothing is measured.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .contestants import bind, make_contestants
from .registry import Benchmark, Case, select_benchmarks

__all__ = ["MemoryNotMeasured", "child_main", "extra_bytes_cpu", "extra_bytes_cuda"]

_CHILD = (
    "from robustcore.cli.bench import load_benchmarks; load_benchmarks();"
    "from robustcore.benchmarks.memory import child_main; child_main()"
)


class MemoryNotMeasured(Exception):
    """The fresh process failed; the message says why."""


def extra_bytes_cpu(
    benchmark: Benchmark, case: Case, names: list[str], timeout_s: float = 120.0
) -> dict[str, int]:
    """Extra bytes of the contestants ``names``, measured in a fresh process.

    Raises:
        MemoryNotMeasured: If that process fails or takes longer than ``timeout_s``.
    """
    request = {
        "family": benchmark.family,
        "operator": benchmark.operator,
        "size": case.size.label,
        "passes": case.passes,
        "names": names,
        "threads": torch.get_num_threads(),
    }
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, json.dumps(request)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise MemoryNotMeasured(f"not finished after {timeout_s:.0f} s") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise MemoryNotMeasured(last[:200]) from error


def extra_bytes_cuda(call: Callable[[int], Any]) -> int:
    """Extra bytes of one call on the current CUDA device."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def child_main() -> None:
    """The fresh process: prints ``{contestant: bytes}`` as its last line."""
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    (benchmark,) = select_benchmarks(request["family"], request["operator"])
    size = next(size for size in benchmark.sizes if size.label == request["size"])
    case = Case(size, request["passes"], "cpu")
    warm_case = Case(benchmark.sizes[0], request["passes"], "cpu")
    contestants, _ = make_contestants(benchmark, case)
    inputs, warm_inputs = benchmark.inputs(case, 0), benchmark.inputs(warm_case, 0)
    found: dict[str, int] = {}
    for contestant in contestants:
        if contestant.name not in request["names"]:
            continue
        # Compiled code is made for one size, so only that size can warm it.
        warm = inputs if contestant.kind == "compiled" else warm_inputs
        bind(contestant, case, [warm])(0)
        growth = _peak_growth(bind(contestant, case, [inputs]))
        if growth is not None:
            found[contestant.name] = growth
    print(json.dumps(found))


def _peak_growth(call: Callable[[int], Any]) -> int | None:
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
        call(0)
        return max(0, _status_bytes("VmHWM") - before)
    except OSError:
        return None


def _status_bytes(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(found[1]) * 1024
