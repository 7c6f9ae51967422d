"""mixture_cross_entropy against what people write today."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .targets import usual_targets
from .two_logits import TwoLogits


class MixtureCrossEntropy(TwoLogits):
    operator = "mixture_cross_entropy"
    targets = usual_targets(8, 2.5, matrices=2)
    with_gate = True
    quantities = (*TwoLogits.quantities, "gate gradient")

    @staticmethod
    def plain(logits1: Tensor, logits2: Tensor, gate: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        """In log space, as log((1 - a) p1 + a p2) loses small probabilities."""
        first = F.logsigmoid(-gate)[:, None] + logits1.log_softmax(1)
        second = F.logsigmoid(gate)[:, None] + logits2.log_softmax(1)
        return F.nll_loss(torch.logaddexp(first, second), target)


benchmark = MixtureCrossEntropy()
