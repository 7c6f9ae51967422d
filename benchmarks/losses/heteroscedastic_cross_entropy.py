"""heteroscedastic_cross_entropy against what people write today."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..accuracy import errors_with_gradients
from ..contestants import compiled
from ..registry import Accuracy, Benchmark, Case, Contestant, Inputs, LeastBytes
from ..targets import Target
from .sizes import labelled
from .targets import PRECISION, speedups

_LABEL = "[{rows}, {classes}], rank {rank}, {samples} samples"
_TEMPERATURE = 1.3


def plain(
    mean: Tensor, low_rank: Tensor, diagonal: Tensor, target: Tensor, *, samples: int
) -> Tensor:
    """HET as a user writes it: the logits of all samples at once, [N, S, C]."""
    rows, classes, rank = low_rank.shape
    for_rank = torch.randn(rows, samples, rank, dtype=mean.dtype, device=mean.device)
    for_class = torch.randn(rows, samples, classes, dtype=mean.dtype, device=mean.device)
    logits = mean[:, None] + for_rank @ low_rank.transpose(1, 2) + diagonal[:, None] * for_class
    probability = torch.softmax(logits / _TEMPERATURE, -1).mean(1)
    return F.nll_loss(probability.clamp_min(1e-7).log(), target)


class HeteroscedasticCrossEntropy(Benchmark):
    family = "losses"
    operator = "heteroscedastic_cross_entropy"
    passes = ("forward", "forward+backward")
    sizes = (
        labelled(_LABEL, "small", rows=128, classes=10, rank=6, samples=1000),
        labelled(_LABEL, "medium", rows=32, classes=100, rank=6, samples=1000, quick=True),
        labelled(_LABEL, "large", rows=128, classes=100, rank=6, samples=1000),
        labelled(_LABEL, "large", rows=1024, classes=100, rank=6, samples=1000, devices=("cuda",)),
        labelled(_LABEL, "large", rows=128, classes=1000, rank=15, samples=1000, devices=("cuda",)),
    )
    targets = (
        *speedups(
            {
                "[128, 10], rank 6, 1000 samples": (1, 1),
                "[32, 100], rank 6, 1000 samples": (3, 1.5),
                "[128, 100], rank 6, 1000 samples": (3, 1.5),
            }
        ),
        Target(
            # Eager holds four such tensors at its peak.
            "extra memory: a hundredth of four tensors [N, S, C]",
            "extra_bytes",
            4 * 128 * 1000 * 100 * 4 // 100,
            "[128, 100], rank 6, 1000 samples",
            "forward+backward",
            at_least=False,
        ),
        PRECISION,
        *speedups({"[1024, 100], rank 6, 1000 samples": (4, 1.2)}, device="cuda"),
    )

    def inputs(self, case: Case, seed: int) -> Inputs:
        size = case.size.dimensions
        rows, classes, rank = size["rows"], size["classes"], size["rank"]
        generator = torch.Generator(case.device).manual_seed(seed)
        options = {"generator": generator, "device": case.device}
        leaves = (
            torch.randn(rows, classes, **options),
            0.5 * torch.randn(rows, classes, rank, **options),
            torch.rand(rows, classes, **options) + 1e-3,
        )
        target = torch.randint(classes, (rows,), **options)
        if not case.with_backward:
            return Inputs((*leaves, target))
        leaves = tuple(leaf.requires_grad_() for leaf in leaves)
        return Inputs((*leaves, target), leaves)

    def contestants(self, case: Case) -> Sequence[Callable[[], Contestant]]:
        from robustcore.losses import heteroscedastic_cross_entropy

        samples = case.size.dimensions["samples"]
        function = functools.partial(
            heteroscedastic_cross_entropy, temperature=_TEMPERATURE, samples=samples
        )
        materialised = functools.partial(plain, samples=samples)
        return (
            lambda: Contestant("robustcore", "operator", function),
            lambda: Contestant("eager", "eager", materialised),
            lambda: compiled(materialised),
        )

    def least_bytes(self, case: Case) -> LeastBytes:
        """Inputs are read once and gradients written once: arithmetic decides, not traffic."""
        size = case.size.dimensions
        parameters = size["rows"] * size["classes"] * (size["rank"] + 2) * case.size.dtype.itemsize
        return LeastBytes(parameters + 8 * size["rows"], parameters if case.with_backward else 4)

    def accuracy(self, device: str, quick: bool) -> Sequence[Accuracy]:
        """On the same noise, which the reference makes from the same seed; few samples."""
        from robustcore import reference
        from robustcore.losses import heteroscedastic_cross_entropy

        size = labelled(_LABEL, "small", rows=16, classes=100, rank=6, samples=64)
        options = {"temperature": _TEMPERATURE, "samples": 64, "seed": 1}
        function = functools.partial(heteroscedastic_cross_entropy, **options)
        eager = functools.partial(reference.losses.heteroscedastic_cross_entropy, **options)
        inputs = self.inputs(Case(size, "forward+backward", device), 0)
        names = ("loss", "mean gradient", "low_rank gradient", "diagonal gradient")
        return [Accuracy(size.label, errors_with_gradients(function, eager, eager, inputs, names))]


benchmark = HeteroscedasticCrossEntropy()
