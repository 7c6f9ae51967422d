"""spherical_z_loss against what people write today."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .row_losses import RowLossBenchmark
from .targets import usual_targets


def plain(logits: Tensor, target: Tensor) -> Tensor:
    """Standardise, pick, softplus."""
    own = logits.gather(1, target[:, None])[:, 0]
    standard = (own - logits.mean(1)) / logits.std(1, correction=0)
    return F.softplus(-standard).mean()


class SphericalZLoss(RowLossBenchmark):
    operator = "spherical_z_loss"
    targets = usual_targets(1.0, 1.0)

    def plain(self, *arguments: Tensor) -> Tensor:
        return plain(*arguments)


benchmark = SphericalZLoss()
