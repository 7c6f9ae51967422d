"""crossmax against the three lines of PyTorch that the paper gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..accuracy import errors_with_gradients
from ..contestants import compiled
from ..registry import Accuracy, Benchmark, Case, Contestant, Inputs, LeastBytes
from .sizes import labelled
from .targets import PRECISION, speedups

_LABEL = "[{batch}, {members}, {classes}]"


def plain(logits: Tensor) -> Tensor:
    z = logits - logits.max(2, keepdim=True).values
    z = z - z.max(1, keepdim=True).values
    return z.topk(3, dim=1).values[:, 2]


class CrossMax(Benchmark):
    family = "losses"
    operator = "crossmax"
    passes = ("forward", "forward+backward")
    sizes = (
        labelled(_LABEL, "small", batch=128, members=5, classes=10, quick=True),
        labelled(_LABEL, "medium", batch=256, members=10, classes=100, quick=True),
        labelled(_LABEL, "large", batch=512, members=10, classes=1000),
        labelled(_LABEL, "large", batch=8192, members=10, classes=1000, devices=("cuda",)),
    )
    targets = (
        *speedups(
            {"[128, 5, 10]": (1, 1), "[256, 10, 100]": (4, 1.2), "[512, 10, 1000]": (4, 1.2)},
            device="",
        ),
        PRECISION,
    )

    def inputs(self, case: Case, seed: int) -> Inputs:
        batch, members, classes = case.size.dimensions.values()
        generator = torch.Generator(case.device).manual_seed(seed)
        options = {"generator": generator, "device": case.device}
        logits = torch.randn(batch, members, classes, **options)
        if not case.with_backward:
            return Inputs((logits,))
        grad_output = torch.randn(batch, classes, **options)
        return Inputs((logits.requires_grad_(),), (logits,), grad_output)

    def contestants(self, case: Case) -> Sequence[Callable[[], Contestant]]:
        from robustcore.losses import crossmax

        return (
            lambda: Contestant("robustcore", "operator", crossmax),
            lambda: Contestant("eager", "eager", plain),
            lambda: compiled(plain),
        )

    def least_bytes(self, case: Case) -> LeastBytes:
        """Logits are read and results written once; backward the other way round."""
        batch, members, classes = case.size.dimensions.values()
        results = 4 * batch * classes
        logits = members * results
        if case.with_backward:
            return LeastBytes(logits + results, results + logits)
        return LeastBytes(logits, results)

    def accuracy(self, device: str, quick: bool) -> Sequence[Accuracy]:
        from robustcore.losses import crossmax

        rows = []
        for size in self.sizes[: 2 if quick else 3]:
            inputs = self.inputs(Case(size, "forward+backward", device), 0)
            errors = errors_with_gradients(crossmax, plain, plain, inputs, ("result", "gradient"))
            rows.append(Accuracy(size.label, errors))
        return rows


benchmark = CrossMax()
