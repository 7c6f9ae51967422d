"""over_parameterized_loss against what people write today."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..accuracy import errors_with_gradients
from ..contestants import compiled
from ..registry import Accuracy, Benchmark, Case, Contestant, Inputs, LeastBytes, Size
from .sizes import rows_by_classes
from .targets import PRECISION, speedups


def plain(logits: Tensor, target: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The loss as published code writes it, after the rows of u and v have been gathered."""
    eps = 1e-4
    label = F.one_hot(target, logits.shape[1]).to(logits.dtype)
    gain = torch.clamp(u.square() * label, 0, 1)
    loss = torch.clamp(v.square() * (1 - label), 0, 1)
    prediction = torch.clamp(F.softmax(logits, dim=1) + gain - loss.detach(), min=eps)
    prediction = torch.clamp(F.normalize(prediction, p=1, eps=eps), min=eps, max=1.0)
    chosen = F.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)
    squares = F.mse_loss(chosen + gain - loss, label, reduction="sum") / len(label)
    return torch.mean(-torch.sum(label * torch.log(prediction), dim=-1)) + squares


class OverParameterizedLoss(Benchmark):
    family = "losses"
    operator = "over_parameterized_loss"
    passes = ("forward+backward",)
    sizes: Sequence[Size] = (
        rows_by_classes(128, 10, "small", quick=True),
        rows_by_classes(1024, 100, "medium", quick=True),
        rows_by_classes(4096, 1000, "large"),
        rows_by_classes(65536, 1024, "large", devices=("cuda",)),
    )
    targets = (
        *speedups({"[128, 10]": (1, 1), "[4096, 1000]": (5, 2)}),
        PRECISION,
        *speedups({"[65536, 1024]": (4, 1.2)}, device="cuda"),
    )

    def inputs(self, case: Case, seed: int) -> Inputs:
        rows, classes = case.size.dimensions["rows"], case.size.dimensions["classes"]
        generator = torch.Generator(case.device).manual_seed(seed)
        options = {"generator": generator, "device": case.device}
        logits = (3 * torch.randn(rows, classes, **options)).requires_grad_()
        u = (0.1 * torch.randn(rows, 1, **options)).requires_grad_()
        v = (0.1 * torch.randn(rows, classes, **options)).requires_grad_()
        target = torch.randint(classes, (rows,), **options)
        return Inputs((logits, target, u, v), (logits, u, v))

    def contestants(self, case: Case) -> Sequence[Callable[[], Contestant]]:
        from robustcore.losses import over_parameterized_loss

        return (
            lambda: Contestant("robustcore", "operator", over_parameterized_loss),
            lambda: Contestant("eager", "eager", plain),
            lambda: compiled(plain),
        )

    def least_bytes(self, case: Case) -> LeastBytes:
        """Logits and v are read once, their gradients are written once."""
        rows, classes = case.size.dimensions["rows"], case.size.dimensions["classes"]
        matrix = rows * classes * 4
        return LeastBytes(2 * matrix + 12 * rows, 2 * matrix + 4 * rows)

    def accuracy(self, device: str, quick: bool) -> Sequence[Accuracy]:
        from robustcore.losses import over_parameterized_loss

        rows = []
        for size in self.sizes[: 2 if quick else 3]:
            inputs = self.inputs(Case(size, "forward+backward", device), 0)
            names = ("loss", "logit gradient", "u gradient", "v gradient")
            errors = errors_with_gradients(over_parameterized_loss, plain, plain, inputs, names)
            rows.append(Accuracy(size.label, errors))
        return rows


benchmark = OverParameterizedLoss()
