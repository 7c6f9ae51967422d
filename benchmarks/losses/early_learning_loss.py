"""early_learning_loss against what people write today."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..accuracy import errors_with_gradients
from ..contestants import compiled
from ..registry import Accuracy, Benchmark, Case, Contestant, Inputs, LeastBytes
from .sizes import rows_by_classes
from .targets import PRECISION, speedups

_BETA, _STRENGTH = 0.7, 3.0


def plain(logits: Tensor, target: Tensor, index: Tensor, state: Tensor) -> Tensor:
    """The loss as published code writes it: for distinct examples, in full tensors."""
    prediction = F.softmax(logits, dim=1).clamp(1e-4, 1.0 - 1e-4)
    detached = prediction.detach()
    moved = _BETA * state[index] + (1 - _BETA) * detached / detached.sum(1, keepdim=True)
    state[index] = moved
    regulariser = (1 - (moved * prediction).sum(1)).log().mean()
    return F.cross_entropy(logits, target) + _STRENGTH * regulariser


def _operator(logits: Tensor, target: Tensor, index: Tensor, state: Tensor) -> Tensor:
    from robustcore.losses import early_learning_loss

    return early_learning_loss(logits, target, index, state, beta=_BETA, strength=_STRENGTH)


class EarlyLearningLoss(Benchmark):
    family = "losses"
    operator = "early_learning_loss"
    passes = ("forward+backward",)
    sizes = (
        rows_by_classes(128, 10, "small", quick=True),
        rows_by_classes(1024, 100, "medium", quick=True),
        rows_by_classes(4096, 1000, "large"),
        rows_by_classes(65536, 1024, "large", devices=("cuda",)),
    )
    targets = (
        *speedups({"[128, 10]": (1, 1), "[4096, 1000]": (6, 2)}),
        PRECISION,
        *speedups({"[65536, 1024]": (4, 1.2)}, device="cuda"),
    )

    def inputs(self, case: Case, seed: int) -> Inputs:
        rows, classes = case.size.dimensions["rows"], case.size.dimensions["classes"]
        generator = torch.Generator(case.device).manual_seed(seed)
        options = {"generator": generator, "device": case.device}
        logits = (3 * torch.randn(rows, classes, **options)).requires_grad_()
        target = torch.randint(classes, (rows,), **options)
        index = torch.randperm(2 * rows, **options)[:rows]
        # As after some epochs.
        state = 0.9 * F.softmax(torch.randn(2 * rows, classes, **options), dim=1)
        return Inputs((logits, target, index, state), (logits,))

    def contestants(self, case: Case) -> Sequence[Callable[[], Contestant]]:
        return (
            lambda: Contestant("robustcore", "operator", _operator),
            lambda: Contestant("eager", "eager", plain),
            lambda: compiled(plain),
        )

    def least_bytes(self, case: Case) -> LeastBytes:
        """Logits and state rows are read once; state rows and the gradient are written once."""
        rows, classes = case.size.dimensions["rows"], case.size.dimensions["classes"]
        matrix = rows * classes * 4
        return LeastBytes(2 * matrix + 16 * rows, 2 * matrix)

    def accuracy(self, device: str, quick: bool) -> Sequence[Accuracy]:
        rows = []
        for size in self.sizes[: 2 if quick else 3]:
            inputs = self.inputs(Case(size, "forward+backward", device), 0)
            errors = errors_with_gradients(
                _on_a_copy(_operator),
                _on_a_copy(plain),
                _on_a_copy(plain),
                inputs,
                ("loss", "gradient"),
            )
            rows.append(Accuracy(size.label, errors))
        return rows


def _on_a_copy(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """So that each starts from the same state."""

    def call(logits: Tensor, target: Tensor, index: Tensor, state: Tensor) -> Tensor:
        return function(logits, target, index, state.clone())

    return call


benchmark = EarlyLearningLoss()
