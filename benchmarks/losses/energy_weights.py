"""energy_weights against what people write today."""

from __future__ import annotations

import torch
from torch import Tensor

from ..registry import Case, Inputs, LeastBytes
from .row_losses import RowLossBenchmark
from .targets import PRECISION, speedups


class EnergyWeights(RowLossBenchmark):
    operator = "energy_weights"
    # The weights are constants: there is no backward pass.
    passes = ("forward",)
    targets = (
        *speedups({"[128, 10]": (1, 1), "[4096, 1000]": (1, 1)}, passes="forward"),
        PRECISION,
        *speedups({"[65536, 1024]": (4, 1.2)}, passes="forward", device="cuda"),
    )
    quantities = ("weights",)

    def plain(self, *arguments: Tensor) -> Tensor:
        """The formula, which overflows for energies beyond 88."""
        (logits,) = arguments
        return 1 / torch.log(1 + torch.exp(logits.logsumexp(1).abs()))

    def inputs(self, case: Case, seed: int) -> Inputs:
        return Inputs(super().inputs(case, seed).arguments[:1])

    def least_bytes(self, case: Case) -> LeastBytes:
        """The logits are read once; the weights are written in float32."""
        rows, classes = case.size.dimensions["rows"], case.size.dimensions["classes"]
        return LeastBytes(rows * classes * case.size.dtype.itemsize, 4 * rows)


benchmark = EnergyWeights()
