"""Normalised cross-entropy."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._arguments import row_loss_arguments
from ._module import RowLossModule
from ._row_loss import RowLoss, reference_options

__all__ = ["NormalizedCrossEntropyLoss", "normalized_cross_entropy"]


def _reference(*raw: Any) -> Tensor:
    from ..reference.losses import normalized_cross_entropy as reference

    return reference(raw[0], raw[5], **reference_options(raw))


_loss = RowLoss("normalized_cross_entropy", _reference)


def normalized_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
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
    r"""Normalised cross-entropy: that of the label as a share of those of all classes.

    .. math::
        \ell(z, y) = \frac{-\log p_y}{-\sum_k \log p_k} \in [0, 1], \qquad
        p = \mathrm{softmax}(z)

    Robust to symmetric label noise, but slow to fit alone: the paper adds a passive loss to it
    (such as :func:`comp_sum_loss` with ``tau=2``, the mean absolute error). With :math:`n` and
    :math:`D` for numerator and denominator, :math:`\partial z = ((p - e) D - (C p - 1) n) / D^2`.

    Classes masked with ``-inf`` are left out of the sum and of :math:`C`. With class weights and
    smoothed or soft labels the numerator is their cross-entropy; the denominator stays unweighted.

    Args:
        logits: Shape ``(..., C)`` (classes in ``dim``), float32, float64, bfloat16 or float16.
            Differentiable.
        target: Class indices in ``[0, C)`` or ``ignore_index``, int64, shape ``(...)``; or class
            probabilities :math:`q`, floating, shape of ``logits``, a constant: the loss is then
            :math:`\sum_c q_c \ell(z, c)`.
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

    Numerics: 16-bit inputs are computed in float32, float64 in float64; everything from
    log-probabilities. A row with a single class that is not masked has the loss 0, one with none
    NaN. A masked label costs infinity, and the gradient of its row is then not finite. NaN stays in
    its row. No valid row at all gives NaN for ``"mean"`` and 0 for ``"sum"``. Same inputs give the
    same bits for any number of threads.

    Cost: one pass over the logits forward and two backward, or two in all where the gradient is
    written during the forward pass (scalar reductions of float32, float64 and bfloat16 in eager
    mode); further visits of a row find it in cache. No temporary of size N·C. Second derivatives
    are computed by the plain PyTorch reference.

    Source: Ma, Huang, Wang, Romano, Erfani and Bailey, Normalized Loss Functions for Deep Learning
    with Noisy Labels, arXiv 2006.13554.

    Example:
        >>> import torch
        >>> from robustcore.losses import normalized_cross_entropy
        >>> logits = torch.zeros(2, 4, requires_grad=True)
        >>> normalized_cross_entropy(logits, torch.tensor([0, 3])).item()
        0.25
    """
    return _loss(
        row_loss_arguments(
            "normalized_cross_entropy",
            ("logits", logits),
            target,
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


class NormalizedCrossEntropyLoss(RowLossModule):
    """:func:`normalized_cross_entropy` as a module, like :class:`torch.nn.CrossEntropyLoss`.

    Args:
        weight: Class weights, kept as a buffer.
        options: As of :func:`normalized_cross_entropy`.

    Example:
        >>> import torch
        >>> from robustcore.losses import NormalizedCrossEntropyLoss
        >>> criterion = NormalizedCrossEntropyLoss(label_smoothing=0.1)
        >>> loss = criterion(torch.randn(8, 10), torch.arange(8))
    """

    def forward(
        self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        return normalized_cross_entropy(
            logits, target, sample_weight=sample_weight, **self.options()
        )
