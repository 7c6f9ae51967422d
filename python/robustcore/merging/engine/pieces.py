"""The pieces of a chunk in memory, and the operators on them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._operators import implementation
from ..recipe import Consensus, Recipe
from .chunks import Slice

__all__ = ["ALL", "Pieces", "TensorFacts", "Window"]

#: low key, how many of its ties stay, high key, how many of its ties are dropped.
Window = tuple[int, int, int, int]

_UNLIMITED = 2**63 - 1
#: The window that keeps everything.
ALL: Window = (0, _UNLIMITED, 2**32 - 1, 0)
_BLOCK = 4096


@dataclass
class TensorFacts:
    """What has to be known of a tensor before it is merged: one entry per task."""

    windows: list[Window]
    rescale: list[float]
    weights: list[float]
    base_factor: float = 1.0
    scale: float = 1.0
    #: Ties of the windows' keys in the slices that came before, [low, high] per task.
    ties: list[list[int]] = field(default_factory=list)


@dataclass
class Pieces:
    """Slices of the base and of all tasks, on one device; ``tasks`` task by task.

    Attributes:
        vectors: 1 for each task that comes as task vectors.
        placeholders: How many tasks at the front are zero vectors that only keep a task behind them
            in its place, on which its random numbers depend: nothing is drawn for them.
    """

    slices: tuple[Slice, ...]
    base: list[Tensor]
    tasks: list[Tensor]
    vectors: list[int]
    placeholders: int = 0

    @property
    def task_count(self) -> int:
        return len(self.vectors)

    def select(self, indices: Sequence[int]) -> Pieces:
        """Some of the slices."""
        count = len(self.base)
        return Pieces(
            tuple(self.slices[i] for i in indices),
            [self.base[i] for i in indices],
            [self.tasks[t * count + i] for t in range(self.task_count) for i in indices],
            self.vectors,
        )

    def only(self, task: int, zeros: Tensor) -> Pieces:
        """One task in its place; ``zeros`` are as many as the largest slice has parameters."""
        count = len(self.base)
        empty = [zeros[: values.numel()] for values in self.base]
        own = self.tasks[task * count : (task + 1) * count]
        vectors = [*[1] * task, self.vectors[task]]
        return Pieces(self.slices, self.base, [*empty * task, *own], vectors, task)

    def task_vectors(self, task: int) -> list[Tensor]:
        """tau of one task, in float32 or float64."""
        count = len(self.base)
        values = self.tasks[task * count : (task + 1) * count]
        if self.vectors[task]:
            return [_wide(value) for value in values]
        return [_wide(value) - _wide(start) for value, start in zip(values, self.base, strict=True)]

    def histogram(self, upper: Sequence[int], counts: Tensor | None = None) -> Tensor:
        """Adds to ``counts``, [tasks, bins]: ``magnitude_histogram_`` in ``csrc/ops.cpp``."""
        if counts is None:
            bins = 1 << 15 if upper else 1 << 16
            shape = (self.task_count, bins)
            counts = torch.zeros(shape, dtype=torch.int64, device=self.base[0].device)
        implementation(counts).magnitude_histogram_(
            counts, self.base, self.tasks, self.vectors, list(upper)
        )
        return counts

    def merge(
        self,
        recipe: Recipe,
        facts: Sequence[TensorFacts],
        out: Sequence[Tensor],
        *,
        zero_sign: int = 0,
    ) -> Tensor:
        """Writes the merged weights to ``out``; returns the counters, [pieces, 6].

        Facts count the ties of the pieces as being behind them.
        """
        windows = [entry.windows for entry in facts]
        table = ties = None
        if any(window != ALL for row in windows for window in row):
            table = torch.tensor(windows, dtype=torch.int64)
            if any(_counts_ties(window) for row in windows for window in row):
                ties = self._ties_before(table, facts)
        drop, consensus = recipe.drop, recipe.consensus
        random = drop is not None and drop.epsilon is None
        return implementation(self.base[0]).merge_weights_(
            out,
            self.base,
            self.tasks,
            torch.tensor([entry.rescale for entry in facts], dtype=torch.float64),
            torch.tensor([entry.weights for entry in facts], dtype=torch.float64),
            torch.tensor([(e.base_factor, e.scale) for e in facts], dtype=torch.float64),
            self.vectors,
            table,
            ties,
            [1.0] * self.placeholders + [drop.density] * (self.task_count - self.placeholders)
            if drop is not None and random
            else [],
            drop.seed if drop else 0,
            [piece.tensor.flat_start + piece.start for piece in self.slices],
            int(recipe.election),
            int(recipe.reduction),
            zero_sign,
            _lambdas(consensus, self.task_count),
            consensus.k if consensus else 0,
            consensus is None or consensus.comparison == "strict",
        )

    def merged_vectors(
        self, recipe: Recipe, facts: Sequence[TensorFacts], *, zero_sign: int = 0
    ) -> tuple[list[Tensor], Tensor]:
        """The merged vectors alone, unscaled, in float32 or float64, and the counters."""
        bare = [dataclasses.replace(entry, base_factor=0.0, scale=1.0) for entry in facts]
        wide = [torch.promote_types(tensor.dtype, torch.float32) for tensor in self.base]
        out = [torch.empty_like(b, dtype=d) for b, d in zip(self.base, wide, strict=True)]
        counters = self.merge(recipe, bare, out, zero_sign=zero_sign)
        for entry, used in zip(facts, bare, strict=True):
            entry.ties = used.ties
        return out, counters

    def _ties_before(self, windows: Tensor, facts: Sequence[TensorFacts]) -> Tensor:
        ties = implementation(self.base[0]).magnitude_ties(
            self.base, self.tasks, self.vectors, windows
        )
        before = torch.empty_like(ties)
        first = 0
        for piece, entry in zip(self.slices, facts, strict=True):
            last = first + math.ceil(piece.parameters / _BLOCK)
            rows = ties[first:last]
            start = torch.tensor(entry.ties or [[0, 0]] * self.task_count, device=ties.device)
            until = rows.cumsum(0) + start
            before[first] = start
            before[first + 1 : last] = until[:-1]
            entry.ties = until[-1].tolist()
            first = last
        return before


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _counts_ties(window: Window) -> bool:
    return 0 < window[1] != _UNLIMITED or window[3] > 0


def _lambdas(consensus: Consensus | None, tasks: int) -> list[float]:
    if consensus is None:
        return []
    given = consensus.lambdas
    return list(given) * tasks if len(given) == 1 else list(given)
