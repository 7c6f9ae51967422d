"""What the benchmarks of losses of two logit tensors share."""

from __future__ import annotations

from typing import ClassVar

import torch

from ..registry import Case, Inputs, LeastBytes
from .row_losses import RowLossBenchmark
from .sizes import rows_by_classes

__all__ = ["TwoLogits"]


class TwoLogits(RowLossBenchmark):
    """A loss of two logit tensors of one shape."""

    sizes = (
        rows_by_classes(128, 10, "small", quick=True),
        rows_by_classes(4096, 1000, "large", quick=True),
        rows_by_classes(65536, 1024, "large", devices=("cuda",)),
        rows_by_classes(4096, 32768, "large", devices=("cuda",)),
        rows_by_classes(4096, 32768, "large", devices=("cuda",), dtype=torch.bfloat16),
    )
    quantities = ("loss", "logits1 gradient", "logits2 gradient")
    with_gate: ClassVar[bool] = False
    #: Whether there is no target and the result has the shape of the logits.
    of_all_classes: ClassVar[bool] = False

    def inputs(self, case: Case, seed: int) -> Inputs:
        rows, classes = case.size.dimensions["rows"], case.size.dimensions["classes"]
        generator = torch.Generator(case.device).manual_seed(seed)
        options = {"generator": generator, "device": case.device}
        shapes = [(rows, classes), (rows, classes), *([(rows,)] if self.with_gate else [])]
        leaves = tuple(torch.randn(shape, **options).to(case.size.dtype) for shape in shapes)
        target = () if self.of_all_classes else (torch.randint(classes, (rows,), **options),)
        if not case.with_backward:
            return Inputs((*leaves, *target))
        grad = torch.randn(rows, classes, **options).to(case.size.dtype)
        leaves = tuple(leaf.requires_grad_() for leaf in leaves)
        return Inputs((*leaves, *target), leaves, grad if self.of_all_classes else None)

    def least_bytes(self, case: Case) -> LeastBytes:
        """Both logit tensors are read once; backward, both gradients are written once.

        Where the result is of their shape, it is written, and backward they are read again together
        with the incoming gradient.
        """
        rows, classes = case.size.dimensions["rows"], case.size.dimensions["classes"]
        matrix = rows * classes * case.size.dtype.itemsize
        read, written = 2 * matrix + 8 * rows, 2 * matrix if case.with_backward else 4
        if self.of_all_classes:
            written = 3 * matrix if case.with_backward else matrix
            read += 3 * matrix if case.with_backward else 0
        return LeastBytes(read, written)
