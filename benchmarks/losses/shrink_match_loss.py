"""shrink_match_loss against a loop over rows, as published, and against sorting all rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..accuracy import errors_with_gradients
from ..contestants import compiled
from ..registry import Accuracy, Benchmark, Case, Contestant, Inputs, LeastBytes
from ..targets import Target
from .sizes import rows_by_classes
from .targets import PRECISION, extra_memory, speedups

_THRESHOLD = 0.95


def row_loop(weak: Tensor, strong: Tensor) -> Tensor:
    """Row by row. Sums of all tails at once and unbound rows make it faster than published loops,
    which sum each tail anew and whose slices cost a full gradient matrix each."""
    total = strong.new_zeros(())
    target = torch.zeros(1, dtype=torch.int64, device=strong.device)
    for row, logits in zip(weak.softmax(1).unbind(), strong.unbind()):
        p, order = row.sort(descending=True)
        if p[0] >= _THRESHOLD:
            continue
        fits = p[0] / (p[0] + p.flip(0).cumsum(0).flip(0)[1:]) >= _THRESHOLD
        if not fits.any():
            continue
        c = 1 + int(fits.int().argmax())
        kept = torch.cat([order[:1], order[c:]])
        total = total + p[0] * F.cross_entropy(logits[kept].unsqueeze(0), target)
    return total / len(weak)


def sorted_rows(weak: Tensor, strong: Tensor) -> Tensor:
    """All rows at once, with sorted copies."""
    p, order = weak.softmax(1).sort(dim=1, descending=True)
    tails = p.flip(1).cumsum(1).flip(1)
    fits = p[:, :1] / (p[:, :1] + tails) >= _THRESHOLD
    certain = p[:, 0] >= _THRESHOLD
    weight = torch.where(~certain & fits[:, 1:].any(1), p[:, 0], 0.0)
    first = torch.arange(p.shape[1], device=p.device) == 0
    logits = strong.gather(1, order).masked_fill(~(fits | first), -torch.inf)
    target = order.new_zeros(len(order))
    return (weight * F.cross_entropy(logits, target, reduction="none")).mean()


class ShrinkMatchLoss(Benchmark):
    family = "losses"
    operator = "shrink_match_loss"
    passes = ("forward", "forward+backward")
    sizes = (
        rows_by_classes(128, 10, "small", quick=True),
        rows_by_classes(1024, 100, "medium", quick=True),
        rows_by_classes(4096, 1000, "large"),
        rows_by_classes(65536, 1024, "large", devices=("cuda",)),
    )
    targets = (
        Target(
            "at least 50 times as fast as a loop over rows, compiled or not",
            "speedup:peer",
            50,
            "[4096, 1000]",
            "forward+backward",
        ),
        *speedups({"[128, 10]": (1, 1), "[1024, 100]": (1, 1)}, device=""),
        extra_memory(1),
        PRECISION,
    )

    def inputs(self, case: Case, seed: int) -> Inputs:
        rows, classes = case.size.dimensions["rows"], case.size.dimensions["classes"]
        generator = torch.Generator(case.device).manual_seed(seed)
        options = {"generator": generator, "device": case.device}
        # A quarter of the rows is certain at [128, 10], 2 % at [4096, 1000]; all others learn.
        weak = 4 * torch.randn(rows, classes, **options)
        strong = torch.randn(rows, classes, **options)
        if not case.with_backward:
            return Inputs((weak, strong))
        return Inputs((weak, strong.requires_grad_()), (strong,))

    def contestants(self, case: Case) -> Sequence[Callable[[], Contestant]]:
        from robustcore.losses import shrink_match_loss

        return (
            lambda: Contestant("robustcore", "operator", shrink_match_loss),
            lambda: Contestant("eager", "eager", sorted_rows, note="sorts all rows at once"),
            lambda: compiled(sorted_rows),
            lambda: Contestant("row loop", "peer", row_loop, note="one row after another"),
            lambda: Contestant(
                "compiled row loop",
                "peer",
                torch.compile(row_loop),
                note="its branches depend on data: torch.compile leaves the loop to Python",
            ),
        )

    def least_bytes(self, case: Case) -> LeastBytes:
        """Both views are read once; backward, one gradient is written."""
        matrix = case.size.dimensions["rows"] * case.size.dimensions["classes"] * 4
        return LeastBytes(2 * matrix, matrix if case.with_backward else 4)

    def accuracy(self, device: str, quick: bool) -> Sequence[Accuracy]:
        from robustcore.losses import shrink_match_loss

        rows = []
        for size in self.sizes[: 2 if quick else 3]:
            inputs = self.inputs(Case(size, "forward+backward", device), 0)
            names = ("loss", "gradient")
            errors = errors_with_gradients(
                shrink_match_loss, sorted_rows, sorted_rows, inputs, names
            )
            rows.append(Accuracy(size.label, errors))
        return rows


benchmark = ShrinkMatchLoss()
