"""Cross-entropy of a mixture of two softmaxes (adaptive smoothing)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._arguments import row_loss_arguments
from ._module import RowLossModule
from ._row_loss import RowLoss, reference_options
from ._scales import Scale, check_scale, scale_argument

__all__ = ["MixtureCrossEntropyLoss", "mixture_cross_entropy"]

# Each head has its scale, and two normalisations have no one logsumexp.
_ABSENT = ("temperature", "softcap", "lse_square_scale")


def _reference(*raw: Any) -> Tensor:
    from ..reference.losses import mixture_cross_entropy as reference

    logits1, logits2, gate, scale1, scale2, target, _, _, parameters = raw[:9]
    return reference(
        logits1,
        logits2,
        gate,
        target,
        parameters[0] if scale1 is None else scale1,
        parameters[1] if scale2 is None else scale2,
        **reference_options(raw, _ABSENT),
    )


_loss = RowLoss("mixture_cross_entropy", _reference, row_value_gradients=3)


def mixture_cross_entropy(
    logits1: Tensor,
    logits2: Tensor,
    gate: Tensor,
    target: Tensor,
    scale1: Scale = 1.0,
    scale2: Scale = 1.0,
    *,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    r"""Cross-entropy of two classifiers whose probabilities a gate mixes (adaptive smoothing).

    .. math::
        \ell_i = -v_i \log m_{i, y_i}, \qquad m_i = (1 - \alpha_i) p_1 + \alpha_i p_2, \qquad
        p_k = \mathrm{softmax}(s_k z_k), \quad \alpha_i = \sigma(g_i)

    with logits :math:`z_1, z_2`, gate logits :math:`g`, scales :math:`s_1, s_2`, labels :math:`y`
    and sample weights :math:`v`. In adaptive smoothing the first classifier is accurate, the second
    robust, and the gate is a small network that looks for attacks. With the share :math:`w = (1 -
    \alpha) p_{1y} / m_y` of the first classifier in the label, :math:`\partial z_1 = s_1 w (p_1 -
    \mathrm{onehot}(y))`, :math:`\partial z_2 = s_2 (1 - w) (p_2 - \mathrm{onehot}(y))` and
    :math:`\partial g = \alpha w - (1 - \alpha)(1 - w)`.

    Args:
        logits1: :math:`z_1`, shape ``(..., C)`` (classes in ``dim``), float32, float64, bfloat16 or
            float16. Differentiable.
        logits2: :math:`z_2`, shape and dtype of ``logits1``. Differentiable.
        gate: Gate **logits** :math:`g`, shape ``(...)``, or with a class dimension of size one; any
            floating dtype. Differentiable. For a given :math:`\alpha` pass ``alpha.logit()``.
        target: Class indices in ``[0, C)`` or ``ignore_index``, int64, shape ``(...)``; or class
            probabilities :math:`q`, floating, shape of ``logits1``, a constant: the loss is then
            :math:`-\sum_c q_c \log m_c`.
        scale1, scale2: :math:`s_1, s_2`, inverse temperatures: positive floats, or floating tensors
            of one number or of one per row, shape ``(...)``, which are differentiable. The values
            of tensors are not checked; with a scale of 0 or below, a class masked with ``-inf`` is
            no longer masked.
        weight: Class weights, shape ``(C,)``, floating; a constant.
        sample_weight: Weights :math:`v`, shape ``(...)``, floating. Differentiable.
        ignore_index: Rows with this target contribute nothing: loss 0, gradients exactly 0, even
            where their logits are not finite.
        label_smoothing: In ``[0, 1]``, as in :func:`torch.nn.functional.cross_entropy`.
        reduction: ``"none"`` (shape ``(...)``), ``"sum"``, or ``"mean"``, which divides as
            :func:`torch.nn.functional.cross_entropy` does: by the sum of ``weight[target]`` over
            the rows that are not ignored, or by the number of rows where ``target`` holds
            probabilities. Sample weights do not enter the denominator.
        dim: Where the classes are. Other than last costs a copy.
        inplace_gradients: Allows the gradients to overwrite ``logits1`` and ``logits2`` (those that
            require grad) in the forward pass, which saves their memory. Done for scalar reductions
            in eager mode where the logits are contiguous; their version counters move, so that
            autograd notices anyone who still needs the values.

    There is no ``temperature`` (the scales are one for each head), no soft-cap (it belongs to a
    head, before the mixture) and no squared logsumexp (there are two).

    Returns:
        The loss, in the dtype of ``logits1`` (under autocast float32).

    Raises:
        TypeError: An argument is not a tensor or has an unsupported dtype.
        ValueError: Devices or shapes differ, there are no classes, or an option is out of range;
            ``inplace_gradients`` with a leaf that requires grad.
        IndexError: A target is out of range (CPU; under ``torch.compile`` a RuntimeError). On CUDA
            this is a device-side assertion, as in PyTorch, reported at the next synchronisation.
        NotImplementedError: Forward-mode derivatives, which are not offered.

    Numerics: 16-bit inputs are computed in float32, float64 in float64; all in log space, with
    :math:`\alpha` and :math:`1-\alpha` as :math:`\sigma(g)` and :math:`\sigma(-g)`, so that a label
    that both find unlikely keeps its gradient. A class that one head masks with ``-inf`` has what
    the other gives it. NaN stays in its row. No valid row at all gives NaN for ``"mean"`` and 0 for
    ``"sum"``. Same inputs give the same bits for any number of threads.

    Cost: one pass over the logits forward and two backward, or two in all where the gradients are
    written during the forward pass (scalar reductions of float32, float64 and bfloat16 in eager
    mode). No temporary of size N·C. Second derivatives are computed by the plain PyTorch reference.

    Source: Bai, Anderson, Kim and Sojoudi, Improving the Accuracy-Robustness Trade-Off of
    Classifiers via Adaptive Smoothing, arXiv 2301.12554.

    Example:
        >>> import torch
        >>> from robustcore.losses import mixture_cross_entropy
        >>> accurate = torch.tensor([[4.0, 0.0, 0.0]], requires_grad=True)
        >>> robust = torch.tensor([[0.0, 1.0, 0.0]])
        >>> loss = mixture_cross_entropy(accurate, robust, torch.zeros(1), torch.tensor([1]))
        >>> loss.backward()
        >>> round(loss.item(), 4), round(accurate.grad[0, 1].item(), 4)
        (1.2144, -0.0292)
    """
    op = "mixture_cross_entropy"
    of_rows1, number1 = scale_argument(op, "scale1", scale1, logits1, dim)
    of_rows2, number2 = scale_argument(op, "scale2", scale2, logits1, dim)
    return _loss(
        row_loss_arguments(
            op,
            ("logits1", logits1),
            target,
            second=("logits2", logits2),
            row_values=(("gate", gate), ("scale1", of_rows1), ("scale2", of_rows2)),
            parameters=(number1, number2),
            weight=weight,
            sample_weight=sample_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
            dim=dim,
            inplace_gradients=inplace_gradients,
        )
    )


class MixtureCrossEntropyLoss(RowLossModule):
    """:func:`mixture_cross_entropy` as a module, in the manner of
    :class:`torch.nn.CrossEntropyLoss`.

    Args:
        scale1, scale2: Numbers, or tensors of one number; a :class:`torch.nn.Parameter` is learned.
        weight: Class weights, kept as a buffer.
        options: As of :func:`mixture_cross_entropy`.

    Example:
        >>> import torch
        >>> from robustcore.losses import MixtureCrossEntropyLoss
        >>> criterion = MixtureCrossEntropyLoss(1.2, 0.5, label_smoothing=0.1)
        >>> loss = criterion(
        ...     torch.randn(8, 10), torch.randn(8, 10), torch.randn(8), torch.arange(8)
        ... )
    """

    absent = _ABSENT

    def __init__(
        self,
        scale1: Scale = 1.0,
        scale2: Scale = 1.0,
        weight: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(weight, **options)
        check_scale("MixtureCrossEntropyLoss", "scale1", scale1)
        check_scale("MixtureCrossEntropyLoss", "scale2", scale2)
        self.scale1 = scale1
        self.scale2 = scale2

    def forward(
        self,
        logits1: Tensor,
        logits2: Tensor,
        gate: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        return mixture_cross_entropy(
            logits1,
            logits2,
            gate,
            target,
            self.scale1,
            self.scale2,
            sample_weight=sample_weight,
            **self.options(),
        )

    def extra_repr(self) -> str:
        shown = [
            f"{name}={getattr(self, name)}"
            for name in ("scale1", "scale2")
            if not isinstance(getattr(self, name), Tensor)
        ]
        return ", ".join([*shown, super().extra_repr()])
