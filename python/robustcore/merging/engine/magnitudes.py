"""Exact kth values of magnitudes: the windows of a recipe, from histograms that only add up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..recipe import Window as WindowRule
from .pieces import ALL, Pieces, Window

__all__ = ["RankedKey", "find_windows", "wanted_ranks", "window_of"]

_UNLIMITED = 2**63 - 1
_NOTHING: Window = (2**31, 0, 2**32 - 1, 0)
_LOWER_BITS = 15
# Below this many parameters sorting is faster than a histogram of 65536 bins.
_FEW = 1 << 15


@dataclass(frozen=True)
class RankedKey:
    """The key at some rank, how many keys are larger, and how many are equal."""

    key: int
    larger: int
    equal: int


def wanted_ranks(rule: WindowRule, parameters: int) -> tuple[int, ...]:
    """Ranks, 1 for the largest magnitude, whose keys the window follows from."""
    first, last = _kept_ranks(rule, parameters)
    if not rule.exact:
        return (last,) if last <= parameters else ()
    ranks = []
    if first > 1:
        ranks.append(first - 1)
    if first <= last < parameters:
        ranks.append(last)
    return tuple(ranks) if first <= last else ()


def _kept_ranks(rule: WindowRule, parameters: int) -> tuple[int, int]:
    """The first and the last rank that stays."""
    kept = int(rule.density * parameters)
    if not rule.exact:
        return 1, kept + 1
    dropped = int(rule.top * parameters)
    smallest = parameters - kept - dropped
    if smallest < 0:  # the density has the last word
        dropped += smallest
    return dropped + 1, dropped + kept


def window_of(rule: WindowRule, parameters: int, keys: Sequence[RankedKey]) -> Window:
    """The window, from the keys at :func:`wanted_ranks`."""
    first, last = _kept_ranks(rule, parameters)
    if not rule.exact:
        return (keys[0].key, _UNLIMITED, 2**32 - 1, 0) if keys else ALL
    if first > last:
        return _NOTHING
    found = list(keys)
    high, high_ties = 2**32 - 1, 0
    if first > 1:
        top = found.pop(0)
        high, high_ties = top.key, first - 1 - top.larger
        if high_ties == top.equal:  # all of them: no counting
            if top.key == 0:
                return _NOTHING
            high, high_ties = top.key - 1, 0
    low, low_ties = 0, _UNLIMITED
    if last < parameters:
        bottom = found.pop(0)
        low, low_ties = bottom.key, last - bottom.larger
        if low_ties == bottom.equal:
            low_ties = _UNLIMITED
    return low, low_ties, high, high_ties


def find_windows(rule: WindowRule, pieces: Pieces, indices: Sequence[int]) -> list[Window]:
    """The windows of all tasks for pieces in memory that are ranked together."""
    group = pieces.select(indices)
    parameters = sum(piece.parameters for piece in group.slices)
    ranks = wanted_ranks(rule, parameters)
    if parameters <= _FEW:
        keys = [_sorted_keys(group, task, ranks) for task in range(group.task_count)]
    else:
        keys = ranked_keys([ranks] * group.task_count, lambda: [group])
    return [window_of(rule, parameters, row) for row in keys]


def _sorted_keys(group: Pieces, task: int, ranks: Sequence[int]) -> list[RankedKey]:
    if not ranks:
        return []
    values = torch.cat([vector.reshape(-1) for vector in group.task_vectors(task)])
    keys = (values.float().view(torch.int32) & 0x7FFFFFFF).clamp(max=0x7F800001)
    ordered = keys.sort(descending=True).values
    found = []
    for rank in ranks:
        key = ordered[rank - 1]
        larger, equal = (keys > key).sum(), (keys == key).sum()
        found.append(RankedKey(int(key), int(larger), int(equal)))
    return found


def ranked_keys(
    ranks: Sequence[Sequence[int]], walk: Callable[[], Iterable[Pieces]]
) -> list[list[RankedKey]]:
    """The keys at some ranks of each task's magnitudes.

    Args:
        ranks: For each task, as many as for the others.
        walk: Gives all pieces, from the start, every time it is called: once, and once more for
            each of a task's ranks.
    """
    count = len(ranks[0])
    if not count:
        return [[] for _ in ranks]
    upper = _summed(walk, [[]])[0]
    places = [
        [_find(row, rank) for rank in wanted] for row, wanted in zip(upper, ranks, strict=True)
    ]
    lower = _summed(walk, [[row[which].key for row in places] for which in range(count)])
    found: list[list[RankedKey]] = [[] for _ in ranks]
    for which in range(count):
        for task, wanted in enumerate(ranks):
            above = places[task][which]
            inner = _find(lower[which][task], wanted[which] - above.larger)
            key = (above.key << _LOWER_BITS) | inner.key
            found[task].append(RankedKey(key, above.larger + inner.larger, inner.equal))
    return found


def _summed(walk: Callable[[], Iterable[Pieces]], uppers: Sequence[Sequence[int]]) -> list[Tensor]:
    """The histograms for each of ``uppers``, from one walk."""
    totals: list[Tensor | None] = [None] * len(uppers)
    for pieces in walk():
        for index, upper in enumerate(uppers):
            totals[index] = pieces.histogram(upper, totals[index])
    return [total.cpu() for total in totals if total is not None]


def _find(counts: Tensor, rank: int) -> RankedKey:
    """The bin that holds the ``rank``-th largest entry."""
    until = counts.sum() - counts.cumsum(0)  # entries in larger bins
    bin_ = int((until < rank).int().argmax())
    return RankedKey(bin_, int(until[bin_]), int(counts[bin_]))
