"""Label-distributionally robust loss, LDR-KL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._library import functorch_active
from ._arguments import check_real, row_loss_arguments
from ._module import RowLossModule
from ._row_loss import RowLoss, reference_options
from ._scales import one_per_row

__all__ = ["LDRKLLoss", "check_margin", "check_rows", "ldr_kl_loss", "scale_of_rows"]


_ABSENT = ("temperature", "softcap", "lse_square_scale")


def _reference(*raw: Any) -> Tensor:
    from ..reference.losses import ldr_kl_loss as reference

    lam, margin = raw[8]
    lam = lam if raw[2] is None else raw[2]
    return reference(raw[0], raw[5], lam, margin=margin, **reference_options(raw, _ABSENT))


_loss = RowLoss("ldr_kl_loss", _reference)


def check_margin(op: str, margin: float) -> None:
    check_real(op, "margin", margin)
    if not 0.0 <= margin < float("inf"):
        raise ValueError(f"{op}: margin must be finite and not negative, got {margin}")


def scale_of_rows(
    op: str, name: str, value: Any, logits: Any = None, dim: Any = -1
) -> tuple[Tensor | None, float]:
    """A positive number for all rows, or one per row: a tensor or None, and a number.

    A tensor of one number is read where that takes no synchronisation, otherwise expanded.
    """
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(f"{op}: {name} must not require grad, but does")
        if value.dim() > 0 or not _readable(value):
            return one_per_row(value, logits, dim), 1.0
        value = value.item()
    check_real(op, name, value)
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{op}: {name} must be positive and finite, got {value}")
    return None, float(value)


def check_rows(op: str, name: str, value: Tensor | None, target: Tensor, ignore_index: int) -> None:
    """Numbers per row, of ignored rows anything, must be positive and finite; NaN is let through.

    Only where looking at them takes no synchronisation.
    """
    if value is None or not _readable(value):
        return
    value = value.detach().reshape(-1)
    wrong = (value <= 0) | (value == torch.inf)
    if not target.is_floating_point():
        wrong &= target.reshape(-1) != ignore_index
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"{op}: {name} must be positive and finite, got {value[row].item()} at row {row}"
        )


def _readable(value: Tensor) -> bool:
    return value.is_cpu and not torch.compiler.is_compiling() and not functorch_active()


def ldr_kl_loss(
    logits: Tensor,
    target: Tensor,
    lam: float | Tensor = 1.0,
    *,
    margin: float = 0.1,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    r"""Label-distributionally robust loss with KL regularisation (LDR-KL).

    .. math::
        \ell(z, y) = \lambda \log \frac1C \sum_k
        \exp\frac{c [k \ne y] + \tilde z_k - \tilde z_y}{\lambda}, \qquad
        \tilde z = C \frac{\mathrm{softplus}(z)}{\sum_k \mathrm{softplus}(z_k)}

    The largest expected margin violation over label distributions near the uniform one.
    :math:`\lambda \to 0` is the multi-class hinge loss, :math:`\lambda \to \infty` the mean of all
    violations, which is the more robust to wrong labels. With :math:`r` the softmax of those
    exponents, :math:`\partial \tilde z = r - e`.

    :math:`\lambda` is the temperature, so there is no other; there is no soft-cap and no squared
    logsumexp.

    Args:
        logits: Shape ``(..., C)`` (classes in ``dim``), float32, float64, bfloat16 or float16.
            Differentiable.
        target: Class indices in ``[0, C)`` or ``ignore_index``, int64, shape ``(...)``; or class
            probabilities :math:`q`, floating, shape of ``logits``, a constant: the loss is then
            :math:`\sum_c q_c \ell(z, c)`.
        lam: :math:`\lambda`, positive; one number, or one per row, shape ``(...)``. A constant. The
            paper tries 0.1, 1 and 10. Tensors are checked for that in eager mode on CPU; elsewhere
            their values are not looked at, as this would take a synchronisation.
        margin: :math:`c`, finite and not negative.
        weight: Class weights, shape ``(C,)``, floating; a constant.
        sample_weight: Weights of the rows, shape ``(...)``, floating. Differentiable.
        ignore_index: Rows with this target contribute nothing: loss 0, gradients exactly 0, even
            where their logits are not finite.
        label_smoothing: In ``[0, 1]``; the label becomes a mixture as in
            :func:`torch.nn.functional.cross_entropy`.
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

    Numerics: 16-bit inputs are computed in float32, float64 in float64. The gradient of the label
    is not formed as :math:`r_y - 1` where the label has the largest logit, and keeps its digits.
    Rows of large negative logits, where softplus underflows, have the limit :math:`\tilde z =
    C\,\mathrm{softmax}(z)`. Classes masked with ``-inf`` are left out of all sums and of :math:`C`;
    a masked label costs infinity. NaN stays in its row. No valid row at all gives NaN for
    ``"mean"`` and 0 for ``"sum"``. Same inputs give the same bits for any number of threads.

    Cost: one pass over the logits forward and two backward, or two in all where the gradient is
    written during the forward pass (scalar reductions of float32, float64 and bfloat16 in eager
    mode); further visits of a row find it in cache. No temporary of size N·C. Second derivatives
    are computed by the plain PyTorch reference.

    Source: Zhu, Ying and Yang, Label Distributionally Robust Losses for Multi-class Classification:
    Consistency, Robustness and Adaptivity, arXiv 2112.14869.

    Example:
        >>> import torch
        >>> from robustcore.losses import ldr_kl_loss
        >>> logits = torch.tensor([[4.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
        >>> losses = ldr_kl_loss(logits, torch.tensor([0, 3]), 1.0, reduction="none")
        >>> [round(loss, 3) for loss in losses.tolist()]
        [-1.068, 0.076]
    """
    check_margin("ldr_kl_loss", margin)
    of_rows, of_all = scale_of_rows("ldr_kl_loss", "lam", lam, logits, dim)
    arguments = row_loss_arguments(
        "ldr_kl_loss",
        ("logits", logits),
        target,
        row_values=(("lam", of_rows),),
        parameters=(of_all, float(margin)),
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        dim=dim,
        inplace_gradients=inplace_gradients,
    )
    check_rows("ldr_kl_loss", "lam", of_rows, target, ignore_index)
    return _loss(arguments)


class LDRKLLoss(RowLossModule):
    """:func:`ldr_kl_loss` as a module, like :class:`torch.nn.CrossEntropyLoss`.

    Args:
        lam: One number for all rows; a tensor of one per row may be given at each call instead.
        margin: As of :func:`ldr_kl_loss`.
        weight: Class weights, kept as a buffer.
        options: As of :func:`ldr_kl_loss`.

    Example:
        >>> import torch
        >>> from robustcore.losses import LDRKLLoss
        >>> criterion = LDRKLLoss(lam=10.0)
        >>> loss = criterion(torch.randn(8, 10), torch.arange(8))
    """

    absent = _ABSENT

    def __init__(
        self, lam: float = 1.0, margin: float = 0.1, weight: Tensor | None = None, **options: Any
    ) -> None:
        super().__init__(weight, **options)
        scale_of_rows("LDRKLLoss", "lam", lam)
        check_margin("LDRKLLoss", margin)
        self.lam = lam
        self.margin = margin

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        lam: torch.Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        return ldr_kl_loss(
            logits,
            target,
            self.lam if lam is None else lam,
            margin=self.margin,
            sample_weight=sample_weight,
            **self.options(),
        )

    def extra_repr(self) -> str:
        return f"lam={self.lam}, margin={self.margin}, {super().extra_repr()}"
