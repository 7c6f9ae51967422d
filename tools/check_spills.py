#!/usr/bin/env python3
"""Compiles the CUDA sources and fails where a kernel spills registers.

Every csrc/**/*_cuda.cu (or the given files) is compiled by nvcc for each architecture with warnings
as errors; the assembler's report of registers, stack and spills becomes a table. No GPU is needed.

Exit status: 0 without spills, 1 with spills or compile errors, 2 where the check cannot run.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# As in the package's build (CMakeLists.txt, cmake/torch.cmake).
FLAGS = (
    *("-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Werror", "all-warnings"),
    *("-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xptxas", "-v", "--resource-usage"),
    *("-DTORCH_TARGET_VERSION=0x020b000000000000", "-DROBUSTCORE_WITH_CUDA"),
)

_ENTRY = re.compile(r"Compiling entry function '([^']+)' for '([^']+)'")
_FUNCTION = re.compile(r"Function properties for (\S+)")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass
class Usage:
    """What one kernel (or a function that it calls) uses on one architecture."""

    file: str
    arch: str
    function: str
    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    is_kernel: bool

    @property
    def spills(self) -> bool:
        return self.spill_store_bytes > 0 or self.spill_load_bytes > 0


def parse_report(text: str, file: str, arch: str) -> list[Usage]:
    """Reads what ptxas printed for one file and architecture.

    A function that was not inlined has properties of its own; registers are told for kernels only.

    Raises:
        ValueError: a kernel was compiled, but its spills or registers were not reported.
    """
    usages: dict[str, Usage] = {}
    kernels: list[str] = []
    function = ""
    for line in text.splitlines():
        if match := _ENTRY.search(line):
            kernels.append(match[1])
            function = match[1]
        elif match := _FUNCTION.search(line):
            function = match[1]
        elif match := _STACK.search(line):
            stack, stores, loads = (int(number) for number in match.groups())
            usages[function] = Usage(file, arch, function, 0, stack, stores, loads, 0, False)
        elif (match := _REGISTERS.search(line)) and kernels:
            usage = usages.get(kernels[-1])
            if usage is not None:
                usage.is_kernel = True
                usage.registers = int(match[1])
                shared = _SHARED.search(line)
                usage.shared_bytes = int(shared[1]) if shared else 0
    for kernel in kernels:
        if kernel not in usages or not usages[kernel].is_kernel:
            raise ValueError(f"{file}, {arch}: the compiler reported no registers for {kernel}")
    return list(usages.values())


def without_parameters(name: str) -> str:
    """`void f<float, (Mode)1>(P<float>)` as `f<float, (Mode)1>`."""
    if name.endswith(")"):
        depth = 0
        for index in range(len(name) - 1, -1, -1):
            depth += {")": 1, "(": -1}.get(name[index], 0)
            if depth == 0:
                return name[:index].removeprefix("void ")
    return name.removeprefix("void ")


def demangle(usages: Sequence[Usage]) -> None:
    """Replaces mangled names by readable ones where c++filt is installed."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None or not usages:
        return
    names = "\n".join(usage.function for usage in usages)
    output = subprocess.run([tool], input=names, capture_output=True, text=True, check=True).stdout
    for usage, name in zip(usages, output.splitlines()):
        usage.function = without_parameters(name)


def torch_include() -> Path:
    """The headers of this interpreter's torch, found without importing it."""
    specification = importlib.util.find_spec("torch")
    if specification is None or specification.origin is None:
        raise FileNotFoundError(f"torch is not installed for {sys.executable}")
    return Path(specification.origin).parent / "include"


def compile_file(nvcc: str, file: Path, arch: str, include: Path) -> list[Usage]:
    """Compiles one file for one architecture.

    Raises:
        subprocess.CalledProcessError: the compiler refused it; `output` has its messages.
    """
    folders = ["-I", str(REPOSITORY / "csrc"), "-isystem", str(include)]
    with tempfile.TemporaryDirectory() as folder:
        target = ["-c", str(file), "-o", str(Path(folder) / "object.o")]
        code = ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
        done = subprocess.run(
            [nvcc, *FLAGS, *code, *folders, *target],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, nvcc, output=done.stdout)
    shown = file.relative_to(REPOSITORY) if file.is_relative_to(REPOSITORY) else file
    return parse_report(done.stdout, str(shown), f"sm_{arch}")


def print_table(usages: Sequence[Usage]) -> None:
    header = ("registers", "stack", "stores", "loads", "shared", "arch")
    print(" ".join(f"{title:>9}" for title in header), " kernel")
    for usage in usages:
        numbers = (
            usage.registers,
            usage.stack_bytes,
            usage.spill_store_bytes,
            usage.spill_load_bytes,
            usage.shared_bytes,
            usage.arch,
        )
        mark = "  <-- spills" if usage.spills else ""
        print(" ".join(f"{number:>9}" for number in numbers), f" {usage.function}{mark}")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="check_spills.py", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("files", nargs="*", type=Path, help="default: csrc/**/*_cuda.cu")
    parser.add_argument(
        "--arch",
        action="append",
        metavar="NUMBER",
        help="compute capability without the point; may be repeated (default: 80 and 90)",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.add_argument("--nvcc", help="the compiler (default: nvcc on the path)")
    options = parser.parse_args(arguments)
    options.arch = [text.removeprefix("sm_") for text in options.arch or ("80", "90")]
    for text in options.arch:
        if not re.fullmatch(r"\d{2,3}[af]?", text):
            parser.error(f"--arch must be like 80 or sm_80, got {text}")
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    nvcc = shutil.which(options.nvcc or "nvcc")
    if nvcc is None:
        print(f"check_spills: {options.nvcc or 'nvcc'} was not found", file=sys.stderr)
        return 2
    files = [file.resolve() for file in options.files]
    files = files or sorted((REPOSITORY / "csrc").rglob("*_cuda.cu"))
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        what = f"no such file: {', '.join(missing)}" if missing else "csrc has no *_cuda.cu"
        print(f"check_spills: {what}", file=sys.stderr)
        return 2
    try:
        include = torch_include()
    except FileNotFoundError as error:
        print(f"check_spills: {error}", file=sys.stderr)
        return 2

    usages: list[Usage] = []
    failures = 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        jobs = {
            pool.submit(compile_file, nvcc, file, arch, include): (file, arch)
            for file in files
            for arch in options.arch
        }
        for job, (file, arch) in jobs.items():
            try:
                usages += job.result()
            except subprocess.CalledProcessError as error:
                failures += 1
                print(f"check_spills: {file} does not compile for sm_{arch}:\n{error.output}")
            except ValueError as error:
                failures += 1
                print(f"check_spills: {error}")
    demangle(usages)
    usages.sort(key=lambda usage: (usage.file, usage.function, usage.arch))
    print_table(usages)
    spilling = [usage for usage in usages if usage.spills]
    kernels = sum(usage.is_kernel for usage in usages)
    print(f"{kernels} kernels of {len(files)} files, {len(spilling)} spill, {failures} failures")
    if options.json is not None:
        report = {"usages": [asdict(usage) for usage in usages], "failures": failures}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if spilling or failures else 0


if __name__ == "__main__":
    sys.exit(main())
