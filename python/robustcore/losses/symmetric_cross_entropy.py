"""Symmetric cross-entropy: cross-entropy and its bounded reverse."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ._arguments import check_real, row_loss_arguments
from ._module import RowLossModule
from ._row_loss import RowLoss, reference_options

__all__ = ["SymmetricCrossEntropyLoss", "symmetric_cross_entropy"]


def _reference(*raw: Any) -> Tensor:
    from ..reference.losses import symmetric_cross_entropy as reference

    alpha, beta, log_zero = raw[8]
    return reference(
        raw[0], raw[5], alpha=alpha, beta=beta, log_zero=log_zero, **reference_options(raw)
    )


_loss = RowLoss("symmetric_cross_entropy", _reference)


def _check(op: str, alpha: float, beta: float, log_zero: float) -> None:
    for name, value in (("alpha", alpha), ("beta", beta)):
        check_real(op, name, value)
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{op}: {name} must be finite and not negative, got {value}")
    check_real(op, "log_zero", log_zero)
    if not -math.inf < log_zero <= 0.0:
        raise ValueError(f"{op}: log_zero must be finite and not positive, got {log_zero}")


def symmetric_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    log_zero: float = math.log(1e-4),
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    lse_square_scale: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    r"""Symmetric cross-entropy: cross-entropy plus the reverse one, which is bounded.

    .. math::
        \ell(z, y) = -\alpha \log p_y - \beta A (1 - p_y), \qquad p = \mathrm{softmax}(z)

    The second term is the reverse cross-entropy :math:`-\sum_k p_k \log e_k` of the one-hot label
    :math:`e` with :math:`\log 0` replaced by :math:`A < 0`: bounded, and a multiple of the mean
    absolute error. :math:`\partial z = (\alpha - \beta A p_y) (p - e)`.

    Args:
        logits: Shape ``(..., C)`` (classes in ``dim``), float32, float64, bfloat16 or float16.
            Differentiable.
        target: Class indices in ``[0, C)`` or ``ignore_index``, int64, shape ``(...)``; or class
            probabilities :math:`q`, floating, shape of ``logits``, a constant: the loss is then
            :math:`\sum_c q_c \ell(z, c)`.
        alpha: Factor of the cross-entropy, finite and not negative. The authors take 0.1 for
            CIFAR-10, 6 for CIFAR-100 and 0.01 for MNIST (the defaults are CIFAR-10's).
        beta: Factor of the reverse cross-entropy, finite and not negative: 1, 0.1 and 1.
        log_zero: :math:`A`, finite and not positive. The authors clamp the label at 1e-4, so
            :math:`A = \log 10^{-4} \approx -9.21`.
        weight: Class weights, shape ``(C,)``, floating; a constant.
        sample_weight: Weights of the rows, shape ``(...)``, floating. Differentiable.
        ignore_index: Rows with this target contribute nothing: loss 0, gradients exactly 0, even
            where their logits are not finite.
        label_smoothing: In ``[0, 1]``; the label becomes a mixture as in
            :func:`torch.nn.functional.cross_entropy`.
        temperature: Divides the logits; positive.
        softcap: Bends them before that, :math:`c \tanh(z / c)`; positive, or None.
        lse_square_scale: Adds this times :math:`\mathrm{logsumexp}(z)^2` to the loss of each row
            (the "z-loss" of language models), before the sample weight.
        reduction: ``"none"`` (shape ``(...)``), ``"sum"``, or ``"mean"``, which divides as
            :func:`torch.nn.functional.cross_entropy` does: by the sum of ``weight[target]`` over
            the rows that are not ignored, or by the number of rows where ``target`` holds
            probabilities. Sample weights do not enter the denominator.
        dim: Where the classes are. Other than last costs a copy.
        inplace_gradients: Allows the gradient to overwrite ``logits`` in the forward pass, which
            saves its memory. Done for scalar reductions in eager mode where the logits are
            contiguous; their version counter moves, so that autograd notices anyone who still needs
            the values.

    Returns:
        The loss, in the dtype of ``logits`` (under autocast float32).

    Raises:
        TypeError: An argument is not a tensor or has an unsupported dtype.
        ValueError: Devices or shapes differ, there are no classes, or an option is out of range;
            ``inplace_gradients`` with a leaf that requires grad.
        IndexError: A target is out of range (CPU; under ``torch.compile`` a RuntimeError). On CUDA
            this is a device-side assertion, as in PyTorch, reported at the next synchronisation.
        NotImplementedError: Forward-mode derivatives, which are not offered.

    Numerics: 16-bit inputs are computed in float32, float64 in float64; :math:`1 - p_y` by
    ``expm1`` of :math:`\log p_y`, so that it keeps its digits as :math:`p_y \to 1`. Rows with
    ``-inf`` (masked classes) are fine; a masked label costs infinity, or :math:`-\beta A` where
    ``alpha`` is 0. NaN stays in its row. No valid row at all gives NaN for ``"mean"`` and 0 for
    ``"sum"``. Same inputs give the same bits for any number of threads.

    Cost: one pass over the logits forward and two backward, or two in all where the gradient is
    written during the forward pass (scalar reductions of float32, float64 and bfloat16 in eager
    mode); further visits of a row find it in cache. No temporary of size N·C. Second derivatives
    are computed by the plain PyTorch reference.

    Source: Wang, Ma, Chen, Luo, Yi and Bailey, Symmetric Cross Entropy for Robust Learning with
    Noisy Labels, arXiv 1908.06112.

    Example:
        >>> import torch
        >>> from robustcore.losses import symmetric_cross_entropy
        >>> logits = torch.zeros(2, 4, requires_grad=True)
        >>> loss = symmetric_cross_entropy(logits, torch.tensor([0, 3]))
        >>> loss.backward()
        >>> round(loss.item(), 3)
        7.046
    """
    _check("symmetric_cross_entropy", alpha, beta, log_zero)
    return _loss(
        row_loss_arguments(
            "symmetric_cross_entropy",
            ("logits", logits),
            target,
            parameters=(float(alpha), float(beta), float(log_zero)),
            weight=weight,
            sample_weight=sample_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            temperature=temperature,
            softcap=softcap,
            lse_square_scale=lse_square_scale,
            reduction=reduction,
            dim=dim,
            inplace_gradients=inplace_gradients,
        )
    )


class SymmetricCrossEntropyLoss(RowLossModule):
    """:func:`symmetric_cross_entropy` as a module, like :class:`torch.nn.CrossEntropyLoss`.

    Args:
        alpha, beta, log_zero: As of :func:`symmetric_cross_entropy`.
        weight: Class weights, kept as a buffer.
        options: As of :func:`symmetric_cross_entropy`.

    Example:
        >>> import torch
        >>> from robustcore.losses import SymmetricCrossEntropyLoss
        >>> criterion = SymmetricCrossEntropyLoss(alpha=6.0, beta=0.1)
        >>> loss = criterion(torch.randn(8, 100), torch.arange(8))
    """

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 1.0,
        log_zero: float = math.log(1e-4),
        weight: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(weight, **options)
        _check("SymmetricCrossEntropyLoss", alpha, beta, log_zero)
        self.alpha = alpha
        self.beta = beta
        self.log_zero = log_zero

    def forward(
        self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        return symmetric_cross_entropy(
            logits,
            target,
            alpha=self.alpha,
            beta=self.beta,
            log_zero=self.log_zero,
            sample_weight=sample_weight,
            **self.options(),
        )

    def extra_repr(self) -> str:
        shown = f"alpha={self.alpha}, beta={self.beta}, log_zero={self.log_zero:.4g}"
        return f"{shown}, {super().extra_repr()}"
