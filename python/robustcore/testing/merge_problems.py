"""Problems for the operators that merge weights: pieces of models with ties, tables, options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..reference import merging as reference

__all__ = ["BLOCK", "MergeProblem", "random_problem", "same_bits", "task_vectors"]

BLOCK = 4096
_UNLIMITED = 2**63 - 1
_EXTREME = (0.0, -0.0, 1e-45, -1e-40, 6e4, 3e38, torch.inf, -torch.inf, torch.nan)


@dataclass(frozen=True)
class MergeProblem:
    """Arguments of ``merge_weights_`` but for ``out``: see ``csrc/ops.cpp``."""

    base: list[Tensor]
    finetuned: list[Tensor]
    rescale: Tensor
    weights: Tensor
    scales: Tensor
    vectors: list[int]
    windows: Tensor | None
    ties_before: Tensor | None
    densities: list[float]
    seed: int
    flat_starts: list[int]
    election: int
    reduction: int
    zero_sign: int
    lambdas: list[float]
    least: int
    strict: bool

    @property
    def tasks(self) -> int:
        return len(self.vectors)

    def arguments(self) -> tuple[Any, ...]:
        return tuple(vars(self).values())

    def run(
        self, operator: Callable[..., Tensor], dtypes: Sequence[torch.dtype] | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """What the operator writes, in the base's dtypes or in others, and its counters."""
        dtypes = dtypes or [tensor.dtype for tensor in self.base]
        out = [torch.empty_like(b, dtype=d) for b, d in zip(self.base, dtypes, strict=True)]
        return out, operator(out, *self.arguments())

    def cut(self, blocks: int) -> MergeProblem:
        """Every tensor as slices of so many blocks each."""
        pieces = len(self.base)
        length = blocks * BLOCK
        starts = [range(0, max(1, tensor.numel()), length) for tensor in self.base]
        owner = [piece for piece, all_starts in enumerate(starts) for _ in all_starts]
        flat = [start for all_starts in starts for start in all_starts]

        def slices(tensors: Sequence[Tensor]) -> list[Tensor]:
            cuts = zip(owner, flat, strict=True)
            return [tensors[piece][start : start + length] for piece, start in cuts]

        rows = [slices(self.finetuned[t * pieces : (t + 1) * pieces]) for t in range(self.tasks)]
        return replace(
            self,
            base=slices(self.base),
            finetuned=[tensor for row in rows for tensor in row],
            rescale=self.rescale[owner],
            weights=self.weights[owner],
            scales=self.scales[owner],
            windows=None if self.windows is None else self.windows[owner],
            flat_starts=[
                self.flat_starts[piece] + start for piece, start in zip(owner, flat, strict=True)
            ],
        )


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    """Whether two tensors agree in every bit, the signs of zeros too; NaNs are all alike."""
    number = {2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
    same = actual.view(number) == expected.view(number)
    if actual.is_floating_point():
        same = same | (actual.isnan() & expected.isnan())
    return actual.dtype == expected.dtype and bool(same.all())


def task_vectors(problem: MergeProblem, piece: int) -> list[Tensor]:
    """Each task's differences in one piece, in the dtype of computation."""
    pieces = len(problem.base)
    rows = problem.finetuned[piece::pieces]
    wide = any(tensor.dtype == torch.float64 for tensor in (problem.base[piece], *rows))
    dtype = torch.float64 if wide else torch.float32
    start = problem.base[piece].to(dtype)
    return [
        row.to(dtype) if is_vector else row.to(dtype) - start
        for row, is_vector in zip(rows, problem.vectors, strict=True)
    ]


def random_problem(
    sizes: Sequence[int],
    tasks: int,
    *,
    seed: int = 0,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    windows: str = "none",
    drop: bool = False,
    consensus: bool = False,
    election: int = 0,
    reduction: int = 0,
    extreme: bool = False,
    strict: bool = True,
) -> MergeProblem:
    """A problem whose magnitudes tie often.

    Args:
        sizes: Of the pieces.
        dtypes: Dealt out to the tensors in turn.
        windows: ``"none"``; ``"open"``: all ties stay; ``"ties"``: some of the ties at both ends;
            ``"one key"``: both ends have the same key.
        extreme: Whether some weights are infinite, NaN, huge or subnormal.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def noise(size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def spoiled(values: Tensor) -> Tensor:
        if extreme and values.numel():
            chosen = torch.randint(0, 4 * len(_EXTREME), values.shape, generator=generator)
            table = torch.tensor(_EXTREME, dtype=torch.float64)
            replaced = table[chosen.clamp(max=len(_EXTREME) - 1)]
            return torch.where(chosen < len(_EXTREME), replaced, values)
        return values

    def dtype_of(index: int) -> torch.dtype:
        return dtypes[index % len(dtypes)]

    vectors = [(seed + task) % 3 // 2 for task in range(tasks)]
    start = [(noise(size) * 8).round() / 8 for size in sizes]
    base = [spoiled(values).to(dtype_of(i)) for i, values in enumerate(start)]
    finetuned = []
    for task in range(tasks):
        for i, values in enumerate(start):
            change = (noise(values.numel()) * 4).round() / 16
            row = change if vectors[task] else values + change
            finetuned.append(spoiled(row).to(dtype_of(i + task)))
    pieces = len(sizes)
    ones = torch.ones(pieces, tasks, dtype=torch.float64)
    scales = torch.stack([uniform(pieces) + 0.5, uniform(pieces)], 1)
    scales[:, 0] = torch.where(scales[:, 0] < 0.7, 0.0, scales[:, 0])
    scales[:, 0] = torch.where(scales[:, 0] > 1.0, 1.0, scales[:, 0])
    problem = MergeProblem(
        base=base,
        finetuned=finetuned,
        rescale=ones if seed % 2 else uniform(pieces, tasks) + 0.5,
        weights=uniform(pieces, tasks) * 2 - 0.5,
        scales=scales,
        vectors=vectors,
        windows=None,
        ties_before=None,
        densities=[0.25 + 0.75 * (task % 3) / 2 for task in range(tasks)] if drop else [],
        seed=seed * 2**31 + 5,
        flat_starts=[2**34 + 5 * i + seed for i in range(pieces)],
        election=election,
        reduction=reduction,
        zero_sign=seed % 4 - 1,  # the last marks what cancels out
        lambdas=[0.2 + 0.1 * task for task in range(tasks)] if consensus else [],
        least=min(2, tasks),
        strict=strict,
    )
    return problem if windows == "none" else _with_windows(problem, windows, generator)


def _with_windows(problem: MergeProblem, kind: str, generator: torch.Generator) -> MergeProblem:
    rows = []
    for piece in range(len(problem.base)):
        for change in task_vectors(problem, piece):
            keys = reference.magnitude_keys(change).sort().values
            if not keys.numel():
                rows.append([0, _UNLIMITED, 2**32 - 1, 0])
                continue
            last = keys.numel() - 1
            low, high = int(keys[last // 2]), int(keys[last * 9 // 10])
            if kind == "one key":
                high = low
            some = torch.randint(1, 1 + keys.numel() // 8 + 1, (2,), generator=generator).tolist()
            rows.append(
                [low, _UNLIMITED, high, 0]
                if kind == "open"
                else [low, some[0] + some[1], high, some[0]]
            )
    windows = torch.tensor(rows, dtype=torch.int64).view(-1, problem.tasks, 4)
    if kind == "open":
        return replace(problem, windows=windows)
    ties = reference.magnitude_ties(problem.base, problem.finetuned, problem.vectors, windows)
    before = torch.empty_like(ties)
    first = 0
    for tensor in problem.base:
        end = first + (tensor.numel() + BLOCK - 1) // BLOCK
        before[first:end] = ties[first:end].cumsum(0) - ties[first:end]
        first = end
    return replace(problem, windows=windows, ties_before=before)
