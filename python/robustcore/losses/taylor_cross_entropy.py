"""Cross-entropy as a Taylor polynomial."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._checks import check_int64
from ._arguments import row_loss_arguments
from ._module import RowLossModule
from ._row_loss import RowLoss, reference_options

__all__ = ["TaylorCrossEntropyLoss", "taylor_cross_entropy"]


def _reference(*raw: Any) -> Tensor:
    from ..reference.losses import taylor_cross_entropy as reference

    return reference(raw[0], raw[5], int(raw[8][0]), **reference_options(raw))


_loss = RowLoss("taylor_cross_entropy", _reference)


def taylor_cross_entropy(
    logits: Tensor,
    target: Tensor,
    terms: int = 2,
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
    r"""Cross-entropy as the first terms of its Taylor series, which resists wrong labels.

    .. math::
        \ell_t(z, y) = \sum_{k=1}^{t} \frac{(1 - p_y)^k}{k}, \qquad p = \mathrm{softmax}(z)

    One term is the mean absolute error :math:`1 - p_y`, all of them are :math:`-\log p_y`. The loss
    is bounded by :math:`1 + 1/2 + \dots + 1/t`, and :math:`\partial z = (1 - (1 - p_y)^t) (p -
    \mathrm{onehot}(y))`: a label that the model finds unlikely counts little.

    Args:
        logits: Shape ``(..., C)`` (classes in ``dim``), float32, float64, bfloat16 or float16.
            Differentiable.
        target: Class indices in ``[0, C)`` or ``ignore_index``, int64, shape ``(...)``; or class
            probabilities :math:`q`, floating, shape of ``logits``, a constant: the loss is then
            :math:`\sum_c q_c \ell_t(z, c)`.
        terms: :math:`t`, at least 1.
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

    Numerics: 16-bit inputs are computed in float32, float64 in float64; :math:`1 - p_y` is formed
    by ``expm1``. Rows with ``-inf`` (masked classes) are fine; NaN stays in its row. No valid row
    at all gives NaN for ``"mean"`` and 0 for ``"sum"``. Same inputs give the same bits for any
    number of threads.

    Cost: as of :func:`comp_sum_loss`, and t multiplications per row.

    Source: Feng, Shu, Lin, Lv, Li and An, Can Cross Entropy Loss Be Robust to Label Noise?, IJCAI
    2020.

    Example:
        >>> import torch
        >>> from robustcore.losses import taylor_cross_entropy
        >>> logits, target = torch.zeros(2, 4, requires_grad=True), torch.tensor([0, 3])
        >>> [round(taylor_cross_entropy(logits, target, t).item(), 3) for t in (1, 2, 100)]
        [0.75, 1.031, 1.386]
    """
    _check("taylor_cross_entropy", terms)
    return _loss(
        row_loss_arguments(
            "taylor_cross_entropy",
            ("logits", logits),
            target,
            parameters=(float(terms),),
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


def _check(op: str, terms: Any) -> None:
    check_int64(op, "terms", terms)
    if not 1 <= terms <= 10_000:
        raise ValueError(f"{op}: terms must be in [1, 10000], got {terms}")


class TaylorCrossEntropyLoss(RowLossModule):
    """:func:`taylor_cross_entropy` as a module, like :class:`torch.nn.CrossEntropyLoss`.

    Args:
        terms: Number of terms of the series.
        weight: Class weights, kept as a buffer.
        options: As of :func:`taylor_cross_entropy`.

    Example:
        >>> import torch
        >>> from robustcore.losses import TaylorCrossEntropyLoss
        >>> criterion = TaylorCrossEntropyLoss(terms=2, label_smoothing=0.1)
        >>> loss = criterion(torch.randn(8, 10), torch.arange(8))
    """

    def __init__(self, terms: int = 2, weight: Tensor | None = None, **options: Any) -> None:
        super().__init__(weight, **options)
        _check("TaylorCrossEntropyLoss", terms)
        self.terms = terms

    def forward(
        self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        return taylor_cross_entropy(
            logits, target, self.terms, sample_weight=sample_weight, **self.options()
        )

    def extra_repr(self) -> str:
        return f"terms={self.terms}, {super().extra_repr()}"
