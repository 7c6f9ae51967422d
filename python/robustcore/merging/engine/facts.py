"""What has to be known before a tensor can be merged: windows, norms, products, coefficients.

All of it comes from counts, or from sums over blocks of parameters that are added exactly, so it is
the same for every cut into chunks, thread count and device.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._operators import implementation
from ..recipe import Recipe, Rescale
from .magnitudes import find_windows, ranked_keys, wanted_ranks, window_of
from .pieces import ALL, Pieces, TensorFacts, Window
from .plan import MergedTensor

__all__ = ["FactKeeper", "MergedNorms", "Walk"]

#: Gives the pieces of all slices of some tensors, in order.
Walk = Callable[[Sequence[MergedTensor]], Iterable[Pieces]]

# Columns of compare_weights (csrc/merging/compare_weights.h).
_PRODUCTS, _FIRST_L1, _SECOND_L1 = 4, 8, 9


class FactKeeper:
    """Facts of all tensors.

    Those of a tensor that is cut into slices are kept from walks of its own; those of a whole one
    are found when it is in memory.

    Args:
        scales: Factor of the merged vector for each key.
    """

    def __init__(self, recipe: Recipe, tasks: int, scales: dict[str, float]) -> None:
        self.recipe = recipe
        self._tasks = tasks
        self.scales = scales
        self._model_windows: list[Window] | None = None
        self._kept: dict[str, TensorFacts] = {}

    # --- walks that come first

    def gather(
        self, tensors: Sequence[MergedTensor], cut: Sequence[MergedTensor], walk: Walk
    ) -> None:
        """Walks for what is ranked over the whole model, and for tensors that are cut."""
        rule = self.recipe.window
        if rule is not None and rule.scope == "model":
            self._model_windows = self._windows(tensors, walk)
        for tensor in cut:
            if self.needs_own_facts:
                self._kept[tensor.key] = self._gather_cut(tensor, walk)

    @property
    def needs_own_facts(self) -> bool:
        """Whether a tensor's facts take more than what is known of the model."""
        rule = self.recipe.window
        windows = rule is not None and rule.scope == "tensor"
        return windows or self.recipe.rescale is Rescale.L1 or self.recipe.mixing is not None

    def _windows(self, tensors: Sequence[MergedTensor], walk: Walk) -> list[Window]:
        rule = self.recipe.window
        assert rule is not None
        parameters = sum(tensor.numel for tensor in tensors)
        ranks = wanted_ranks(rule, parameters)
        keys = ranked_keys([ranks] * self._tasks, lambda: walk(tensors))
        return [window_of(rule, parameters, row) for row in keys]

    def _gather_cut(self, tensor: MergedTensor, walk: Walk) -> TensorFacts:
        facts = self._plain(tensor.key)
        if self.recipe.window is not None and self.recipe.window.scope == "tensor":
            facts.windows = self._windows([tensor], walk)
        if self.recipe.rescale is Rescale.L1:
            norms = _BlockSums(2 * self._tasks)
            running = copy.deepcopy(facts)
            for pieces in walk([tensor]):
                self._add_l1(pieces, 0, running, norms)
            facts.rescale = _l1_factors(norms)
        if self.recipe.mixing is not None:
            products = _BlockSums(self._products)
            for pieces in walk([tensor]):
                self._add_products(pieces, 0, products)
            facts.base_factor, facts.weights = self._mixed(products)
        return facts

    def state(self) -> dict[str, Any]:
        """What :meth:`gather` found, for JSON; floats come back as they were."""
        kept = {key: dataclasses.asdict(facts) for key, facts in self._kept.items()}
        return {"model": self._model_windows, "tensors": kept}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over :meth:`state` of an earlier run."""
        windows = state["model"]
        self._model_windows = None if windows is None else _as_windows(windows)
        self._kept = {}
        for key, fields in state["tensors"].items():
            self._kept[key] = TensorFacts(**{**fields, "windows": _as_windows(fields["windows"])})

    # --- pieces in memory

    def of(self, pieces: Pieces, running: dict[str, TensorFacts]) -> list[TensorFacts]:
        """Facts of all pieces; those of a cut tensor go on from the slice before: ``running``."""
        found = []
        for index, piece in enumerate(pieces.slices):
            key = piece.tensor.key
            if key in self._kept:
                if piece.start == 0 or key not in running:
                    running[key] = copy.deepcopy(self._kept[key])
                entry = running[key]
                entry.scale = self.scales[key]
            else:
                entry = self._of_whole(pieces, index)
            found.append(entry)
        return found

    def counts_ties(self, key: str) -> bool:
        """Whether a slice's facts depend on the slices before."""
        return key in self._kept and any(
            0 < low < 2**63 - 1 or high > 0 for _, low, _, high in self._kept[key].windows
        )

    def _of_whole(self, pieces: Pieces, index: int) -> TensorFacts:
        facts = self._plain(pieces.slices[index].tensor.key)
        if not self.needs_own_facts:
            return facts
        if self.recipe.window is not None and self.recipe.window.scope == "tensor":
            facts.windows = find_windows(self.recipe.window, pieces, [index])
        if self.recipe.rescale is Rescale.L1:
            norms = _BlockSums(2 * self._tasks)
            self._add_l1(pieces, index, copy.deepcopy(facts), norms)
            facts.rescale = _l1_factors(norms)
        if self.recipe.mixing is not None:
            products = _BlockSums(self._products)
            self._add_products(pieces, index, products)
            facts.base_factor, facts.weights = self._mixed(products)
        return facts

    def _plain(self, key: str) -> TensorFacts:
        windows = self._model_windows or [ALL] * self._tasks
        factor = 1.0
        drop, window = self.recipe.drop, self.recipe.window
        if self.recipe.rescale is Rescale.DENSITY and drop is not None and drop.epsilon is None:
            factor = 1.0 / drop.density if drop.density else 0.0
        elif self.recipe.rescale is Rescale.DENSITY and window is not None:
            factor = 1.0 / window.density if window.density else 0.0
        return TensorFacts(
            list(windows),
            [factor] * self._tasks,
            self.recipe.weights_of(self._tasks),
            base_factor=1.0 if self.recipe.adds_to_base else 0.0,
            scale=self.scales[key],
        )

    def _add_l1(self, pieces: Pieces, index: int, facts: TensorFacts, norms: _BlockSums) -> None:
        """Adds each task's L1 norm before and after entries are dropped; ``facts`` count ties."""
        group = pieces.select([index])
        bare = Recipe(window=self.recipe.window, drop=self.recipe.drop)
        zeros = torch.zeros_like(group.base[0])
        ties = []
        for task in range(self._tasks):
            # Alone, but in its place, or it would have other random numbers.
            entry = TensorFacts(
                [*[ALL] * task, facts.windows[task]],
                [1.0] * (task + 1),
                [*[0.0] * task, 1.0],
                0.0,
                1.0,
                copy.deepcopy(facts.ties[: task + 1]),
            )
            after, _ = group.only(task, zeros).merged_vectors(bare, [entry])
            ties.append(entry.ties[task] if entry.ties else [0, 0])
            before = group.task_vectors(task)
            sums = implementation(before[0]).compare_weights(before, after)
            norms.add(2 * task, sums[:, _FIRST_L1])
            norms.add(2 * task + 1, sums[:, _SECOND_L1])
        facts.ties = ties

    @property
    def _products(self) -> int:
        rows = self._tasks if self._products_of_task_vectors else self._tasks + 1
        return rows * rows

    @property
    def _products_of_task_vectors(self) -> bool:
        return self.recipe.mixing is not None and self.recipe.mixing.of_task_vectors

    def _add_products(self, pieces: Pieces, index: int, products: _BlockSums) -> None:
        """Adds the products of each pair: of task vectors, or of weights, the base's first."""
        group = pieces.select([index])
        if self._products_of_task_vectors:
            rows = [group.task_vectors(task) for task in range(self._tasks)]
        else:
            rows = [group.base] + [[tensor] for tensor in group.tasks]
        for i, first in enumerate(rows):
            for j in range(i + 1):
                sums = implementation(first[0]).compare_weights(first, rows[j])
                products.add(i * len(rows) + j, sums[:, _PRODUCTS])

    def _mixed(self, products: _BlockSums) -> tuple[float, list[float]]:
        assert self.recipe.mixing is not None
        size = math.isqrt(self._products)
        total = [
            [products.total(max(i, j) * size + min(i, j)) for j in range(size)] for i in range(size)
        ]
        base_factor, weights = self.recipe.mixing.coefficients(total)
        return (base_factor if self.recipe.adds_to_base else 0.0), weights


def _as_windows(rows: Sequence[Sequence[int]]) -> list[Window]:
    return [(low, low_ties, high, high_ties) for low, low_ties, high, high_ties in rows]


class _BlockSums:
    """Several sums over blocks, added exactly at the end."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._rows = [array("d") for _ in range(count)]

    def add(self, which: int, blocks: Tensor) -> None:
        self._rows[which].extend(blocks.tolist())

    def total(self, which: int) -> float:
        return math.fsum(self._rows[which])


def _l1_factors(norms: _BlockSums) -> list[float]:
    """before / after for each task; 1 where nothing is left to scale."""
    factors = []
    for task in range(norms.count // 2):
        before, after = norms.total(2 * task), norms.total(2 * task + 1)
        factors.append(before / after if after > 0 else 1.0)
    return factors


class MergedNorms:
    """||sum tau_t||_1 and ||tau_M||_1 over the whole model, for LiNeS.

    What the majority elects is known at the end only: the norm is taken for each sign.
    """

    def __init__(self, keeper: FactKeeper) -> None:
        self._keeper = keeper
        decided = keeper.recipe.undecided.value
        self._signs = (-1, 0, 1) if decided is None else (decided,)
        self._sums = _BlockSums(1 + len(self._signs))
        self._votes = 0
        self._running: dict[str, TensorFacts] = {}

    def add(self, pieces: Pieces, recipe: Recipe) -> None:
        """``recipe``: what is left to do with these pieces."""
        tasks = pieces.task_count
        facts = self._keeper.of(pieces, self._running)
        before = [copy.deepcopy(entry.ties) for entry in facts]
        plain = [TensorFacts([ALL] * tasks, [1.0] * tasks, [1.0] * tasks) for _ in facts]
        summed, _ = pieces.merged_vectors(Recipe(), plain)
        for index, sign in enumerate(self._signs):
            for entry, ties in zip(facts, before, strict=True):
                entry.ties = copy.deepcopy(ties)
            merged, counters = pieces.merged_vectors(recipe, facts, zero_sign=sign)
            sums = implementation(merged[0]).compare_weights(summed, merged)
            self._sums.add(1 + index, sums[:, _SECOND_L1])
        self._sums.add(0, sums[:, _FIRST_L1])
        self._votes += int((counters[:, 4] - counters[:, 5]).sum())

    def alpha(self, tasks: int) -> float:
        elected = (self._votes > 0) - (self._votes < 0)
        index = self._signs.index(elected) if len(self._signs) > 1 else 0
        summed, merged = self._sums.total(0), self._sums.total(1 + index)
        return summed / merged / tasks if merged > 0 else 1.0 / tasks
