"""What losses with numbers per training example share: ranges, recomputation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_int64

__all__ = ["ExampleRange", "example_range", "in_recomputation"]


class ExampleRange(nn.Module):
    """A module of the examples ``[start, stop)``, which its ``state_dict`` names.

    Numbers of other examples may have the same shape, so loading compares the range: a mismatch is
    reported like one of shapes, and nothing of this module is loaded.
    """

    start: int
    stop: int
    num_examples: int

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.start, self.stop, self.num_examples])

    def set_extra_state(self, state: Any) -> None:
        """Compared before: see ``_load_from_state_dict``."""

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = self.get_extra_state().tolist()
        given = state_dict.get(f"{prefix}_extra_state")
        given = own if given is None else torch.as_tensor(given).tolist()
        if given != own:
            error_msgs.append(
                f"{prefix}state of the examples [{own[0]}, {own[1]}) of {own[2]} cannot be loaded "
                f"from that of [{given[0]}, {given[1]}) of {given[2]}"
            )
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def check_shard(self, start: int, stop: int) -> slice:
        """Checks the range of a part of this module; where it is in the tables."""
        name = f"{type(self).__name__}.shard"
        for argument, value in (("start", start), ("stop", stop)):
            check_int64(name, argument, value)
        if not self.start <= start <= stop <= self.stop:
            raise ValueError(
                f"{name}: start and stop must be in [{self.start}, {self.stop}], got {start} and "
                f"{stop}"
            )
        return slice(start - self.start, stop - self.start)


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
