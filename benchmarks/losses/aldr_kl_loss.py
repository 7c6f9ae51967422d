"""A training step of ALDR-KL, temperatures included, against what people write today."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..accuracy import errors_with_gradients
from ..registry import Accuracy, Case
from .row_losses import RowLossBenchmark
from .targets import usual_targets

_MARGIN, _ALPHA, _LAMBDA0 = 0.1, 2.0, 10.0


def fused(logits: Tensor, target: Tensor, index: Tensor, lam: Tensor) -> Tensor:
    """New temperatures, written to ``lam``, and the loss."""
    from robustcore.losses import aldr_kl_indexed_loss

    return aldr_kl_indexed_loss(logits, target, index, lam)


def plain(logits: Tensor, target: Tensor, index: Tensor, lam: Tensor) -> Tensor:
    """The same by the formulas, for distinct examples."""
    classes = logits.shape[1]
    scores = classes * F.normalize(logits, p=1.0, dim=1)
    with torch.no_grad():
        q = F.normalize((scores / lam[index][:, None]).softmax(1) + 1e-5, p=1.0, dim=1)
        divergence = math.log(classes) + (q * q.log()).sum(1)
        new = _LAMBDA0 * (1 - divergence / (_ALPHA * math.log(classes)))
        lam[index] = new
    own = scores.gather(1, target[:, None])
    margins = _MARGIN * (1 - F.one_hot(target, classes).to(scores.dtype))
    exponents = (margins + scores - own) / new[:, None]
    loss = new * (exponents.logsumexp(1) - math.log(classes))
    penalty = _ALPHA * math.log(classes) / (2 * _LAMBDA0) * (new - _LAMBDA0).square()
    return (loss - penalty).mean()


class AldrKlLoss(RowLossBenchmark):
    operator = "aldr_kl_loss"
    targets = usual_targets(8.0, 8.0)

    def function(self) -> Callable[..., Tensor]:
        return fused

    def plain(self, *arguments: Tensor) -> Tensor:
        return plain(*arguments)

    def others(self, rows: int, options: dict[str, object]) -> tuple[Tensor, ...]:
        index = torch.randperm(2 * rows, **options)[:rows]  # type: ignore[call-overload]
        return index, torch.rand(2 * rows, **options) * 5 + 5  # type: ignore[call-overload]

    def accuracy(self, device: str, quick: bool) -> Sequence[Accuracy]:
        found = []
        for size in self.sizes[: 2 if quick else 4]:
            inputs = self.inputs(Case(size, "forward+backward", device), 0)
            functions = (_on_a_copy(function) for function in (fused, plain, plain))
            errors = errors_with_gradients(*functions, inputs, ("loss", "logits gradient"))
            found.append(Accuracy(size.label, errors))
        return found


def _on_a_copy(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """So that each starts from the same temperatures."""

    def call(logits: Tensor, target: Tensor, index: Tensor, lam: Tensor) -> Tensor:
        return function(logits, target, index, lam.clone())

    return call


benchmark = AldrKlLoss()
