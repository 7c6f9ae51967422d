"""comp_sum_loss (tau = 1.7, generalised cross-entropy) against what people write today."""

from __future__ import annotations

import functools

import torch.nn.functional as F
from torch import Tensor

from .row_losses import RowLossBenchmark
from .targets import usual_targets


def plain(logits: Tensor, target: Tensor) -> Tensor:
    """Generalised cross-entropy, from the log-probability of the label."""
    log_probability = -F.cross_entropy(logits, target, reduction="none")
    return ((1 - (0.7 * log_probability).exp()) / 0.7).mean()


class CompSumLoss(RowLossBenchmark):
    operator = "comp_sum_loss"
    plain = staticmethod(plain)
    # F.cross_entropy is fast on the CPU, so that this baseline is close.
    targets = usual_targets(2.2, 2)

    def function(self):  # type: ignore[no-untyped-def]
        from robustcore.losses import comp_sum_loss

        return functools.partial(comp_sum_loss, tau=1.7)


benchmark = CompSumLoss()
