"""What the benchmarks of losses of two logit tensors share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..accuracy import errors_with_gradients
from ..contestants import compiled
from ..registry import Accuracy, Benchmark, Case, Contestant, Inputs, LeastBytes
from ..targets import Target
from .sizes import rows_by_classes

__all__ = ["TwoLogits", "targets"]


SIZES = (
    rows_by_classes(128, 10, "small", quick=True),
    rows_by_classes(4096, 1000, "large", quick=True),
    rows_by_classes(65536, 1024, "large", devices=("cuda",)),
    rows_by_classes(4096, 32768, "large", devices=("cuda",)),
    rows_by_classes(4096, 32768, "large", devices=("cuda",), dtype=torch.bfloat16),
)


def targets(eager: float, against_compiled: float, matrices: int = 2) -> tuple[Target, ...]:
    """At [4096, 1000] on the CPU the given ratios, at [128, 10] no loss of time; the rest alike.

    ``matrices``: how many matrices of the logits' shape the results and gradients are.
    """
    both = "forward+backward"
    speeds = (
        ("eager", "as fast as eager", eager),
        ("compiled", "as fast as torch.compile", against_compiled),
    )
    on_cpu = [
        Target(f"at least {bound} times {words}", f"speedup:{kind}", bound, size, both)
        for kind, words, large in speeds
        for size, bound in (("[128, 10]", 1.0), ("[4096, 1000]", large))
    ]
    on_gpu = [
        Target(words, metric, bound, size, both, device="cuda")
        for size in ("[65536, 1024]", "[4096, 32768]")
        for words, metric, bound in (
            ("at least 85 % of the copy bandwidth", "fraction_of_copy", 0.85),
            ("at least 4 times as fast as eager", "speedup:eager", 4.0),
            ("at least 1.2 times as fast as torch.compile", "speedup:compiled", 1.2),
        )
    ]
    memory = Target(
        f"extra memory: {matrices} matrices, O(N) and 4 MiB",
        "extra_bytes",
        matrices * 4096 * 1000 * 4 + 256 * 4096 + (4 << 20),
        "[4096, 1000]",
        both,
        at_least=False,
    )
    precise = Target(
        "fp32 error at most 4 times that of eager", "error_ratio", 4.0, at_least=False, device=""
    )
    return (*on_cpu, memory, precise, *on_gpu)


class TwoLogits(Benchmark):
    """A loss of two logit tensors of one shape."""

    family = "losses"
    passes = ("forward", "forward+backward")
    sizes = SIZES
    #: Names of the leaves, in the order of the arguments.
    leaves: ClassVar[tuple[str, ...]] = ("logits1 gradient", "logits2 gradient")
    with_gate: ClassVar[bool] = False
    #: Whether there is no target and the result has the shape of the logits.
    of_all_classes: ClassVar[bool] = False

    @staticmethod
    @abstractmethod
    def plain(*arguments: Tensor) -> Tensor:
        """What people write today, without the reference's handling of masked classes."""

    @abstractmethod
    def function(self) -> Callable[..., Tensor]:
        """The operator."""

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

    def contestants(self, case: Case) -> Sequence[Callable[[], Contestant]]:
        return (
            lambda: Contestant("robustcore", "operator", self.function()),
            lambda: Contestant("eager", "eager", self.plain),
            lambda: compiled(self.plain),
        )

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

    def accuracy(self, device: str, quick: bool) -> Sequence[Accuracy]:
        rows = []
        for size in self.sizes[:2]:
            inputs = self.inputs(Case(size, "forward+backward", device), 0)
            names = ("loss", *self.leaves)
            errors = errors_with_gradients(self.function(), self.plain, self.plain, inputs, names)
            rows.append(Accuracy(size.label, errors))
        return rows
