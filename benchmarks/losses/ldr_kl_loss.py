"""ldr_kl_loss against what people write today."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from .row_losses import RowLossBenchmark
from .targets import usual_targets

_MARGIN = 0.1


def plain(logits: Tensor, target: Tensor) -> Tensor:
    """The formula with lambda = 1 and the margin 0.1."""
    classes = logits.shape[1]
    scores = classes * F.normalize(F.softplus(logits), p=1.0, dim=1)
    own = scores.gather(1, target[:, None])
    margins = _MARGIN * (1 - F.one_hot(target, classes).to(scores.dtype))
    return ((margins + scores - own).logsumexp(1) - math.log(classes)).mean()


class LdrKlLoss(RowLossBenchmark):
    operator = "ldr_kl_loss"
    targets = usual_targets(8.0, 8.0)

    def plain(self, *arguments: Tensor) -> Tensor:
        return plain(*arguments)


benchmark = LdrKlLoss()
