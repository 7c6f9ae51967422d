"""From the makers of a benchmark to calls that can be timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .registry import Benchmark, Case, Contestant, Inputs, Unavailable

__all__ = ["bind", "compiled", "first_line", "make_contestants", "try_out"]


def make_contestants(
    benchmark: Benchmark, case: Case
) -> tuple[list[Contestant], list[dict[str, str]]]:
    """The contestants that can run, and the others with the reason."""
    available, skipped = [], []
    for make in benchmark.contestants(case):
        try:
            available.append(make())
        except Unavailable as reason:
            skipped.append({"name": reason.args[0], "reason": reason.args[1]})
    return available, skipped


def compiled(function: Callable[..., Any], name: str = "torch.compile") -> Contestant:
    """``torch.compile`` of a reference with its default options, specialised to the shapes."""
    return Contestant(name, "compiled", torch.compile(function))


def bind(contestant: Contestant, case: Case, input_sets: Sequence[Inputs]) -> Callable[[int], Any]:
    """``call(k)``: one forward pass, or forward and backward pass, on input set k (cyclic).

    Gradients come from ``torch.autograd.grad``: accumulation into ``.grad`` is not the operator's.
    """
    prepared = list(input_sets)
    if contestant.prepare is not None:
        prepared = [contestant.prepare(inputs) for inputs in prepared]
    function, count = contestant.function, len(prepared)

    def forward(k: int) -> Any:
        return function(*prepared[k % count].arguments)

    def forward_and_backward(k: int) -> Any:
        inputs = prepared[k % count]
        output = function(*inputs.arguments)
        return output, torch.autograd.grad(output, inputs.leaves, inputs.grad_output)

    if contestant.kind == "probe":
        return function
    return forward_and_backward if case.with_backward else torch.no_grad()(forward)


def try_out(
    contestants: Sequence[Contestant], case: Case, input_sets: Sequence[Inputs]
) -> tuple[list[tuple[Contestant, Callable[[int], Any]]], list[dict[str, str]]]:
    """Calls everyone once. Who fails is left out with the reason, but not the operator."""
    running, skipped = [], []
    for contestant in contestants:
        try:
            call = bind(contestant, case, input_sets)
            call(0)
        except Exception as error:
            if contestant.kind == "operator":
                raise
            skipped.append({"name": contestant.name, "reason": first_line(error)})
        else:
            running.append((contestant, call))
    return running, skipped


def first_line(error: BaseException) -> str:
    """``Type: first line of the message``, for one cell of a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
