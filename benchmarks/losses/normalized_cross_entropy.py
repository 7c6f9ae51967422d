"""normalized_cross_entropy against what people write today."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .row_losses import RowLossBenchmark
from .targets import usual_targets


def plain(logits: Tensor, target: Tensor) -> Tensor:
    """The quotient of the two sums."""
    log_probability = F.log_softmax(logits, 1)
    own = log_probability.gather(1, target[:, None])[:, 0]
    return (own / log_probability.sum(1)).mean()


class NormalizedCrossEntropy(RowLossBenchmark):
    operator = "normalized_cross_entropy"
    targets = usual_targets(1.0, 1.0)

    def plain(self, *arguments: Tensor) -> Tensor:
        return plain(*arguments)


benchmark = NormalizedCrossEntropy()
