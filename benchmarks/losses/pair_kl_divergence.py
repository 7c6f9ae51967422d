"""pair_kl_divergence against what people write today."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ._two_logits import TwoLogits, targets


class PairKLDivergence(TwoLogits):
    operator = "pair_kl_divergence"
    targets = targets(2.5, 2)

    @staticmethod
    def plain(natural: Tensor, adversarial: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        log_p, log_q = natural.log_softmax(1), adversarial.log_softmax(1)
        return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    def function(self) -> Callable[..., Tensor]:
        from robustcore.losses import pair_kl_divergence

        return pair_kl_divergence


benchmark = PairKLDivergence()
