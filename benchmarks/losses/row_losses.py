"""What benchmarks of losses over rows of logits share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..accuracy import errors_with_gradients
from ..contestants import compiled
from ..registry import Accuracy, Benchmark, Case, Contestant, Inputs, LeastBytes
from .sizes import rows_by_classes

__all__ = ["RowLossBenchmark"]


class RowLossBenchmark(Benchmark):
    """``operator(logits, target, *others)`` against ``plain`` of the same arguments."""

    family = "losses"
    passes = ("forward", "forward+backward")
    sizes = (
        rows_by_classes(128, 10, "small", quick=True),
        rows_by_classes(1024, 100, "medium", quick=True),
        rows_by_classes(4096, 1000, "large"),
        rows_by_classes(512, 32000, "large"),
        rows_by_classes(65536, 1024, "large", devices=("cuda",)),
        rows_by_classes(4096, 32768, "large", devices=("cuda",)),
        rows_by_classes(4096, 32768, "large", devices=("cuda",), dtype=torch.bfloat16),
    )
    #: Names of the result and of the gradients, in the order of the leaves.
    quantities: ClassVar[tuple[str, ...]] = ("loss", "logits gradient")

    def function(self) -> Callable[..., Tensor]:
        """The operator."""
        from robustcore import losses

        return getattr(losses, self.operator)  # type: ignore[no-any-return]

    def plain(self, *arguments: Tensor) -> Tensor:
        """The loss as a user writes it in PyTorch."""
        raise NotImplementedError

    def others(self, rows: int, options: dict[str, object]) -> tuple[Tensor, ...]:
        """Arguments after the target."""
        return ()

    def inputs(self, case: Case, seed: int) -> Inputs:
        rows, classes = case.size.dimensions["rows"], case.size.dimensions["classes"]
        generator = torch.Generator(case.device).manual_seed(seed)
        options = {"generator": generator, "device": case.device}
        logits = torch.randn(rows, classes, **options).to(case.size.dtype)
        target = torch.randint(classes, (rows,), **options)
        others = self.others(rows, options)
        if not case.with_backward:
            return Inputs((logits, target, *others))
        logits = logits.requires_grad_()
        return Inputs((logits, target, *others), (logits,))

    def contestants(self, case: Case) -> Sequence[Callable[[], Contestant]]:
        function, plain = self.function(), self.plain
        return (
            lambda: Contestant("robustcore", "operator", function),
            lambda: Contestant("eager", "eager", plain),
            lambda: compiled(plain),
        )

    def least_bytes(self, case: Case) -> LeastBytes:
        """The logits are read once; backward, their gradient is written once."""
        rows, classes = case.size.dimensions["rows"], case.size.dimensions["classes"]
        logits = rows * classes * case.size.dtype.itemsize
        return LeastBytes(logits + rows * 8, logits if case.with_backward else 4)

    def accuracy(self, device: str, quick: bool) -> Sequence[Accuracy]:
        """Over the sizes that float64 fits beside on any machine."""
        found = []
        for size in self.sizes:
            if "cpu" not in size.devices or (quick and not size.quick):
                continue
            inputs = self.inputs(Case(size, self.passes[-1], device), 0)
            errors = errors_with_gradients(
                self.function(), self.plain, self.plain, inputs, self.quantities
            )
            found.append(Accuracy(size.label, errors))
        return found
