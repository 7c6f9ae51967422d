"""A training step of ALDR-KL, temperatures included, against what people write today."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .row_losses import RowLossBenchmark
from .targets import usual_targets

_MARGIN, _ALPHA, _LAMBDA0 = 0.1, 2.0, 10.0


def fused(logits: Tensor, target: Tensor, lam: Tensor) -> Tensor:
    """New temperatures, then the loss."""
    from robustcore.losses import aldr_kl_loss, aldr_kl_temperature

    return aldr_kl_loss(logits, target, aldr_kl_temperature(logits, lam))


def plain(logits: Tensor, target: Tensor, lam: Tensor) -> Tensor:
    """The same by the formulas."""
    classes = logits.shape[1]
    scores = classes * F.normalize(logits, p=1.0, dim=1)
    with torch.no_grad():
        q = F.normalize((scores / lam[:, None]).softmax(1) + 1e-5, p=1.0, dim=1)
        divergence = math.log(classes) + (q * q.log()).sum(1)
        lam = _LAMBDA0 * (1 - divergence / (_ALPHA * math.log(classes)))
    own = scores.gather(1, target[:, None])
    margins = _MARGIN * (1 - F.one_hot(target, classes).to(scores.dtype))
    exponents = (margins + scores - own) / lam[:, None]
    loss = lam * (exponents.logsumexp(1) - math.log(classes))
    penalty = _ALPHA * math.log(classes) / (2 * _LAMBDA0) * (lam - _LAMBDA0).square()
    return (loss - penalty).mean()


class AldrKlLoss(RowLossBenchmark):
    operator = "aldr_kl_loss"
    targets = usual_targets(8.0, 8.0)

    def function(self) -> Callable[..., Tensor]:
        return fused

    def plain(self, *arguments: Tensor) -> Tensor:
        return plain(*arguments)

    def others(self, rows: int, options: dict[str, object]) -> tuple[Tensor, ...]:
        return (torch.rand(rows, **options) * 5 + 5,)  # type: ignore[arg-type]


benchmark = AldrKlLoss()
