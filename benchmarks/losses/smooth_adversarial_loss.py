"""smooth_adversarial_loss against what people write today."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .targets import usual_targets
from .two_logits import TwoLogits


class SmoothAdversarialLoss(TwoLogits):
    operator = "smooth_adversarial_loss"
    targets = usual_targets(2.5, 2, matrices=2)

    @staticmethod
    def plain(logits: Tensor, adversarial: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        moved = adversarial - logits
        change = moved.gather(1, target[:, None]) - moved
        norm = torch.linalg.vector_norm(change, dim=1)
        return F.cross_entropy(logits, target) + norm.mean()


benchmark = SmoothAdversarialLoss()
