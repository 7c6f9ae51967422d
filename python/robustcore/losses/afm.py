"""AFM: approximate full marginalisation over privileged information."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import accumulate_dtype, check_floating, check_int64, check_tensor
from .tram import (
    Criterion,
    apply_criterion,
    check_criterion,
    check_module,
    read_privileged,
    refuse_unknown,
)

__all__ = ["AFM"]


class AFM(nn.Module):
    r"""One head with privileged information, marginalised over it at test time.

    Training minimises :math:`\ell(h(\varphi(x), a), \tilde y)`. At test time :math:`a` is unknown:

    .. math::
        p(y \mid x) = \frac{1}{M} \sum_{m=1}^{M} \mathrm{softmax}(h(\varphi(x), a_m))_y

    with :math:`a_m` drawn from the privileged information of the training set, which ``remember``
    stores in the module (and in its ``state_dict``).

    Args:
        backbone: Maps inputs to features ``(B, F)``.
        privileged_head: Maps features and privileged information to logits ``(..., C)``, for
            example :class:`robustcore.losses.PrivilegedHead`.
        loss: :math:`\ell`, any ``criterion(logits, target, ...)``; default: cross-entropy.
        draws: M; None takes every stored row once, which is exact.
        chunk: How many draws are computed at a time.

    Cost: prediction holds B · ``chunk`` · C logits and a running log-mean-exp of B · C numbers,
    whatever M is.

    Numerics: the mean is taken in log space, in float32 at least.

    Source: Collier et al., arXiv 2202.09244; Ortiz-Jimenez et al., arXiv 2303.01806.

    Example:
        >>> import torch
        >>> from robustcore.losses import AFM, PrivilegedHead
        >>> model = AFM(torch.nn.Linear(8, 16), PrivilegedHead(16, 4, 3), draws=None)
        >>> x, privileged, target = torch.randn(5, 8), torch.randn(5, 4), torch.arange(5) % 3
        >>> model.loss(x, privileged, target).backward()
        >>> model.remember(privileged)
        >>> model(x).exp().sum(-1).allclose(torch.ones(5))
        True
    """

    stored: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        privileged_head: nn.Module,
        *,
        loss: Criterion | None = None,
        draws: int | None = 100,
        chunk: int = 16,
    ) -> None:
        super().__init__()
        for name, module in (("backbone", backbone), ("privileged_head", privileged_head)):
            check_module("AFM", name, module)
        for name, value in (("draws", 1 if draws is None else draws), ("chunk", chunk)):
            check_int64("AFM", name, value)
            if value < 1:
                raise ValueError(f"AFM: {name} must be positive, got {value}")
        self.backbone = backbone
        self.privileged_head = privileged_head
        self.criterion = check_criterion("AFM", "loss", loss)
        self.draws = draws
        self.chunk = chunk
        self.register_buffer("stored", torch.empty(0, 0))

    @torch.no_grad()
    def remember(self, privileged: Tensor) -> None:
        """Stores privileged information of the training set, ``(..., P)``, to be drawn from.

        A few thousand rows are usually enough. Replaces what was stored.
        """
        check_tensor("AFM.remember", "privileged", privileged)
        check_floating("AFM.remember", "privileged", privileged)
        if privileged.dim() < 2 or privileged.shape[:-1].numel() == 0:
            raise ValueError(
                "AFM.remember: privileged must have at least one row of shape (..., P), got shape "
                f"{tuple(privileged.shape)}"
            )
        self.stored = privileged.detach().reshape(-1, privileged.shape[-1]).clone()

    def forward(self, x: Any, *, generator: torch.Generator | None = None) -> Tensor:
        """Log-probabilities ``(B, C)``, marginalised; float32 (float64 for float64 logits).

        The draws are the same for all examples of a call. They come from PyTorch's default CPU
        generator, or from ``generator`` (on the CPU).
        """
        if self.stored.shape[0] == 0:
            raise RuntimeError("AFM: call remember(privileged) before predicting")
        rows = self.stored
        if self.draws is not None:
            place = torch.randint(rows.shape[0], (self.draws,), generator=generator)
            rows = rows[place.to(rows.device)]
        features = self.backbone(x)
        total: Tensor | None = None
        for some in rows.split(self.chunk):
            every = some.unsqueeze(0).expand(
                1 if getattr(self.privileged_head, "broadcasts", False) else features.shape[0],
                *some.shape,
            )
            logits = read_privileged(self.privileged_head, features, every)
            log_p = logits.to(accumulate_dtype(logits.dtype)).log_softmax(-1).logsumexp(1)
            total = log_p if total is None else torch.logaddexp(total, log_p)
        assert total is not None
        return total - math.log(rows.shape[0])

    def loss(self, x: Any, privileged: Tensor, target: Tensor, **options: Any) -> Tensor:
        """The training loss.

        Args:
            x: What the backbone takes, B examples.
            privileged: ``(B, P)``, or ``(B, A, P)`` for several annotators per example.
            target: Labels ``(B,)``, or ``(B, A)``.
            **options: For the criterion, for example ``index``; see
                :meth:`robustcore.losses.TRAM.loss`.
        """
        check_tensor("AFM.loss", "privileged", privileged)
        check_tensor("AFM.loss", "target", target)
        if privileged.shape[:-1] != target.shape:
            raise ValueError(
                f"AFM.loss: privileged must have shape {(*target.shape, 'P')} for target of shape "
                f"{tuple(target.shape)}, got {tuple(privileged.shape)}"
            )
        refuse_unknown("AFM.loss", options, (self.criterion,), set())
        logits = read_privileged(self.privileged_head, self.backbone(x), privileged)
        return apply_criterion(self.criterion, logits, target, options)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # The number of stored rows is the checkpoint's, not this module's.
        saved = state_dict.get(prefix + "stored")
        if isinstance(saved, Tensor) and saved.shape != self.stored.shape:
            self.stored = self.stored.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"draws={self.draws}, chunk={self.chunk}, stored={tuple(self.stored.shape)}"
