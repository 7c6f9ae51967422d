"""``robustcore info``: versions, what was compiled, devices, and which kernels would run."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from .output import console, print_json

__all__ = ["collect", "info"]


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show versions, build options, devices and which kernels would run on them."""
    facts = collect()
    if as_json:
        print_json(facts)
    else:
        _print_tables(facts)


def collect() -> dict[str, Any]:
    """Everything that ``robustcore info`` shows."""
    import torch

    from .._library import core

    build = dict(core.build_information())
    operators = sorted(
        name.removeprefix("robustcore::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("robustcore::")
    )
    return {
        "versions": {
            "robustcore": build["version"],
            "torch": torch.__version__,
            "torch_cuda": torch.version.cuda,
            "python": platform.python_version(),
        },
        "build": build,
        "devices": [_cpu(), *_cuda_devices(build)],
        "operators": {name: _kernels(name, build) for name in operators},
    }


def _cpu() -> dict[str, Any]:
    import torch

    from .._library import core

    return {
        "device": "cpu",
        "name": platform.machine(),
        "instruction_set": core.cpu_instruction_set(),
        "threads": torch.get_num_threads(),
        "kernels": f"CPU kernels for {core.cpu_instruction_set()}",
    }


def _cuda_devices(build: Mapping[str, Any]) -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        devices.append(
            {
                "device": f"cuda:{index}",
                "name": properties.name,
                "compute_capability": f"{capability[0]}.{capability[1]}",
                "memory_bytes": properties.total_memory,
                "kernels": cuda_kernels_for(capability, build),
            }
        )
    return devices


def cuda_kernels_for(capability: tuple[int, int], build: Mapping[str, Any]) -> str:
    """Which of the compiled kernels a device of this compute capability runs.

    Architectures are in CMake's notation: ``90-real`` is machine code, ``90-virtual`` is PTX,
    ``90`` is both. Machine code serves later minor versions of its major version, PTX everything
    later.
    """
    if not build["cuda"]:
        return "none: this build has no CUDA kernels, so the references run there"
    wanted = capability[0] * 10 + capability[1]
    machine_code, ptx = [], []
    for number, kind in re.findall(r"(\d+)[a-z]?(-real|-virtual)?", build["cuda_architectures"]):
        if kind != "-virtual":
            machine_code.append(int(number))
        if kind != "-real":
            ptx.append(int(number))
    fitting = [n for n in machine_code if n // 10 == wanted // 10 and n <= wanted]
    if fitting:
        return f"CUDA kernels for sm_{max(fitting)}"
    older = [n for n in ptx if n <= wanted]
    if older:
        return f"CUDA kernels from PTX of compute_{max(older)}, compiled at first use"
    return f"none: compiled for {build['cuda_architectures']}, so its operators fail there"


def _kernels(operator: str, build: Mapping[str, Any]) -> list[str]:
    import torch

    has = torch._C._dispatch_has_kernel_for_dispatch_key
    # Operators that Python puts together are registered for CUDA in every build, but call kernels
    # that only a CUDA build has.
    keys = ("CPU", "CUDA") if build["cuda"] else ("CPU",)
    return [key.lower() for key in keys if has(f"robustcore::{operator}", key)]


def _print_tables(facts: Mapping[str, Any]) -> None:
    from rich.table import Table

    versions, build = facts["versions"], facts["build"]
    cuda = f"yes, for {build['cuda_architectures']}" if build["cuda"] else "no"
    general = Table(show_header=False, title="robustcore", title_justify="left")
    for name, value in (
        ("robustcore", versions["robustcore"]),
        ("torch", f"{versions['torch']} (compiled against {build['compiled_with_torch']})"),
        ("python", versions["python"]),
        ("compiler", build["compiler"]),
        ("CUDA kernels compiled", cuda),
        ("CUDA of torch", versions["torch_cuda"] or "none"),
    ):
        general.add_row(name, value)

    devices = Table(title="devices", title_justify="left")
    for heading in ("device", "name", "kernels that would run"):
        devices.add_column(heading, overflow="fold")
    for device in facts["devices"]:
        threads = f", {device['threads']} threads" if "threads" in device else ""
        devices.add_row(device["device"], device["name"], device["kernels"] + threads)

    operators = Table(title="operators of torch.ops.robustcore", title_justify="left")
    operators.add_column("operator")
    operators.add_column("kernels")
    for name, kernels in facts["operators"].items():
        operators.add_row(name, ", ".join(kernels) or "none")
    output = console()
    for table in (general, devices, operators):
        output.print(table)
