"""mixture_log_softmax against what people write today."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .targets import usual_targets
from .two_logits import TwoLogits


class MixtureLogSoftmax(TwoLogits):
    operator = "mixture_log_softmax"
    targets = usual_targets(3, 1.5, matrices=3)
    with_gate = True
    of_all_classes = True
    quantities = (*TwoLogits.quantities, "gate gradient")

    @staticmethod
    def plain(logits1: Tensor, logits2: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        first = F.logsigmoid(-gate)[:, None] + logits1.log_softmax(1)
        second = F.logsigmoid(gate)[:, None] + logits2.log_softmax(1)
        return torch.logaddexp(first, second)


benchmark = MixtureLogSoftmax()
