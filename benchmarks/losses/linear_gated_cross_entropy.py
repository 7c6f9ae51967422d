"""linear_gated_cross_entropy against two linear layers and a loss of their logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..accuracy import errors_with_gradients
from ..contestants import compiled
from ..registry import Accuracy, Benchmark, Case, Contestant, Inputs, LeastBytes
from ..targets import Target
from .gated_cross_entropy import plain
from .sizes import labelled
from .targets import PRECISION, speedups


def two_plain_steps(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    noise_x: Tensor,
    noise_weight: Tensor,
    noise_bias: Tensor,
    gate: Tensor,
    target: Tensor,
) -> Tensor:
    """Two linear layers, then Pi-DUAL's loss as a user writes it."""
    logits = F.linear(x, weight, bias)
    return plain(logits, F.linear(noise_x, noise_weight, noise_bias), gate, target)


def two_steps(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    noise_x: Tensor,
    noise_weight: Tensor,
    noise_bias: Tensor,
    gate: Tensor,
    target: Tensor,
) -> Tensor:
    """Two linear layers, then the fused loss of their logits."""
    from robustcore.losses import gated_cross_entropy

    logits = F.linear(x, weight, bias)
    noise_logits = F.linear(noise_x, noise_weight, noise_bias)
    return gated_cross_entropy(logits, noise_logits, gate, target)


_LABEL = "[{rows}, {classes}] of {width}"
_SMALL, _LARGE = "[128, 10] of 64", "[2048, 32000] of 256"


class LinearGatedCrossEntropy(Benchmark):
    family = "losses"
    operator = "linear_gated_cross_entropy"
    passes = ("forward", "forward+backward")
    sizes = (
        labelled(_LABEL, "small", rows=128, classes=10, width=64, quick=True),
        labelled(_LABEL, "medium", rows=1024, classes=1000, width=256),
        labelled(_LABEL, "large", rows=2048, classes=32000, width=256),
        labelled(
            _LABEL,
            "large",
            rows=8192,
            classes=131072,
            width=2048,
            devices=("cuda",),
            dtype=torch.bfloat16,
        ),
    )
    targets = (
        *speedups({_SMALL: (1, 1)}),
        Target(
            "at most 1.1 times the time of two steps",
            "speedup:peer",
            1 / 1.1,
            _LARGE,
            "forward+backward",
        ),
        Target(
            "at most 1/8 of the extra memory of two steps, gradients included",
            "memory_ratio:peer",
            1 / 8,
            _LARGE,
            "forward+backward",
            at_least=False,
        ),
        Target(
            "the same beside the gradients",
            "memory_ratio_beside_gradients:peer",
            1 / 8,
            _LARGE,
            "forward+backward",
            at_least=False,
        ),
        PRECISION,
    )

    def inputs(self, case: Case, seed: int) -> Inputs:
        dimensions = case.size.dimensions
        rows, classes, width = (dimensions[name] for name in ("rows", "classes", "width"))
        generator = torch.Generator(case.device).manual_seed(seed)
        options = {"generator": generator, "device": case.device}

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(*shape, **options).mul_(scale).to(case.size.dtype)

        leaves = (
            normal(rows, width),
            normal(classes, width, scale=width**-0.5),
            normal(classes),
            normal(rows, width),
            normal(classes, width, scale=width**-0.5),
            normal(classes),
            normal(rows),
        )
        target = torch.randint(classes, (rows,), **options)
        if not case.with_backward:
            return Inputs((*leaves, target))
        leaves = tuple(leaf.requires_grad_() for leaf in leaves)
        return Inputs((*leaves, target), leaves)

    def contestants(self, case: Case) -> Sequence[Callable[[], Contestant]]:
        from robustcore.losses import linear_gated_cross_entropy

        return (
            lambda: Contestant("robustcore", "operator", linear_gated_cross_entropy),
            lambda: Contestant("eager", "eager", two_plain_steps),
            lambda: Contestant(
                "two steps", "peer", two_steps, note="two linear layers, then gated_cross_entropy"
            ),
            lambda: compiled(two_plain_steps),
        )

    def least_bytes(self, case: Case) -> LeastBytes:
        """The inputs once, the gradients once; matrix products are bound by arithmetic instead."""
        rows, classes, width = case.size.dimensions.values()
        inputs = 2 * (rows * width + classes * width + classes) + rows
        read = inputs * case.size.dtype.itemsize + 8 * rows
        return LeastBytes(read, inputs * case.size.dtype.itemsize if case.with_backward else 4)

    def accuracy(self, device: str, quick: bool) -> Sequence[Accuracy]:
        from robustcore.losses import linear_gated_cross_entropy

        names = (
            "loss",
            *(
                f"{name} gradient"
                for name in (
                    "features",
                    "weight",
                    "bias",
                    "noise features",
                    "noise weight",
                    "noise bias",
                    "gate",
                )
            ),
        )
        rows = []
        for size in self.sizes[: 1 if quick else 2]:
            inputs = self.inputs(Case(size, "forward+backward", device), 0)
            errors = errors_with_gradients(
                linear_gated_cross_entropy, two_plain_steps, two_plain_steps, inputs, names
            )
            rows.append(Accuracy(size.label, errors))
        return rows


benchmark = LinearGatedCrossEntropy()
