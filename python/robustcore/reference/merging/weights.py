"""The operators that merge weights, in plain PyTorch, bit for bit.

Lists are pieces of models: contiguous tensors of any floating dtype, those of ``finetuned`` task by
task. Arguments are those of the operators in ``csrc/ops.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..random import philox
from .masks import tall_mask

__all__ = [
    "compare_weights",
    "magnitude_histogram_",
    "magnitude_keys",
    "magnitude_ties",
    "merge_weights_",
    "random_words",
]

_BLOCK = 4096
_WORD = 0xFFFFFFFF
_LANES = 256
_MARK_CANCELLED = 2


def magnitude_keys(values: Tensor) -> Tensor:
    """31 bits, int64, that are ordered as ``|values|`` in float32 is; one for all NaNs."""
    return (values.float().view(torch.int32).long() & 0x7FFFFFFF).clamp(max=0x7F800001)


def random_words(seed: int, task: int, start: int, count: int) -> Tensor:
    """Random words of the parameters ``[start, start + count)`` of the flat order, int64."""
    index = torch.arange(start, start + count)
    quad = index >> 2
    zero = torch.zeros_like(quad)
    key = (zero + (seed & _WORD), zero + ((seed >> 32) & _WORD))
    counter = (quad & _WORD, (quad >> 32) & _WORD, zero + task, zero + 0x64726F70)
    words = torch.stack(philox(key, counter), -1)
    return words.gather(-1, (index & 3).unsqueeze(-1)).squeeze(-1)


def _task_vectors(
    base: Sequence[Tensor], finetuned: Sequence[Tensor], vectors: Sequence[int], piece: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """θ0, θt and τt of one piece in the dtype of computation."""
    pieces = len(base)
    rows = [finetuned[task * pieces + piece] for task in range(len(vectors))]
    wide = any(tensor.dtype == torch.float64 for tensor in (base[piece], *rows))
    compute = torch.float64 if wide else torch.float32
    origin = base[piece].to(compute)
    rows = [row.to(compute) for row in rows]
    changes = [
        row if is_vector else row - origin for row, is_vector in zip(rows, vectors, strict=True)
    ]
    thetas = [
        origin + row if is_vector else row for row, is_vector in zip(rows, vectors, strict=True)
    ]
    return origin, thetas, changes


def _stays(values: Tensor, window: Sequence[int], before: Tensor | None) -> Tensor:
    """Which magnitudes a window keeps; ``before``: ties before each block, [blocks, 2]."""
    low, low_ties, high, high_ties = window
    keys = magnitude_keys(values)
    first, second = torch.zeros_like(keys), torch.zeros_like(keys)
    if before is not None:
        for block, (lows, highs) in enumerate(before.tolist()):
            part = slice(block * _BLOCK, (block + 1) * _BLOCK)
            for ties, key, start in ((first, low, lows), (second, high, highs)):
                equal = (keys[part] == key).long()
                ties[part] = start + equal.cumsum(0) - equal
    above = (keys > low) | ((keys == low) & (first < low_ties))
    below = (keys < high) | ((keys == high) & (second >= high_ties))
    return above & below


def merge_weights_(
    out: Sequence[Tensor],
    base: Sequence[Tensor],
    finetuned: Sequence[Tensor],
    rescale: Tensor,
    weights: Tensor,
    scales: Tensor,
    vectors: Sequence[int],
    windows: Tensor | None,
    ties_before: Tensor | None,
    densities: Sequence[float],
    seed: int,
    flat_starts: Sequence[int],
    election: int,
    reduction: int,
    zero_sign: int,
    lambdas: Sequence[float],
    least: int,
    strict: bool,
) -> Tensor:
    counters = torch.zeros((len(base), 6), dtype=torch.int64)
    first_block = 0
    for piece in range(len(base)):
        origin, thetas, changes = _task_vectors(base, finetuned, vectors, piece)
        blocks = (origin.numel() + _BLOCK - 1) // _BLOCK
        counters[piece, 0] = (~origin.isfinite()).sum()
        counters[piece, 1] = sum(int((~change.isfinite()).sum()) for change in changes)
        for task, change in enumerate(changes):
            keep = torch.ones_like(change, dtype=torch.bool)
            if windows is not None:
                before = None
                if ties_before is not None:
                    before = ties_before[first_block : first_block + blocks, task]
                keep &= _stays(change, windows[piece, task].tolist(), before)
            if densities and densities[task] < 1:
                words = random_words(seed, task, flat_starts[piece], change.numel())
                keep &= words.to(keep.device) < int(densities[task] * 2**32)
            kept = change.where(keep, 0)
            factor = rescale[piece, task].to(change.dtype)
            changes[task] = kept if factor == 1 else kept * factor
        first_block += blocks
        task_weights = weights[piece].to(origin.dtype)
        sign = _elect(changes, task_weights, election, zero_sign, counters[piece])
        merged = _reduce(changes, task_weights, sign, reduction)
        if lambdas:
            masks = [
                tall_mask(origin, theta, merged, value, strict=strict)
                for theta, value in zip(thetas, lambdas, strict=True)
            ]
            merged = merged.where(torch.stack(masks).sum(0) >= least, 0)
        if sign is not None and zero_sign == _MARK_CANCELLED:
            merged = torch.where(sign.isnan(), torch.nan, merged)
        base_factor, scale = scales[piece].to(origin.dtype)
        change = scale * merged
        if base_factor == 0:
            result = change
        else:
            start = origin if base_factor == 1 else base_factor * origin
            result = torch.where(change == 0, start, start + change)
        narrow = result.float() if out[piece].dtype != torch.float64 else result
        out[piece].copy_(narrow.to(out[piece].dtype))
        counters[piece, 2] = (~out[piece].isfinite()).sum()
    return counters


def _elect(
    changes: Sequence[Tensor], weights: Tensor, election: int, zero_sign: int, counters: Tensor
) -> Tensor | None:
    if election == 0:
        return None
    total = torch.zeros_like(changes[0])
    for change, weight in zip(changes, weights, strict=True):
        total = total + (change, weight * change, change.sign())[election - 1]
    some_say = torch.stack([change != 0 for change in changes]).any(0)
    counters[3] = ((total == 0) & some_say).sum()
    counters[4] = (total > 0).sum()
    counters[5] = (total < 0).sum()
    if zero_sign == _MARK_CANCELLED:
        return torch.where((total == 0) & some_say, torch.nan, total.sign())
    return torch.where(total == 0, float(zero_sign), total.sign())


def _reduce(
    changes: Sequence[Tensor], weights: Tensor, sign: Tensor | None, reduction: int
) -> Tensor:
    total = torch.zeros_like(changes[0])
    divisor = torch.zeros_like(total)
    for change, weight in zip(changes, weights, strict=True):
        takes_part = (change * sign > 0) if sign is not None else torch.ones_like(change).bool()
        term = (weight * change).where(takes_part, 0)
        if reduction == 3:
            total = torch.where(term.abs() > total.abs(), term, total)
            continue
        total = total + term
        says = takes_part & (change != 0)
        divisor = divisor + says * (1 if reduction == 1 else weight)
    if reduction == 1:
        return total / divisor.clamp(min=1)
    if reduction == 2:
        return total / divisor.where(~(divisor.abs() < 1e-8), 1)
    return total


def magnitude_histogram_(
    counts: Tensor,
    base: Sequence[Tensor],
    finetuned: Sequence[Tensor],
    vectors: Sequence[int],
    upper: Sequence[int],
) -> None:
    for piece in range(len(base)):
        _, _, changes = _task_vectors(base, finetuned, vectors, piece)
        for task, change in enumerate(changes):
            keys = magnitude_keys(change)
            bins = (keys & 0x7FFF)[keys >> 15 == upper[task]] if upper else keys >> 15
            counts[task] += torch.bincount(bins, minlength=counts.shape[1])


def magnitude_ties(
    base: Sequence[Tensor], finetuned: Sequence[Tensor], vectors: Sequence[int], windows: Tensor
) -> Tensor:
    rows = []
    for piece in range(len(base)):
        _, _, changes = _task_vectors(base, finetuned, vectors, piece)
        for start in range(0, base[piece].numel(), _BLOCK):
            row = []
            for task, change in enumerate(changes):
                keys = magnitude_keys(change[start : start + _BLOCK])
                low, _, high, _ = windows[piece, task].tolist()
                row.append([int((keys == low).sum()), int((keys == high).sum())])
            rows.append(row)
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, len(vectors), 2)


def compare_weights(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """[blocks, 10]; lanes of 256 parameters, then halves, as the operator adds them."""
    rows = []
    for piece, a in enumerate(first):
        b = second[piece] if second else torch.zeros_like(a)
        for start in range(0, a.numel(), _BLOCK):
            x, y = (t[start : start + _BLOCK].double() for t in (a, b))
            d = x - y
            terms = [d.abs(), d * d, x * x, y * y, x * y, (d != 0).double(), d.abs()]
            terms += [(~d.isfinite()).double(), x.abs(), y.abs()]
            rows.append(torch.stack([_joined(term, k == 6) for k, term in enumerate(terms)]))
    return torch.stack(rows) if rows else torch.zeros((0, 10), dtype=torch.float64)


def _joined(terms: Tensor, largest: bool) -> Tensor:
    join = torch.maximum if largest else torch.add
    padded = torch.nn.functional.pad(terms, (0, -terms.numel() % _LANES)).view(-1, _LANES)
    lanes = torch.zeros(_LANES, dtype=torch.float64, device=terms.device)
    for row in padded:
        lanes = join(lanes, row)
    while lanes.numel() > 1:
        lanes = join(*lanes.chunk(2))
    return lanes[0]
