"""pair_kl_divergence against what people write today."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .targets import usual_targets
from .two_logits import TwoLogits


class PairKLDivergence(TwoLogits):
    operator = "pair_kl_divergence"
    targets = usual_targets(2.5, 2, matrices=2)

    @staticmethod
    def plain(natural: Tensor, adversarial: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        log_p, log_q = natural.log_softmax(1), adversarial.log_softmax(1)
        return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


benchmark = PairKLDivergence()
