"""smooth_adversarial_loss against what people write today."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ._two_logits import TwoLogits, targets


class SmoothAdversarialLoss(TwoLogits):
    operator = "smooth_adversarial_loss"
    targets = targets(2.5, 2)

    @staticmethod
    def plain(logits: Tensor, adversarial: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        moved = adversarial - logits
        change = moved.gather(1, target[:, None]) - moved
        norm = torch.linalg.vector_norm(change, dim=1)
        return F.cross_entropy(logits, target) + norm.mean()

    def function(self) -> Callable[..., Tensor]:
        from robustcore.losses import smooth_adversarial_loss

        return smooth_adversarial_loss


benchmark = SmoothAdversarialLoss()
