"""How many parameters a chunk may have where all that is done is to walk over models once."""

from __future__ import annotations

from .chunks import BLOCK
from .plan import MergePlan
from .stream import BUFFER_SETS, bytes_per_parameter

__all__ = ["parameters_per_chunk"]

# As in a merge: most of a chunk stays in a cache.
_PREFERRED_BYTES = 16 << 20
_LEAST_MEMORY = 32 << 20


def parameters_per_chunk(op: str, plan: MergePlan, max_memory: int, scratch: int) -> int:
    """A multiple of the block, so small that all buffers fit into ``max_memory`` bytes.

    Args:
        scratch: Bytes per parameter that are needed besides the buffers.

    Raises:
        ValueError: One block does not fit.
    """
    width = bytes_per_parameter(plan)
    working = max((model.working_memory for model in plan.models), default=0)
    largest = (max_memory - working) // max(1, BUFFER_SETS * width + scratch)
    if largest < BLOCK or max_memory < _LEAST_MEMORY:
        least = max(_LEAST_MEMORY, working + BLOCK * (BUFFER_SETS * width + scratch))
        raise ValueError(f"{op}: max_memory must be at least {least} bytes, got {max_memory}")
    preferred = min(largest, _PREFERRED_BYTES // max(1, width))
    return max(BLOCK, preferred // BLOCK * BLOCK)
