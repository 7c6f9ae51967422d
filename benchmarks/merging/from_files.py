"""Merging files that together are far larger than the memory allowed, against reading them once.

In the repository::

    python -m benchmarks.merging.from_files                      # small: shows that it runs
    python -m benchmarks.merging.from_files --bytes 1500000000 --tasks 8 --max-memory 536870912

Makes a base and ``--tasks`` models of ``--bytes`` bytes each and, with a cold and with a warm page
cache, in turns:

- reads all of them once, one after the other, into a small buffer: the sequential read rate;
- writes a file of the size of the result and forces it onto the disk: the write rate;
- merges them by each method in a process of its own, which tells its memory after imports and at
  its peak.

A merge can be no faster than the slower of its reads and its write, which overlap: that is the
bound it is compared with; the fraction of the read rate alone is given beside it. A cold cache
comes about by ``posix_fadvise`` (``POSIX_FADV_DONTNEED``), which needs no rights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..machine import describe_run
from ..report import write_report
from ..targets import verdict
from .processes import environment, measure

_STEP = 8 << 20

_MERGE = """
import json, re, sys, time
import torch
from pathlib import Path
from robustcore.merging import merge
from robustcore.merging.merge import prepare

def memory(field):
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{field}:\\s+(\\d+) kB$", text, re.MULTILINE)[1]) * 1024

job = json.loads(sys.argv[1])
tiny = torch.zeros(8)
merge(tiny, [tiny] * job["tasks"], method=job["method"], **job["options"])  # loads what is lazy
Path("/proc/self/clear_refs").write_text("5")
imported = memory("VmRSS")
begin = time.perf_counter()
report = merge(job["files"][0], job["files"][1:], method=job["method"], output=job["output"],
               overwrite=True, max_memory=job["max_memory"], **job["options"])
seconds = time.perf_counter() - begin
print(json.dumps({"seconds": seconds, "imported": imported, "peak": memory("VmHWM"),
                  "walks": report.walks}))
"""

METHODS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {},
    "dare": {"density": 0.2},
    "ties": {"density": 0.2},
    "ties per tensor": {"mode": "per_tensor", "density": 0.2},
}


def make_models(folder: Path, tasks: int, size: int) -> list[Path]:
    """Files with the tensors of a transformer: an embedding, and layers of four sizes."""
    from robustcore.merging.checkpoints import StoredTensor
    from robustcore.merging.checkpoints.safetensors_header import encode_header

    width = 1024 if size < 1 << 30 else 4096
    shapes = {"embedding.weight": (max(1, size // (16 * width)), width)}
    layer = 0
    while sum(rows * columns for rows, columns in shapes.values()) * 4 < size:
        shapes |= {
            f"layers.{layer:02}.attention.weight": (width, width),
            f"layers.{layer:02}.mlp.weight": (2 * width, width),
            f"layers.{layer:02}.norm.weight": (1, width),
        }
        layer += 1
    tensors = [StoredTensor(key, shape, torch.float32) for key, shape in sorted(shapes.items())]
    generator = torch.Generator().manual_seed(0)
    # Noise that repeats after a prime number of elements: never the same in two places of a tensor
    # that are compared, and made once.
    base = torch.randn(4_194_301, generator=generator) * 0.02
    files = []
    for model in range(tasks + 1):
        values = base
        if model:
            generator.manual_seed(model)
            values = base + torch.randn(base.shape, generator=generator) * 0.002
        path = folder / f"model-{model}.safetensors"
        with path.open("wb", buffering=0) as file:
            file.write(encode_header(tensors, {"format": "pt"})[0])
            left = sum(tensor.numel for tensor in tensors)
            while left:
                count = min(left, len(values))
                file.write(values[:count].numpy().data)
                left -= count
            os.fsync(file.fileno())
        files.append(path)
    return files


def read_rate(files: Sequence[Path]) -> float:
    """Bytes per second of reading files one after the other."""
    buffer = memoryview(bytearray(_STEP))
    total, begin = 0, time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while count := file.readinto(buffer):
                total += count
    return total / (time.perf_counter() - begin)


def write_rate(path: Path, size: int) -> float:
    """Bytes per second of writing a new file, until it is on the disk."""
    data = torch.ones(_STEP // 4).numpy().data.cast("B")
    begin = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        for start in range(0, size, _STEP):
            file.write(data[: size - start])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - begin
    path.unlink()
    return size / seconds


def drop_from_cache(files: Sequence[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        print("writing models ...", file=sys.stderr, flush=True)
        files = make_models(folder, arguments.tasks, arguments.bytes)
        size = files[0].stat().st_size
        report: dict[str, Any] = {
            **describe_run("cpu"),
            "models": arguments.tasks + 1,
            "bytes_per_model": size,
            "max_memory": arguments.max_memory,
            "rounds": arguments.rounds,
            "load": os.getloadavg(),
            "rows": [],
            "targets": [],
        }
        for cache in ("warm", "cold"):
            if cache == "warm":
                read_rate(files)
            report["rows"] += _rows(cache, files, folder, arguments)
        for row in report["rows"]:
            report["targets"] += _verdicts(row, arguments.max_memory)
        return report
    finally:
        shutil.rmtree(folder)


def _rows(
    cache: str, files: list[Path], folder: Path, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    size = files[0].stat().st_size
    reads, writes = [], []
    told: dict[str, list[dict[str, Any]]] = {method: [] for method in arguments.methods}
    for _ in range(arguments.rounds):
        if cache == "cold":
            drop_from_cache(files)
        reads.append(read_rate(files))
        writes.append(write_rate(folder / "probe", size))
        for method, found in told.items():
            print(f"{cache} cache, {method} ...", file=sys.stderr, flush=True)
            if cache == "cold":
                drop_from_cache(files)
            job = {
                "files": [str(path) for path in files],
                "tasks": len(files) - 1,
                "output": str(folder / "merged.safetensors"),
                "method": method.split()[0],
                "options": METHODS[method],
                "max_memory": arguments.max_memory,
            }
            measured = measure([sys.executable, "-c", _MERGE, json.dumps(job)], env=environment())
            found.append(measured.told)
            (folder / "merged.safetensors").unlink()
    rows = []
    for method, found in told.items():
        seconds = statistics.median(entry["seconds"] for entry in found)
        walks = found[0]["walks"]
        read_s = walks * len(files) * size / statistics.median(reads)
        write_s = size / statistics.median(writes)
        rows.append(
            {
                "cache": cache,
                "method": method,
                "seconds": seconds,
                "walks": walks,
                "read_bytes_per_s": statistics.median(reads),
                "write_bytes_per_s": statistics.median(writes),
                "merge_read_bytes_per_s": walks * len(files) * size / seconds,
                "fraction_of_read": read_s / seconds,
                "fraction_of_bound": max(read_s, write_s) / seconds,
                "rss_after_imports": max(entry["imported"] for entry in found),
                "peak_rss": max(entry["peak"] for entry in found),
            }
        )
    return rows


def _verdicts(row: dict[str, Any], budget: int) -> list[dict[str, Any]]:
    """The memory counts for every method, the rate for the one that does least besides reading."""
    memory = row["peak_rss"] - row["rss_after_imports"]
    what = {"cache": row["cache"], "method": row["method"]}
    found = [
        {
            **what,
            "label": "peak memory at most the budget and the interpreter's own",
            "value": memory,
            "bound": budget,
            "verdict": verdict(memory, budget, at_least=False),
        }
    ]
    fraction = row["fraction_of_bound"]
    label = "80 % of the rate of reading once, or of writing where that takes longer"
    reached = {"label": label, "value": fraction, "bound": 0.8}
    found.append({**what, **reached, "verdict": verdict(fraction, 0.8, at_least=True)})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merging.from_files")
    parser.add_argument("--bytes", type=int, default=64 << 20, help="of one model")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--max-memory", type=int, default=64 << 20, help="bytes")
    parser.add_argument("--methods", nargs="+", default=["task_arithmetic"], choices=METHODS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; deleted at the end")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    arguments = parser.parse_args()
    report = run(arguments)
    if arguments.json is not None:
        write_report(report, arguments.json)
    print(json.dumps({key: report[key] for key in ("rows", "targets")}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
