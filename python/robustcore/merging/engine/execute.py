"""Running a plan: facts first, then one walk that merges and writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..depth import depth_scales
from ..recipe import Recipe
from ..recipe import Undecided as UndecidedRule
from .cancelled import MARK, Undecided, can_mark, resolve
from .chunks import BLOCK, Chunk, cut
from .facts import FactKeeper, MergedNorms
from .pieces import Pieces, TensorFacts
from .plan import MergedTensor, MergePlan
from .ranked_drop import ranked_drop
from .stream import BUFFER_SETS, Sink, Stream, bytes_per_parameter

__all__ = ["Execution", "Journal", "MergeReport", "NoJournal", "execute"]

# Bytes of all models' slices in a chunk: small enough for a cache to hold most of it, large enough
# to make the work between chunks negligible.
_PREFERRED_BYTES = 16 << 20
_LEAST_MEMORY = 32 << 20
_CPU = torch.device("cpu")
_CHUNKS_OF_A_LAYOUT = 1 << 40


class Journal(Protocol):
    """What a merge remembers from one run to the next."""

    def is_done(self, chunk: int) -> bool: ...
    def mark_done(self, chunk: int) -> None: ...
    def recall(self, name: str) -> Any: ...
    def remember(self, name: str, value: Any) -> None: ...


class NoJournal:
    """Forgets at the end of the run."""

    def __init__(self) -> None:
        self._facts: dict[str, Any] = {}

    def is_done(self, chunk: int) -> bool:
        return False

    def mark_done(self, chunk: int) -> None:
        pass

    def recall(self, name: str) -> Any:
        return self._facts.get(name)

    def remember(self, name: str, value: Any) -> None:
        self._facts[name] = value


@dataclass
class MergeReport:
    """What a merge found out.

    Attributes:
        scales: Factor of the merged vector for each key, where it is not the same for all.
        alpha: LiNeS's alpha, where it was computed.
        zero_sign: What was elected where votes cancelled out.
        cancelled: Parameters whose votes cancelled out.
        nonfinite: Parameters of the base, of differences and of the result that are not finite.
        walks: How many times all of the weights were read; tensors ranked on their own not counted.
    """

    scales: dict[str, float] = field(default_factory=dict)
    alpha: float | None = None
    zero_sign: int = 0
    cancelled: int = 0
    nonfinite: tuple[int, int, int] = (0, 0, 0)
    walks: float = 0.0


@dataclass(frozen=True)
class Execution:
    """How a plan is run; nothing here changes the result.

    Attributes:
        max_memory: Bytes of all buffers together.
        allow_nonfinite: Merge NaN and infinities instead of refusing them.
        progress: Called with what is done, parameters done and all parameters.
    """

    max_memory: int = 1 << 30
    device: torch.device = _CPU
    allow_nonfinite: bool = False
    progress: Callable[[str, int, int], None] | None = None
    chunk_parameters: int | None = None  # for tests


def execute(
    op: str,
    plan: MergePlan,
    recipe: Recipe,
    sink: Sink,
    *,
    how: Execution = Execution(),
    journal: Journal | None = None,
) -> MergeReport:
    """Merges and writes all tensors that the plan merges, and copies those it carries.

    Raises:
        ValueError: A weight is NaN or infinite, or the memory is too small for one block.
    """
    run = _Run(op, plan, recipe, sink, how, journal or NoJournal())
    run.gather()
    run.merge()
    run.carry()
    return run.report


def merged_alpha(op: str, plan: MergePlan, recipe: Recipe) -> float | None:
    """LiNeS's alpha for the vector that a recipe merges, None where it is given."""
    run = _Run(op, plan, recipe, _NoSink(), Execution(), NoJournal())
    run.gather()
    return run.report.alpha


class _NoSink:
    def place(self, key: str, start: int, stop: int) -> Tensor | None:
        raise AssertionError("nothing is merged")

    def write(self, key: str, start: int, values: Tensor) -> None:
        raise AssertionError("nothing is written")


class _Run:
    def __init__(
        self,
        op: str,
        plan: MergePlan,
        recipe: Recipe,
        sink: Sink,
        how: Execution,
        journal: Journal,
    ) -> None:
        self.op, self.plan, self.recipe = op, plan, recipe
        self.sink, self.how, self.journal = sink, how, journal
        self.report = MergeReport()
        preferred, largest = self._layout(*_capacities(op, plan, recipe, how))
        self._keeper = FactKeeper(recipe, len(plan.tasks), self._scales(None))
        row = recipe.drop is not None and recipe.drop.epsilon is not None
        whole = self._keeper.needs_own_facts or row
        self._cut = lambda tensors: cut(tensors, preferred, largest, whole=whole, row=row)
        self.chunks = self._cut(plan.tensors)
        longest = max((chunk.parameters for chunk in self.chunks), default=0)
        self._stream = Stream(plan, longest, how.device)

    @property
    def needs_own_facts(self) -> bool:
        """Whether a tensor's facts take more than what is known of the model."""
        return self._keeper.needs_own_facts

    def cut_tensors(self) -> list[MergedTensor]:
        """The tensors that do not fit into one chunk."""
        divided = {
            piece.tensor.key for c in self.chunks for piece in c.slices if not piece.is_whole
        }
        return [tensor for tensor in self.plan.tensors if tensor.key in divided]

    def buffer_bytes(self) -> int:
        """Bytes of one set of buffers."""
        return self._stream.set_bytes

    def _layout(self, preferred: int, largest: int) -> tuple[int, int]:
        """How tensors are cut: as in an earlier run if that fits into this one's memory.

        Otherwise its chunks are worth nothing, and numbers of chunks begin after them.
        """
        layouts = self.journal.recall("layouts") or []
        for number, (earlier, most) in enumerate(layouts):
            if earlier <= largest and most <= largest:
                self._first_number = number * _CHUNKS_OF_A_LAYOUT
                return earlier, most
        self._first_number = len(layouts) * _CHUNKS_OF_A_LAYOUT
        self.journal.remember("layouts", [*layouts, [preferred, largest]])
        return preferred, largest

    def _scales(self, alpha: float | None) -> dict[str, float]:
        keys = [tensor.key for tensor in self.plan.tensors]
        depth = self.recipe.depth
        if depth is None:
            return dict.fromkeys(keys, self.recipe.scale)
        alpha = depth.alpha if alpha is None else alpha
        scales = depth_scales(
            self.op, keys, 1.0 if alpha is None else alpha, depth.beta, depth.blocks
        )
        return {key: self.recipe.scale * value for key, value in scales.items()}

    # --- facts

    def gather(self) -> None:
        kept = self.journal.recall("facts")
        if kept is None:
            self._keeper.gather(self.plan.tensors, self.cut_tensors(), self._walk)
            self.journal.remember("facts", self._keeper.state())
        else:
            self._keeper.restore(kept)
        if self.recipe.depth is None:
            return
        if self.recipe.depth.alpha is None:
            self.report.alpha = self._alpha()
        self._keeper.scales = self.report.scales = self._scales(self.report.alpha)

    def _alpha(self) -> float:
        alpha = self.journal.recall("alpha")
        if alpha is None:
            norms = MergedNorms(self._keeper)
            for pieces in self._walk(self.plan.tensors):
                norms.add(*self._dropped(pieces))
            alpha = norms.alpha(len(self.plan.tasks))
            self.journal.remember("alpha", alpha)
        return float(alpha)

    def _walk(self, tensors: Sequence[MergedTensor]) -> Iterator[Pieces]:
        chunks = self.chunks if len(tensors) == len(self.plan.tensors) else self._cut(tensors)
        done, total = 0, sum(chunk.parameters for chunk in chunks)
        self.report.walks += total / max(1, self.plan.num_parameters)
        for pieces in self._stream.walk(chunks):
            yield pieces
            done += sum(piece.parameters for piece in pieces.slices)
            self._tell("statistics", done, total)

    # --- the merge itself

    def merge(self) -> None:
        undecided = self.recipe.undecided.value
        self.report.zero_sign = undecided or 0
        self._merge_chunks(self.chunks, "merging", again=False)
        if undecided is not None:
            return
        self._decide()

    def _decide(self) -> None:
        """Elects the sign of the majority, known only now, where votes cancelled out."""
        votes, again, undecided = [0, 0], [], []
        for chunk in self.chunks:
            positive, negative, lost, found = self.journal.recall(self._votes(chunk))
            votes[0] += positive
            votes[1] += negative
            self.report.cancelled += lost
            if found is None:
                again.append(chunk)
            else:
                undecided += [Undecided(*entry) for entry in found]
        self.report.zero_sign = (votes[0] > votes[1]) - (votes[0] < votes[1])
        if not self.report.zero_sign:
            return
        dtypes = {tensor.key: tensor.dtype for tensor in self.plan.tensors}
        for entry in undecided:
            results = entry.positive if self.report.zero_sign > 0 else entry.negative
            values = torch.tensor(results, dtype=torch.float64).to(dtypes[entry.key])
            for place, value in zip(entry.places, values.split(1), strict=True):
                self.sink.write(entry.key, place, value)
        if again:
            self._merge_chunks(again, "cancelled votes", again=True)

    def _votes(self, chunk: Chunk) -> str:
        return f"votes {self._first_number + chunk.index}"

    def _merge_chunks(self, chunks: Sequence[Chunk], what: str, *, again: bool) -> None:
        zero_sign = self.report.zero_sign
        left = [chunk for chunk in chunks if again or not self._is_done(chunk)]
        running: dict[str, TensorFacts] = {}
        total = sum(chunk.parameters for chunk in chunks)
        if again and any(self._keeper.counts_ties(t.key) for t in self.plan.tensors):
            left = list(self.chunks)  # ties are counted from the start of a tensor
        left_parameters = sum(chunk.parameters for chunk in left)
        done, total = max(0, total - left_parameters), max(total, left_parameters)
        self.report.walks += left_parameters / max(1, self.plan.num_parameters)
        self._tell(what, done, total)

        def compute(chunk: Chunk, pieces: Pieces, out: list[Tensor]) -> None:
            nonlocal done
            facts = self._keeper.of(pieces, running)
            dropped, recipe = self._dropped(pieces)
            waits = self.recipe.undecided is UndecidedRule.MAJORITY and not again
            marks = waits and can_mark(recipe, facts)
            counters = dropped.merge(recipe, facts, out, zero_sign=MARK if marks else zero_sign)
            if waits:
                lost = int(counters[:, 3].sum())
                found = resolve(dropped, recipe, facts, out) if marks and lost else []
                if lost and not marks:
                    found = None
                elif found is None:
                    dropped.merge(recipe, facts, out)
                counters[:, 2] -= counters[:, 3] if marks else 0  # marks are no NaN of the result
                told = None if found is None else [entry.as_json() for entry in found]
                self.journal.remember(
                    self._votes(chunk), [*counters.sum(0)[[4, 5]].tolist(), lost, told]
                )
            self._check(pieces, counters)
            done += chunk.parameters
            self._tell(what, done, total)

        self._stream.merge(left, compute, self.sink, self._mark_done)

    def _is_done(self, chunk: Chunk) -> bool:
        # A cut tensor whose ties are counted is merged again from its start.
        counts = any(self._keeper.counts_ties(piece.tensor.key) for piece in chunk.slices)
        return not counts and self.journal.is_done(self._first_number + chunk.index)

    def _mark_done(self, chunk: Chunk) -> None:
        self.journal.mark_done(self._first_number + chunk.index)

    def _dropped(self, pieces: Pieces) -> tuple[Pieces, Recipe]:
        """The pieces with what the kernel cannot do itself done, and what is left for it."""
        if self.recipe.drop is None or self.recipe.drop.epsilon is None:
            return pieces, self.recipe
        return ranked_drop(pieces, self.recipe.drop, self.recipe.rescale), dataclasses.replace(
            self.recipe, drop=None
        )

    def _check(self, pieces: Pieces, counters: Tensor) -> None:
        lost = counters[:, :3].sum(0).tolist()
        if not any(lost):
            return
        seen = self.report.nonfinite
        self.report.nonfinite = (seen[0] + lost[0], seen[1] + lost[1], seen[2] + lost[2])
        if self.how.allow_nonfinite:
            return
        index = int((counters[:, :3].sum(1) > 0).nonzero()[0])
        raise ValueError(f"{self.op}: {self._describe(pieces, index, counters[index].tolist())}")

    def _describe(self, pieces: Pieces, index: int, counters: Sequence[int]) -> str:
        key = pieces.slices[index].tensor.key
        count = len(pieces.base)
        bad = []
        for number, name in enumerate(["base", *self.plan.tasks]):
            values = (
                pieces.base[index] if not number else pieces.tasks[(number - 1) * count + index]
            )
            lost = int((~values.isfinite()).sum())
            if lost:
                bad.append(f"{name}[{key!r}] has {lost} (of {values.numel()} looked at)")
        if not bad and counters[1]:
            return f"differences of {key!r} overflow: {counters[1]} are not finite"
        if not bad:
            dtype = str(pieces.slices[index].tensor.dtype).removeprefix("torch.")
            return f"{counters[2]} merged weights of {key!r} are too large for {dtype}"
        return "weights must be finite (nonfinite='allow' merges them): " + "; ".join(bad)

    def carry(self) -> None:
        """Copies what is not merged."""
        step = 16 << 20
        for info in self.plan.carried:
            if info.numel == 0:
                self.sink.write(info.key, 0, torch.empty(0, dtype=info.dtype))
            count = max(1, step // info.dtype.itemsize)
            for start in range(0, info.numel, count):
                stop = min(info.numel, start + count)
                into = torch.empty(stop - start, dtype=info.dtype)
                self.sink.write(info.key, start, self.plan.base.read(info.key, start, stop, into))

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.how.progress is not None:
            self.how.progress(what, done, total)


def _capacities(op: str, plan: MergePlan, recipe: Recipe, how: Execution) -> tuple[int, int]:
    """Parameters of a usual chunk, and of the largest."""
    if how.chunk_parameters is not None:
        return how.chunk_parameters, how.chunk_parameters
    width = max(1, bytes_per_parameter(plan))
    # Norms and products need task vectors in float32 besides; histograms are small change.
    scratch = 4 * (len(plan.tasks) + 2) if recipe.rescale.name == "L1" or recipe.mixing else 8
    if recipe.drop is not None and recipe.drop.epsilon is not None:
        scratch = 4 * len(plan.tasks) + 64
    histograms = len(plan.tasks) * (1 << 16) * 8 * 2 if recipe.window else 0
    usable = min(how.max_memory, max(how.max_memory // 2, how.max_memory - histograms))
    usable -= sum(model.working_memory for model in plan.models)
    largest = usable // (BUFFER_SETS * width + scratch)
    if largest < BLOCK or how.max_memory < _LEAST_MEMORY:
        least = max(_LEAST_MEMORY, 2 * BLOCK * (BUFFER_SETS * width + scratch))
        raise ValueError(f"{op}: max_memory must be at least {least} bytes, got {how.max_memory}")
    read = sum(t.dtype.itemsize for m in plan.models for t in list(m.tensors.values())[:1])
    preferred = min(largest, _PREFERRED_BYTES // max(1, read))
    return max(BLOCK, preferred), largest
