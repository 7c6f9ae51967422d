"""symmetric_cross_entropy against what people write today."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from .row_losses import RowLossBenchmark
from .targets import usual_targets


def plain(logits: Tensor, target: Tensor) -> Tensor:
    """As published implementations have it, without their clamps of the probabilities."""
    probability = F.softmax(logits, 1).gather(1, target[:, None])[:, 0]
    reverse = -math.log(1e-4) * (1 - probability).mean()
    return 0.1 * F.cross_entropy(logits, target) + reverse


class SymmetricCrossEntropy(RowLossBenchmark):
    operator = "symmetric_cross_entropy"
    targets = usual_targets(1.0, 1.0)

    def plain(self, *arguments: Tensor) -> Tensor:
        return plain(*arguments)


benchmark = SymmetricCrossEntropy()
