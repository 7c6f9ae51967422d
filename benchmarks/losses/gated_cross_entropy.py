"""gated_cross_entropy against what people write today."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..accuracy import errors_with_gradients
from ..contestants import compiled
from ..registry import Accuracy, Benchmark, Case, Contestant, Inputs, LeastBytes, Unavailable
from .sizes import rows_by_classes
from .targets import PRECISION, bandwidth_on_cuda, extra_memory, speedups


def plain(prediction: Tensor, noise: Tensor, gate: Tensor, target: Tensor) -> Tensor:
    """Pi-DUAL's loss as a user writes it, without the reference's handling of masked classes."""
    g = torch.sigmoid(gate)[:, None]
    return F.cross_entropy((1 - g) * prediction + g * noise, target)


class GatedCrossEntropy(Benchmark):
    family = "losses"
    operator = "gated_cross_entropy"
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
    targets = (
        *speedups(
            {
                "[128, 10]": (2, 2.5),
                "[1024, 100]": (4, 4),
                "[4096, 1000]": (6, 3),
                "[512, 32000]": (6, 2),
            }
        ),
        extra_memory(2),
        extra_memory(2, 512, 32000),
        PRECISION,
        *bandwidth_on_cuda(compiled=1.4),
    )

    def inputs(self, case: Case, seed: int) -> Inputs:
        rows, classes = case.size.dimensions["rows"], case.size.dimensions["classes"]
        generator = torch.Generator(case.device).manual_seed(seed)
        options = {"generator": generator, "device": case.device}
        prediction = torch.randn(rows, classes, **options).to(case.size.dtype)
        noise = torch.randn(rows, classes, **options).to(case.size.dtype)
        gate = torch.randn(rows, **options).to(case.size.dtype)
        target = torch.randint(classes, (rows,), **options)
        leaves = (prediction, noise, gate)
        if not case.with_backward:
            return Inputs((*leaves, target))
        leaves = tuple(leaf.requires_grad_() for leaf in leaves)
        return Inputs((*leaves, target), leaves)

    def contestants(self, case: Case) -> Sequence[Callable[[], Contestant]]:
        from robustcore.losses import gated_cross_entropy

        return (
            lambda: Contestant("robustcore", "operator", gated_cross_entropy),
            lambda: Contestant("eager", "eager", plain),
            lambda: compiled(plain),
            lambda: _liger(case),
        )

    def least_bytes(self, case: Case) -> LeastBytes:
        """Both logit tensors are read once; backward, both gradients are written once."""
        rows, classes = case.size.dimensions["rows"], case.size.dimensions["classes"]
        logits = 2 * rows * classes * case.size.dtype.itemsize
        vectors = rows * (case.size.dtype.itemsize + 8)
        return LeastBytes(logits + vectors, logits if case.with_backward else 4)

    def accuracy(self, device: str, quick: bool) -> Sequence[Accuracy]:
        from robustcore.losses import gated_cross_entropy

        rows = []
        for size in self.sizes[: 2 if quick else 4]:
            inputs = self.inputs(Case(size, "forward+backward", device), 0)
            names = ("loss", "prediction gradient", "noise gradient", "gate gradient")
            errors = errors_with_gradients(gated_cross_entropy, plain, plain, inputs, names)
            rows.append(Accuracy(size.label, errors))
        return rows


def _liger(case: Case) -> Contestant:
    """The closest public kernel: it fuses the cross-entropy; the mixing stays in PyTorch."""
    name = "liger-kernel"
    if case.device != "cuda":
        raise Unavailable(name, "its kernels need CUDA")
    try:
        from liger_kernel.transformers.functional import liger_cross_entropy
    except ImportError:
        raise Unavailable(name, "not installed") from None

    def mixed(prediction: Tensor, noise: Tensor, gate: Tensor, target: Tensor) -> Tensor:
        g = torch.sigmoid(gate)[:, None]
        loss = liger_cross_entropy((1 - g) * prediction + g * noise, target)
        return loss[0] if isinstance(loss, tuple) else loss

    return Contestant(name, "peer", mixed, note="mixing in PyTorch, cross-entropy by liger-kernel")


benchmark = GatedCrossEntropy()
