"""How a time comes about.

Contestants take turns (A B C A B C ...), so that a busy machine hurts all alike; slow ones skip
turns, evenly spread. A turn is a block of calls that lasts a few milliseconds; its time divided by
the number of calls is one sample. Each call takes the next of several input sets: at sizes beyond
the last-level cache none is found in it again, and smaller ones are reported as cache-resident.
Median and quartiles of the samples are reported. Outputs are dropped inside the timed block, as in
a training loop. On CUDA a block lies between two events; the host waits once, at the very end.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Clock", "Measurement", "TimingPlan", "summarize", "take_turns"]


# A call that takes so many times the time meant for all samples is measured once.
_VERY_SLOW = 8


@dataclass(frozen=True)
class TimingPlan:
    """How long to measure.

    Args:
        seconds: Time for each contestant of a row, about.
        block_seconds: Least length of a block.
        least_samples: Taken even if they last longer.
        most_samples: Never more than these.
    """

    seconds: float = 1.0
    block_seconds: float = 0.004
    least_samples: int = 3
    most_samples: int = 50


@dataclass
class Measurement:
    """The samples of one contestant, in seconds per call."""

    calls_per_sample: int = 1
    samples: list[float] = field(default_factory=list)


def summarize(samples: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes.

    >>> summarize([3.0, 1.0, 2.0])["median_s"]
    2.0
    """
    if len(samples) > 1:
        first, median, third = statistics.quantiles(samples, n=4, method="inclusive")
    else:
        first = median = third = samples[0]
    return {
        "median_s": median,
        "first_quartile_s": first,
        "third_quartile_s": third,
        "least_s": min(samples),
        "most_s": max(samples),
    }


class Clock:
    """Times blocks on one kind of device; seconds are read once all blocks are done."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"

    def block(self, call: Callable[[], Any], calls: int) -> Callable[[], float]:
        """Runs a block; returns what gives its seconds per call after :meth:`wait`."""
        if self._cuda:
            start = torch.cuda.Event(enable_timing=True)
            stop = torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(calls):
                call()
            stop.record()
            return lambda: start.elapsed_time(stop) / 1000 / calls
        begin = time.perf_counter_ns()
        for _ in range(calls):
            call()
        seconds = (time.perf_counter_ns() - begin) / 1e9 / calls
        return lambda: seconds

    def wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


def take_turns(
    calls: Sequence[Callable[[int], Any]], plan: TimingPlan, clock: Clock
) -> list[Measurement]:
    """Measures every contestant; ``calls[i](k)`` is one call of contestant i on input set k.

    What only a first call does (compiling, starting threads) must have happened before.
    """
    # One counter for all: an input set comes round again only after all the others were used.
    turn = 0

    def next_call(i: int) -> None:
        nonlocal turn
        turn += 1
        calls[i](turn)

    measurements, turns = [], []
    for i in range(len(calls)):
        once = _seconds_of_one(lambda i=i: next_call(i), plan.block_seconds, clock)
        block = max(1, math.ceil(plan.block_seconds / once))
        affordable = int(plan.seconds / (once * block))
        wanted = max(plan.least_samples, min(plan.most_samples, affordable))
        if once > _VERY_SLOW * plan.seconds:
            wanted = 1
        # Where a call takes seconds, the one that told so counts.
        slow = block == 1 and affordable <= 1
        measurements.append(Measurement(block, [once] if slow else []))
        turns.append(wanted - slow)

    rounds = max(turns, default=0)
    pending: list[list[Callable[[], float]]] = [[] for _ in calls]
    gc.collect()
    gc.disable()
    try:
        for r in range(rounds):
            for i, wanted in enumerate(turns):
                if (r + 1) * wanted // rounds > r * wanted // rounds:
                    block = measurements[i].calls_per_sample
                    pending[i].append(clock.block(lambda i=i: next_call(i), block))
        clock.wait()
    finally:
        gc.enable()
    for measurement, seconds in zip(measurements, pending):
        measurement.samples += [read() for read in seconds]
    return measurements


def _seconds_of_one(call: Callable[[], Any], at_least: float, clock: Clock) -> float:
    """A first guess at the time of one call, from as many as last ``at_least`` seconds."""
    clock.wait()
    begin, count = time.perf_counter(), 0
    while True:
        call()
        count += 1
        clock.wait()
        if (elapsed := time.perf_counter() - begin) >= at_least:
            return elapsed / count
