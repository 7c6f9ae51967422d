"""energy_weighted_loss (the adversarial variant) against what people write today."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .targets import usual_targets
from .two_logits import TwoLogits

_BETA = 7.0


class EnergyWeightedLoss(TwoLogits):
    operator = "energy_weighted_loss"
    # Both operators that it is made of have a gradient for the adversarial logits.
    targets = usual_targets(1.0, 1.0, matrices=3)

    @staticmethod
    def plain(natural: Tensor, adversarial: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        """By the formula; published code clamps the probabilities instead of taking logarithms."""
        weights = 1 / torch.log(1 + torch.exp(natural.detach().logsumexp(1).abs()))
        log_p, log_q = natural.log_softmax(1), adversarial.log_softmax(1)
        divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
        cross_entropy = F.nll_loss(log_q, target, reduction="none")
        return (weights * (cross_entropy + _BETA * divergence)).mean()


benchmark = EnergyWeightedLoss()
