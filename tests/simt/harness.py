"""Builds the host executor and runs cases of kernels on tensors (see README.md in this folder)."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parent.parent
BUILD = REPOSITORY / "build" / "simt"

Run = tuple[str, int, int, str]
"""Schedule ("forward", "reverse", "random"), seed, poison byte, placement of the arrays."""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lets one process at a time build, so that parallel test runs share one build."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tool(name: str) -> str | None:
    """Finds a program beside this interpreter (where pip puts cmake and ninja) or on the path."""
    beside = Path(sys.executable).parent / name
    return str(beside) if os.access(beside, os.X_OK) else shutil.which(name)


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def build(folder: Path = BUILD, *options: str) -> Path:
    """Configures and builds tests/simt in `folder`; does nothing where all is up to date."""
    cmake, ninja = _tool("cmake"), _tool("ninja")
    if cmake is None:
        raise RuntimeError("building the host executor needs cmake: pip install cmake ninja")
    with _locked(folder.with_name(folder.name + ".lock")):
        configure = [cmake, "-S", str(FOLDER), "-B", str(folder)]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", *options]
        if ninja is not None:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        cache = folder / "CMakeCache.txt"
        if cache.exists() and f"Python_EXECUTABLE:UNINITIALIZED={sys.executable}\n" not in (
            cache.read_text()
        ):
            shutil.rmtree(folder)  # it belongs to another interpreter
        _call(configure)
        _call([cmake, "--build", str(folder), "--parallel", str(os.cpu_count() or 1)])
    return folder


def load_module(folder: Path = BUILD) -> ModuleType:
    """Imports the built module `_simt`."""
    candidates = sorted(folder.glob("_simt*.so"))
    if len(candidates) != 1:
        raise RuntimeError(f"expected one _simt*.so in {folder}, found {candidates}")
    specification = importlib.util.spec_from_file_location("_simt", candidates[0])
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _memory_of(tensor: torch.Tensor) -> tuple[str, int, int]:
    """The dtype, address and size of the memory from a tensor's first to its last element."""
    if tensor.device.type != "cpu":
        raise ValueError(f"tensors must be on the CPU, got {tensor.device}")
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    bytes_ = 0 if tensor.numel() == 0 else (last + 1) * tensor.element_size()
    return str(tensor.dtype).removeprefix("torch."), tensor.data_ptr(), bytes_


class Executor:
    """Runs the cases registered in tests/simt/<family>/<op>_kernel.cpp.

    Attributes:
        module: the extension module; `module.SimtError` is what a wrong kernel raises.
        executed: names of the kernels that `run` has executed so far.
    """

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.executed: set[str] = set()

    def run(
        self,
        case: str,
        /,
        *,
        seeds: int = 1,
        runs: Sequence[Run] | None = None,
        same_bits_for_all_placements: bool = True,
        **arguments: Any,
    ) -> None:
        """Runs a case under every schedule, placement and poison, and fills its output tensors.

        Each run works on copies of the tensors between guard pages; all runs must give the same
        bits, which are then written to the tensors that the case takes as `output` or `inout`.

        Args:
            case: the name given to `RC_SIMT_CASE`.
            seeds: the number of random schedules beside forward and reverse.
            runs: replaces the standard list of runs.
            same_bits_for_all_placements: False where a kernel documents that the order of its sums
                depends on alignment; then only runs of the same placement are compared.
            **arguments: what the case asks for by name: tensors (on the CPU; strided ones are
                passed as the memory they span), integers, floats, booleans, or None for an
                absent optional tensor.

        Raises:
            SimtError: what the kernel did wrong; the message starts with the kind of error.
            ValueError: a name or dtype that the case does not take.
        """
        passed = {
            name: _memory_of(value) if isinstance(value, torch.Tensor) else value
            for name, value in arguments.items()
        }
        chosen = self.module.standard_runs(seeds) if runs is None else list(runs)
        self.module.forget_executed_kernels()
        try:
            self.module.run_case(case, passed, chosen, same_bits_for_all_placements)
        finally:
            self.executed |= self.module.executed_kernels()
