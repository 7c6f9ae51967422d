"""What losses with numbers per training example share: ranges, recomputation."""

from __future__ import annotations

import torch

from .._checks import check_int64

__all__ = ["example_range", "in_recomputation"]


def in_recomputation() -> bool:
    """Whether this runs inside a backward pass, as activation checkpointing does it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def example_range(
    name: str, num_examples: int, num_classes: int, start: int, stop: int | None
) -> tuple[int, int]:
    """Checks the sizes of a module that keeps numbers per example; its range of examples."""
    for argument, value in (("num_examples", num_examples), ("num_classes", num_classes)):
        check_int64(name, argument, value)
        if value < 1:
            raise ValueError(f"{name}: {argument} must be positive, got {value}")
    check_int64(name, "start", start)
    stop = num_examples if stop is None else stop
    check_int64(name, "stop", stop)
    if not 0 <= start <= stop <= num_examples:
        raise ValueError(
            f"{name}: start and stop must be ascending in [0, {num_examples}], got {start} and "
            f"{stop}"
        )
    return start, stop
