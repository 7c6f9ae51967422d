"""ShrinkMatch: learning from uncertain rows by shrinking the class space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._checks import (
    accumulate_dtype,
    autocast_enabled,
    check_choice,
    check_device,
    check_dtype_of,
    check_floating,
    check_int64,
    check_shape,
    check_tensor,
)
from .._library import functorch_active
from .._reference import wants_reference
from ._arguments import check_dim, check_real
from ._indexed import in_recomputation
from ._shrink_match_loss_op import forward_operator, gradient_in_forward
from .results import ShrinkMatchScores

__all__ = ["ShrinkMatchLoss", "shrink_match_loss", "shrink_match_scores"]

# The numbers of csrc/losses/shrink_match_loss_op.h.
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def shrink_match_loss(
    weak_logits: Tensor,
    strong_logits: Tensor,
    *,
    threshold: float = 0.95,
    reduction: str = "mean",
    dim: int = -1,
) -> Tensor:
    r"""Consistency loss of uncertain rows over a shrunk class space (ShrinkMatch).

    With the probabilities :math:`p = \mathrm{softmax}(w)` of a weakly augmented view in descending
    order, :math:`p_1 \ge p_2 \ge \dots`, a row with :math:`p_1 \ge \tau` is certain and has loss 0.
    Of any other row the strongest rivals of class 1 are removed until it is certain among the rest:

    .. math::
        c = \min\Bigl\{c \ge 2 : \frac{p_1}{p_1 + \sum_{j \ge c} p_j} \ge \tau\Bigr\}, \qquad
        \ell = p_1 \, \mathrm{CE}\bigl(z_{\{1\} \cup \{c, \dots, C\}}, 1\bigr)

    with the logits :math:`z` of a strongly augmented view. Where not even the weakest rival may
    stay, the loss is 0. Gradients go to :math:`z` alone: :math:`\partial z = p_1
    (\mathrm{softmax}(z) - e_1)` over the classes that stay, exactly 0 for the others; :math:`w` is
    a constant target.

    The published loss also has a factor that grows with training: :class:`ShrinkMatchLoss`. It
    takes :math:`z` from an auxiliary head, beside a FixMatch loss of the certain rows, for which
    :func:`shrink_match_scores` returns what is needed. Aligned pseudo-label probabilities go in as
    their logarithms.

    Args:
        weak_logits: Logits :math:`w`, shape ``(..., C)`` (classes in ``dim``), float32, float64,
            bfloat16 or float16; a constant.
        strong_logits: Logits :math:`z`, shape and dtype of ``weak_logits``. Differentiable.
        threshold: :math:`\tau` in (0, 1). The paper takes 0.95; 0.7 for ImageNet.
        reduction: ``"none"`` (shape ``(...)``), ``"sum"``, or ``"mean"``, which divides by the
            number of all rows, as published: certain rows count.
        dim: Where the classes are. Other than last costs a copy.

    Returns:
        The loss, in the dtype of ``strong_logits`` (under autocast float32).

    Raises:
        TypeError: An argument is not a tensor or has an unsupported dtype.
        ValueError: Devices or shapes differ, there are no classes, or an option is out of range.
        NotImplementedError: Forward-mode derivatives, which are not offered.

    Numerics: 16-bit inputs are computed in float32, float64 in float64. Of equal weak logits those
    of higher classes stay first, as a stable descending sort has it; class 1 is the first of equal
    maxima. The cut depends on a rounded sum: in float32 one class more or less may stay where the
    probability that stays is within 4e-6 (relative) of what :math:`\tau` allows, in float64 within
    1e-14; CPU, CUDA and the reference may differ there, and nowhere else. Classes masked with
    ``-inf`` have probability 0 and stay. A weak row with NaN or ``+inf``, or of nothing but
    ``-inf``, has loss and gradient NaN; a strong row where its classes that stay say so; no other
    row's gradient is touched. No rows at all give NaN for ``"mean"``, as PyTorch. Same inputs give
    the same bits for any number of threads.

    Cost: a row is read once and searched in cache by about ten sums instead of being sorted; no
    temporary of size N·C. For scalar reductions of float32, float64 and bfloat16 in eager mode the
    gradient is written during the forward pass. Second derivatives are computed by plain PyTorch,
    and ``torch.func.vmap`` takes the members of a batch one after another.

    Source: Yang et al., Shrinking Class Space for Enhanced Certainty in Semi-Supervised Learning,
    arXiv 2308.06777.

    Example:
        >>> import torch
        >>> from robustcore.losses import shrink_match_loss
        >>> weak = torch.tensor([[0.60, 0.37, 0.02, 0.01], [0.97, 0.01, 0.01, 0.01]]).log()
        >>> strong = torch.zeros(2, 4, requires_grad=True)
        >>> shrink_match_loss(weak, strong, reduction="none")  # 0.6 log 3 over three classes; 0
        tensor([0.6592, 0.0000], grad_fn=<shrink_match_lossBackward>)
    """
    call = _arguments("shrink_match_loss", weak_logits, strong_logits, threshold, reduction, dim)
    if wants_reference(strong_logits):
        return _reference(call, threshold, reduction).loss
    return _finish(_operator(call)(call.weak, call.strong, threshold, call.reduction)[0], call)


def shrink_match_scores(
    weak_logits: Tensor,
    strong_logits: Tensor,
    *,
    threshold: float = 0.95,
    reduction: str = "mean",
    dim: int = -1,
) -> ShrinkMatchScores:
    r"""The loss of :func:`shrink_match_loss`, and what the same pass finds out about each row.

    Arguments, errors and numerics as there. The scores are constants for autograd, ``confidence``
    in float32 (float64 for float64 logits).

    Returns:
        A :class:`ShrinkMatchScores`: ``loss``; ``confidence`` (:math:`p_1`), ``predicted`` (class
        1) and ``removed`` (the number of classes removed, 0 for certain rows), of shape ``(...)``.

    Example:
        >>> import torch
        >>> from robustcore.losses import shrink_match_scores
        >>> weak = torch.tensor([[0.60, 0.37, 0.02, 0.01], [0.01, 0.97, 0.01, 0.01]]).log()
        >>> scores = shrink_match_scores(weak, torch.zeros(2, 4))
        >>> scores.predicted.tolist(), scores.removed.tolist()
        ([0, 1], [1, 0])
    """
    call = _arguments("shrink_match_scores", weak_logits, strong_logits, threshold, reduction, dim)
    if wants_reference(strong_logits):
        return _reference(call, threshold, reduction)
    loss, values, places = _operator(call)(call.weak, call.strong, threshold, call.reduction)
    rows = (values[4], places[0], places[2])
    return ShrinkMatchScores(_finish(loss, call), *(row.reshape(call.shape) for row in rows))


class _Call(NamedTuple):
    weak: Tensor  # [N, C], constant
    strong: Tensor  # [N, C]
    reduction: int
    shape: torch.Size  # of the batch, before it was flattened
    result_dtype: torch.dtype


def _arguments(
    op: str, weak: Tensor, strong: Tensor, threshold: float, reduction: str, dim: int
) -> _Call:
    check_tensor(op, "weak_logits", weak)
    check_tensor(op, "strong_logits", strong)
    check_int64(op, "dim", dim)
    _check_options(op, threshold, reduction)
    check_device(op, "weak_logits", weak, strong.device)
    check_floating(op, "weak_logits", weak)
    check_floating(op, "strong_logits", strong)
    autocast = autocast_enabled(strong.device)
    dtype = strong.dtype
    if weak.dtype is not dtype:
        if not autocast:
            check_dtype_of(op, "weak_logits", weak, "strong_logits", dtype)
        dtype = torch.promote_types(dtype, weak.dtype)
        weak, strong = weak.to(dtype), strong.to(dtype)
    check_shape(op, "weak_logits", weak, strong.shape)
    check_dim(op, dim, "strong_logits", strong)
    dimensions = strong.dim()
    if dim not in (-1, dimensions - 1):
        weak, strong = weak.movedim(dim, -1), strong.movedim(dim, -1)
    shape, classes = strong.shape[:-1], strong.shape[-1]
    if classes == 0:
        raise ValueError(
            f"{op}: strong_logits must have at least one class, got shape {tuple(strong.shape)}"
        )
    if dimensions != 2:
        weak, strong = weak.reshape(-1, classes), strong.reshape(-1, classes)
    result_dtype = accumulate_dtype(dtype) if autocast else dtype
    return _Call(weak.detach(), strong, _REDUCTIONS[reduction], shape, result_dtype)


def _check_options(op: str, threshold: float, reduction: str) -> None:
    check_real(op, "threshold", threshold)
    if not isinstance(reduction, str):
        raise TypeError(f"{op}: reduction must be a str, got {type(reduction).__name__}")
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"{op}: threshold must be in (0, 1), got {threshold}")
    check_choice(op, "reduction", reduction, tuple(_REDUCTIONS))


def _operator(call: _Call) -> Callable[..., Any]:
    """Whether writing the gradient during the forward pass is possible and pays.

    Not for float16: a gradient that is divided by N before the loss scale reaches it underflows.
    """
    pays = (
        call.reduction != 0
        and call.strong.requires_grad
        and call.strong.dtype is not torch.float16
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not functorch_active()
        and call.strong.device.type != "meta"
    )
    return gradient_in_forward if pays else forward_operator


def _finish(loss: Tensor, call: _Call) -> Tensor:
    if call.reduction == 0 and loss.shape != call.shape:
        loss = loss.reshape(call.shape)
    return loss if loss.dtype is call.result_dtype else loss.to(call.result_dtype)


def _reference(call: _Call, threshold: float, reduction: str) -> ShrinkMatchScores:
    from ..reference.losses import shrink_match_scores as reference

    loss, *rows = reference(call.weak, call.strong, threshold=threshold, reduction=reduction)
    return ShrinkMatchScores(_finish(loss, call), *(row.reshape(call.shape) for row in rows))


class ShrinkMatchLoss(nn.Module):
    r""":func:`shrink_match_loss` times the moving average of the ratio of certain rows.

    While the model is certain of few rows, its order of the classes is not to be trusted either:
    the published loss is multiplied by :math:`r`, with :math:`r \leftarrow \mu r + (1 - \mu)
    \frac{\#\{p_1 \ge \tau\}}{N}` before each use, beginning with the first batch's own ratio.

    ``certain_ratio`` and ``num_batches`` are buffers and part of ``state_dict``; the ratio stays
    float32 when the module is cast. They change in training mode only, not in evaluation mode, not
    for an empty batch, and not where a forward pass is repeated during a backward pass (activation
    checkpointing), which then finds the ratio of the latest batch. In a distributed run each
    process has the ratio of its own rows, as published.

    Args:
        threshold: See :func:`shrink_match_loss`; so are ``reduction`` and ``dim``.
        momentum: :math:`\mu` in [0, 1].

    Example:
        >>> import torch
        >>> from robustcore.losses import ShrinkMatchLoss
        >>> criterion = ShrinkMatchLoss(threshold=0.7)
        >>> weak, strong = 4 * torch.randn(16, 10), torch.randn(16, 10, requires_grad=True)
        >>> criterion(weak, strong).backward()
        >>> sorted(criterion.state_dict())
        ['certain_ratio', 'num_batches']
    """

    certain_ratio: Tensor
    num_batches: Tensor

    def __init__(
        self,
        threshold: float = 0.95,
        *,
        momentum: float = 0.999,
        reduction: str = "mean",
        dim: int = -1,
    ) -> None:
        super().__init__()
        _check_options("ShrinkMatchLoss", threshold, reduction)
        check_real("ShrinkMatchLoss", "momentum", momentum)
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"ShrinkMatchLoss: momentum must be in [0, 1], got {momentum}")
        check_int64("ShrinkMatchLoss", "dim", dim)
        self.threshold = threshold
        self.momentum = momentum
        self.reduction = reduction
        self.dim = dim
        self.register_buffer("certain_ratio", torch.zeros((), dtype=torch.float32))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    def forward(self, weak_logits: Tensor, strong_logits: Tensor) -> Tensor:
        return self.scores(weak_logits, strong_logits).loss

    def scores(self, weak_logits: Tensor, strong_logits: Tensor) -> ShrinkMatchScores:
        """:func:`shrink_match_scores` with this module's options and factor; updates the ratio."""
        scores = shrink_match_scores(
            weak_logits,
            strong_logits,
            threshold=self.threshold,
            reduction=self.reduction,
            dim=self.dim,
        )
        ratio = self._ratio(scores.removed == 0)
        return scores._replace(loss=scores.loss * ratio.to(scores.loss.dtype))

    @torch.no_grad()
    def _ratio(self, certain: Tensor) -> Tensor:
        if certain.numel() == 0:
            return self.certain_ratio.clone()
        batch = certain.to(torch.float32).mean()
        # Decided on the device, without a synchronisation. Before any training step there is no
        # average, and evaluation takes the batch's own ratio.
        first = self.num_batches == 0
        if not self.training or in_recomputation():
            return torch.where(first, batch, self.certain_ratio)
        mixed = self.momentum * self.certain_ratio + (1 - self.momentum) * batch
        ratio = torch.where(first, batch, mixed)
        self.certain_ratio.copy_(ratio)
        self.num_batches.add_(1)
        return ratio

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ShrinkMatchLoss:
        before = self.certain_ratio
        super()._apply(fn, recurse)
        if self.certain_ratio.dtype is not torch.float32:
            # A step of 0.001 is lost in a 16-bit average.
            self.certain_ratio = before.to(self.certain_ratio.device)
        return self

    def extra_repr(self) -> str:
        return (
            f"threshold={self.threshold}, momentum={self.momentum}, "
            f"reduction={self.reduction!r}, dim={self.dim}"
        )
