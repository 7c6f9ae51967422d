"""What running a plan will take, found without running it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..recipe import Recipe
from .execute import Execution, NoJournal, _Run, execute
from .magnitudes import wanted_ranks
from .plan import MergedTensor, MergePlan
from .stream import BUFFER_SETS

__all__ = ["Cost", "expected_cost", "sampled_rate"]

_SAMPLED_BYTES = 64 << 20
_SAMPLED_OF_A_TENSOR = 1 << 20


@dataclass(frozen=True)
class Cost:
    """What a merge takes.

    Attributes:
        walks: How often all weights are read.
        bytes_read: All bytes that are read from files.
        bytes_written: Bytes of the result.
        memory: Bytes of all buffers together.
        chunks: Parts that are read, merged and written together.
    """

    walks: float
    bytes_read: int
    bytes_written: int
    memory: int
    chunks: int


def expected_cost(op: str, plan: MergePlan, recipe: Recipe, how: Execution) -> Cost:
    """The cost of a merge; what majorities decide may take a little more.

    Raises:
        ValueError: The memory is too small for one block, or the recipe does not fit the tensors.
    """
    run = _Run(op, plan, recipe, _Nowhere(), how, NoJournal())
    walks = 1 + sum(_walks_before(run, recipe, plan)) / max(1, plan.num_parameters)
    longest = max((chunk.parameters for chunk in run.chunks), default=0)
    carried = sum(info.nbytes for info in plan.carried)
    vectors = recipe.rescale.name == "L1" or recipe.mixing is not None
    scratch = 4 * (len(plan.tasks) + 2) if vectors else 8
    histograms = len(plan.tasks) * (1 << 16) * 8 * 2 if recipe.window else 0
    return Cost(
        walks=walks,
        bytes_read=int((plan.bytes_read - carried) * walks) + carried,
        bytes_written=plan.bytes_written,
        memory=BUFFER_SETS * run.buffer_bytes() + scratch * longest + histograms,
        chunks=len(run.chunks),
    )


def _walks_before(run: _Run, recipe: Recipe, plan: MergePlan) -> Iterator[int]:
    """Parameters that are walked over before the merge itself."""
    window, depth = recipe.window, recipe.depth
    if depth is not None and depth.alpha is None:
        yield plan.num_parameters
    if window is not None and window.scope == "model":
        ranks = wanted_ranks(window, plan.num_parameters)
        yield plan.num_parameters * (1 + len(ranks)) if ranks else 0
    for tensor in run.cut_tensors() if run.needs_own_facts else ():
        if window is not None and window.scope == "tensor":
            ranks = wanted_ranks(window, tensor.numel)
            yield tensor.numel * (1 + len(ranks)) if ranks else 0
        yield tensor.numel * ((recipe.rescale.name == "L1") + (recipe.mixing is not None))


def sampled_rate(op: str, plan: MergePlan, recipe: Recipe, how: Execution) -> tuple[int, float]:
    """Reads and merges a little of the plan, for a rate: bytes read, and seconds.

    The result is thrown away.
    """
    small = dataclasses.replace(plan, tensors=tuple(_sampled(plan)), carried=())
    # Blocks that LiNeS looks for may not be in the sample; scales take no time.
    plain = dataclasses.replace(recipe, depth=None)
    tolerant = dataclasses.replace(how, allow_nonfinite=True, progress=None)
    start = time.perf_counter()
    report = execute(op, small, plain, _Nowhere(), how=tolerant)
    return int(small.bytes_read * report.walks), time.perf_counter() - start


def _sampled(plan: MergePlan) -> Iterator[MergedTensor]:
    width = max(1, plan.bytes_read // max(1, plan.num_parameters))
    left = _SAMPLED_BYTES // width
    for tensor in plan.tensors:
        if left <= 0:
            return
        limit = min(left, _SAMPLED_OF_A_TENSOR)
        row = math.prod(tensor.shape[1:])
        rows = min(tensor.shape[0], max(1, limit // max(1, row))) if tensor.shape else 1
        count = rows * row
        left -= count
        shape = (rows, *tensor.shape[1:]) if tensor.shape else ()
        stored = tuple(min(count, held) for held in tensor.stored)
        yield dataclasses.replace(tensor, shape=shape, stored=stored)


class _Nowhere:
    """A result that is thrown away."""

    def place(self, key: str, start: int, stop: int) -> Tensor | None:
        return None

    def write(self, key: str, start: int, values: Tensor) -> None:
        pass
