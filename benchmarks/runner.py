"""Runs benchmarks and assembles the report; printing is for tables.py, drawing for plots.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .bandwidth import copy_call, probe_source, read_call
from .contestants import make_contestants, try_out
from .machine import cache_bytes, describe_run
from .memory import MemoryNotMeasured, extra_bytes_cpu, extra_bytes_cuda
from .registry import Benchmark, Case, Contestant, Inputs
from .report import accuracy_row, assemble_row
from .targets import evaluate_targets
from .timing import Clock, TimingPlan, summarize, take_turns

__all__ = ["FORMAT", "Settings", "run_benchmarks"]

FORMAT = 1
_MOST_INPUT_SETS = 8


def _silent(_: str, __: int, ___: int) -> None:
    return None


@dataclass(frozen=True)
class Settings:
    """How to run.

    Args:
        device: ``cpu`` or ``cuda``.
        quick: Small sizes, short timings, no compiled baseline, no memory: shows that it runs.
        progress: Called with what is being measured, the number of steps done and in all.
    """

    device: str = "cpu"
    quick: bool = False
    progress: Callable[[str, int, int], None] = field(default=_silent)

    @property
    def plan(self) -> TimingPlan:
        if self.quick:
            return TimingPlan(0.15, 0.002, least_samples=1, most_samples=10)
        return TimingPlan()


def run_benchmarks(benchmarks: Sequence[Benchmark], settings: Settings) -> dict[str, Any]:
    """Measures everything; returns the report that is written as JSON."""
    report: dict[str, Any] = {
        "format": FORMAT,
        **describe_run(settings.device),
        "quick": settings.quick,
        "method": {
            "times": "median and quartiles over samples taken in turns; see benchmarks/timing.py",
            "fraction_of_copy": "least bytes / median, over the bandwidth of a copy into a fresh "
            "buffer, measured in the same turns; see benchmarks/bandwidth.py",
            "fraction_of_read": "the same for the bytes read alone, over the bandwidth of a sum",
            "speedups": "median of the contestant / median of the operator",
            "extra_bytes": "peak memory beyond the inputs, outputs included; see "
            "benchmarks/memory.py",
            "gradient_bytes": "bytes of the gradients that a forward and backward pass returns, "
            "part of extra_bytes",
            "accuracy": "error against float64 by norm; the ratio counts an eager error below "
            "2^-24, half a unit in the last place of float32, as 2^-24",
        },
        "rows": [],
        "accuracy": [],
        "targets": [],
    }
    work = [(benchmark, case) for benchmark in benchmarks for case in _cases(benchmark, settings)]
    steps = len(work) + len(benchmarks)
    done = 0
    for benchmark, case in work:
        settings.progress(f"{benchmark.name} {case.size.label} {case.passes}", done, steps)
        report["rows"].append(measure_row(benchmark, case, settings))
        done += 1
    for benchmark in benchmarks:
        settings.progress(f"{benchmark.name} accuracy", done, steps)
        for accuracy in benchmark.accuracy(settings.device, settings.quick):
            report["accuracy"].append(accuracy_row(benchmark.name, accuracy))
        report["targets"] += evaluate_targets(
            benchmark.name, benchmark.targets, report["rows"], report["accuracy"], settings.device
        )
        done += 1
    settings.progress("done", steps, steps)
    return report


def _cases(benchmark: Benchmark, settings: Settings) -> list[Case]:
    return [
        Case(size, passes, settings.device)
        for size in benchmark.sizes
        if settings.device in size.devices and (size.quick or not settings.quick)
        for passes in benchmark.passes
    ]


def measure_row(benchmark: Benchmark, case: Case, settings: Settings) -> dict[str, Any]:
    """Times the contestants of one case and measures their memory."""
    # Without this, torch.compile would reuse, or generalise, what it made for the last size.
    torch.compiler.reset()
    contestants, skipped = make_contestants(benchmark, case)
    if settings.quick:
        skipped += [
            {"name": each.name, "reason": "not part of --quick"}
            for each in contestants
            if each.kind == "compiled"
        ]
        contestants = [each for each in contestants if each.kind != "compiled"]
    input_sets = _input_sets(benchmark, case)
    running, failed = try_out(contestants, case, input_sets)
    probes = _probes(case)
    calls = [call for _, call in running] + [probe.function for probe in probes]
    for probe in probes:
        probe.function()
    samples = take_turns(calls, settings.plan, Clock(case.device))
    results = [
        {
            "name": contestant.name,
            "kind": contestant.kind,
            "note": contestant.note,
            "samples": len(measured.samples),
            "calls_per_sample": measured.calls_per_sample,
            **summarize(measured.samples),
        }
        for contestant, measured in zip([each for each, _ in running] + probes, samples)
    ]
    input_bytes = tensor_bytes(input_sets[0])
    row = assemble_row(benchmark, case, results, skipped + failed)
    row["input_sets"] = len(input_sets)
    row["gradient_bytes"] = sum(leaf.nbytes for leaf in input_sets[0].leaves)
    row["counts"] = dict(benchmark.counts(case))
    row["cache_resident"] = input_bytes * len(input_sets) < 2 * cache_bytes(case.device)
    if settings.quick:
        return row
    if case.device == "cuda":
        row["extra_bytes"] = {each.name: extra_bytes_cuda(call) for each, call in running}
    elif case.size.scale != "small":
        del input_sets, calls, running
        kinds = ("operator", "eager", "peer")
        names = [each["name"] for each in results if each["kind"] in kinds]
        try:
            row["extra_bytes"] = extra_bytes_cpu(benchmark, case, names)
        except MemoryNotMeasured as reason:  # the times of minutes are not thrown away for that
            row["skipped"].append({"name": "extra memory", "reason": str(reason)})
    return row


def tensor_bytes(inputs: Inputs) -> int:
    """Bytes of all tensors of an input set."""
    from robustcore.testing import named_tensors

    tensors = named_tensors((inputs.arguments, inputs.grad_output))
    return sum(tensor.nbytes for tensor in tensors.values())


def _input_sets(benchmark: Benchmark, case: Case) -> list[Inputs]:
    """So many that together they are three times the largest cache."""
    first = benchmark.inputs(case, 0)
    wanted = math.ceil(3 * cache_bytes(case.device) / max(1, tensor_bytes(first)))
    count = min(_MOST_INPUT_SETS, wanted)
    return [first, *(benchmark.inputs(case, seed) for seed in range(1, count))]


def _probes(case: Case) -> list[Contestant]:
    """Bandwidths; they say nothing about small sizes."""
    if case.size.scale == "small":
        return []
    source = probe_source(case.device)
    return [
        Contestant("copy", "probe", copy_call(source), note=str(2 * source.nbytes)),
        Contestant("read", "probe", read_call(source), note=str(source.nbytes)),
    ]
