"""What a result file says about where it was measured. No host names."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

__all__ = ["cache_bytes", "describe_run", "result_file_name"]


def describe_run(device: str) -> dict[str, Any]:
    """Machine, versions, date, commit and threads."""
    from robustcore._library import core

    facts: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "instruction_set": core.cpu_instruction_set(),
            "last_level_cache_bytes": cache_bytes("cpu"),
            "memory_bytes": _memory_bytes(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "threads": torch.get_num_threads(),
        "versions": {
            "robustcore": core.build_information(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "git": _git(),
        "device": device,
    }
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
        facts["machine"]["gpu"] = gpu.name
        facts["machine"]["gpu_memory_bytes"] = gpu.total_memory
        facts["machine"]["compute_capability"] = f"{gpu.major}.{gpu.minor}"
        facts["versions"]["cuda"] = torch.version.cuda
    return facts


def result_file_name(facts: dict[str, Any]) -> str:
    """``<gpu>.json`` or ``<cpu>-<n>-cores.json``, in letters, digits and dashes."""
    machine = facts["machine"]
    if "gpu" in machine:
        name = machine["gpu"]
    else:
        name = f"{machine['cpu']} {machine['cores']} cores"
    name = re.sub(r"\((r|tm)\)", "", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-") + ".json"


@functools.cache
def cache_bytes(device: str) -> int:
    """Size of the device's largest cache; 32 MiB where the system does not tell."""
    if device == "cuda":
        return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        if match := re.fullmatch(r"(\d+)([KM]?)\s*", path.read_text()):
            sizes.append(int(match[1]) << {"": 0, "K": 10, "M": 20}[match[2]])
    return max(sizes) or (32 << 20)


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else (platform.processor() or platform.machine())


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _git() -> dict[str, Any]:
    """The commit of the checkout these benchmarks lie in; None outside of one.

    A copy without .git can be told through the environment variable ROBUSTCORE_COMMIT.
    """
    if told := os.environ.get("ROBUSTCORE_COMMIT"):
        return {"commit": told, "uncommitted_changes": None}
    folder = Path(__file__).resolve().parent

    def ask(*arguments: str) -> str | None:
        command = ["git", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    # An installed copy may lie inside somebody else's repository.
    if ask("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is None:
        return {"commit": None, "uncommitted_changes": None}
    # Results of earlier runs do not change what is measured.
    paths = ("--", ":/", ":(top,exclude)benchmarks/results")
    changes = ask("status", "--porcelain", "--untracked-files=no", *paths)
    return {"commit": ask("rev-parse", "HEAD"), "uncommitted_changes": bool(changes)}
