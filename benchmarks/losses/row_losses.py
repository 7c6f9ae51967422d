"""What benchmarks of losses over one matrix of logits share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..accuracy import errors_with_gradients
from ..contestants import compiled
from ..registry import Accuracy, Benchmark, Case, Contestant, Inputs, LeastBytes
from ..targets import Target
from .sizes import rows_by_classes

__all__ = ["RowLossBenchmark", "speed_targets"]


def speed_targets(eager: float, compiled: float) -> tuple[Target, ...]:
    """Forward and backward: never slower at [128, 10], as much faster as given at [4096, 1000]."""
    kinds = (("eager", "eager", eager), ("compiled", "torch.compile", compiled))
    on_cpu = [
        Target(
            f"at least {bound} times as fast as {against}",
            f"speedup:{kind}",
            bound,
            size,
            "forward+backward",
        )
        for kind, against, large in kinds
        for size, bound in (("[128, 10]", 1.0), ("[4096, 1000]", large))
    ]
    on_cuda = [
        Target(label, metric, bound, size, "forward+backward", device="cuda")
        for size in ("[65536, 1024]", "[4096, 32768]")
        for label, metric, bound in (
            ("at least 85 % of the copy bandwidth", "fraction_of_copy", 0.85),
            ("at least 4 times as fast as eager", "speedup:eager", 4.0),
            ("at least 1.2 times as fast as torch.compile", "speedup:compiled", 1.2),
        )
    ]
    return (*on_cpu, *on_cuda)


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
        found = []
        for size in self.sizes[: 2 if quick else 4]:
            inputs = self.inputs(Case(size, "forward+backward", device), 0)
            names = ("loss", "logits gradient")
            errors = errors_with_gradients(self.function(), self.plain, self.plain, inputs, names)
            found.append(Accuracy(size.label, errors))
        return found
