"""The comp-sum family: cross-entropy, generalised cross-entropy, mean absolute error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._arguments import check_real, row_loss_arguments
from ._module import RowLossModule
from ._row_loss import RowLoss, reference_options
from ._scales import one_per_row

__all__ = ["CompSumLoss", "comp_sum_loss"]


def _reference(*raw: Any) -> Tensor:
    from ..reference.losses import comp_sum_loss as reference

    logits, _, tau, _, _, target, _, _, parameters = raw[:9]
    return reference(
        logits, target, parameters[0] if tau is None else tau, **reference_options(raw)
    )


_loss = RowLoss("comp_sum_loss", _reference)


def comp_sum_loss(
    logits: Tensor,
    target: Tensor,
    tau: float | Tensor = 1.0,
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
    r"""The comp-sum loss: one parameter from cross-entropy to mean absolute error.

    .. math::
        \ell_\tau(z, y) = \frac{1 - p_y^{\tau - 1}}{\tau - 1}, \qquad p = \mathrm{softmax}(z)

    :math:`\tau = 0` is the sum-exponential loss :math:`1/p_y - 1`, :math:`\tau = 1` (the limit)
    cross-entropy, :math:`1 < \tau < 2` generalised cross-entropy with :math:`q = \tau - 1`, and
    :math:`\tau = 2` the mean absolute error :math:`1 - p_y`. The larger :math:`\tau`, the less a
    label counts that the model finds unlikely: :math:`\partial z = p_y^{\tau-1} (p -
    \mathrm{onehot}(y))`.

    Args:
        logits: Shape ``(..., C)`` (classes in ``dim``), float32, float64, bfloat16 or float16.
            Differentiable.
        target: Class indices in ``[0, C)`` or ``ignore_index``, int64, shape ``(...)``; or class
            probabilities :math:`q`, floating, shape of ``logits``, a constant: the loss is then
            :math:`\sum_c q_c \ell_\tau(z, c)`.
        tau: :math:`\tau`, finite; one number, or one per row, shape ``(...)``. A constant.
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

    Numerics: 16-bit inputs are computed in float32, float64 in float64; from
    :math:`\log p_y` by ``expm1``, so that neither :math:`p_y \to 1` nor :math:`\tau \to 1` loses
    digits and :math:`p_y \to 0` has no infinite slope for :math:`\tau > 1`. :math:`\log p_y` itself
    is formed relative to the largest logit and, where that is the label's, from the sum of the
    others: neither a common offset of the logits nor a loss far below 1 costs digits. Rows with
    ``-inf`` (masked classes) are fine, one of nothing else is NaN, as in PyTorch; NaN stays in its
    row. No valid row at all gives NaN for ``"mean"`` and 0 for ``"sum"``. Same inputs give the same
    bits for any number of threads.

    Cost: one pass over the logits forward and two backward, or two in all where the gradient is
    written during the forward pass (scalar reductions of float32, float64 and bfloat16 in eager
    mode). No temporary of size N·C. Second derivatives are computed by the plain PyTorch reference.

    Source: Mao, Mohri and Zhong, Cross-Entropy Loss Functions: Theoretical Analysis and
    Applications, arXiv 2304.07288; generalised cross-entropy: arXiv 1805.07836.

    Example:
        >>> import torch
        >>> from robustcore.losses import comp_sum_loss
        >>> logits = torch.zeros(2, 4, requires_grad=True)
        >>> target = torch.tensor([0, 3])
        >>> [round(comp_sum_loss(logits, target, tau).item(), 3) for tau in (0.0, 1.0, 1.7, 2.0)]
        [3.0, 1.386, 0.887, 0.75]
    """
    of_rows: Tensor | None = None
    if isinstance(tau, Tensor):
        if tau.requires_grad:
            raise ValueError("comp_sum_loss: tau must not require grad, but does")
        of_rows = one_per_row(tau, logits, dim)
    else:
        check_real("comp_sum_loss", "tau", tau)
        if not float("-inf") < tau < float("inf"):
            raise ValueError(f"comp_sum_loss: tau must be finite, got {tau}")
    return _loss(
        row_loss_arguments(
            "comp_sum_loss",
            ("logits", logits),
            target,
            row_values=(("tau", of_rows),),
            parameters=() if of_rows is not None else (float(tau),),
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


class CompSumLoss(RowLossModule):
    """:func:`comp_sum_loss` as a module, in the manner of :class:`torch.nn.CrossEntropyLoss`.

    Args:
        tau: One number for all rows; a tensor of one per row may be given at each call instead.
        weight: Class weights, kept as a buffer.
        options: As of :func:`comp_sum_loss`.

    Example:
        >>> import torch
        >>> from robustcore.losses import CompSumLoss
        >>> criterion = CompSumLoss(tau=1.7, label_smoothing=0.1)
        >>> loss = criterion(torch.randn(8, 10), torch.arange(8))
    """

    def __init__(self, tau: float = 1.0, weight: Tensor | None = None, **options: Any) -> None:
        super().__init__(weight, **options)
        check_real("CompSumLoss", "tau", tau)
        self.tau = tau

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        tau: torch.Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        return comp_sum_loss(
            logits,
            target,
            self.tau if tau is None else tau,
            sample_weight=sample_weight,
            **self.options(),
        )

    def extra_repr(self) -> str:
        return f"tau={self.tau}, {super().extra_repr()}"
