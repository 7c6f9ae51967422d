"""The spherical Z-loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._arguments import check_real, row_loss_arguments
from ._module import RowLossModule
from ._row_loss import RowLoss, reference_options

__all__ = ["SphericalZLoss", "spherical_z_loss"]


_ABSENT = ("temperature", "softcap", "lse_square_scale")


def _reference(*raw: Any) -> Tensor:
    from ..reference.losses import spherical_z_loss as reference

    a, b = raw[8]
    return reference(raw[0], raw[5], a=a, b=b, **reference_options(raw, _ABSENT))


_loss = RowLoss("spherical_z_loss", _reference)


def _check(op: str, a: float, b: float) -> None:
    check_real(op, "a", a)
    if not 0.0 < a < float("inf"):
        raise ValueError(f"{op}: a must be positive and finite, got {a}")
    check_real(op, "b", b)
    if not abs(b) < float("inf"):
        raise ValueError(f"{op}: b must be finite, got {b}")


def spherical_z_loss(
    logits: Tensor,
    target: Tensor,
    *,
    a: float = 1.0,
    b: float = 0.0,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    r"""The Z-loss of the spherical family: a softplus of the label's standardised logit.

    .. math::
        \ell(z, y) = \tfrac1a \log\left(1 + e^{a (b - \bar z_y)}\right), \qquad
        \bar z = \frac{z - \mu}{\sigma},

    with mean :math:`\mu` and standard deviation :math:`\sigma` (divided by :math:`C`) over the
    classes of the row: unchanged when the logits are shifted or scaled. Not the "z-loss" of
    language models, which is the option ``lse_square_scale`` of other losses. :math:`\partial z =
    -\frac{s}{\sigma} (e - \frac1C - \bar z_y \bar z / C)`, :math:`s = \mathrm{sigmoid}(a (b - \bar
    z_y))`.

    There is no temperature and no soft-cap (a scale of the logits changes nothing, and
    :math:`|\bar z| \le \sqrt{C - 1}`), and no squared logsumexp. With two classes
    :math:`\bar z = \pm 1`, and the gradient is 0 whatever the logits are.

    Args:
        logits: Shape ``(..., C)`` (classes in ``dim``), float32, float64, bfloat16 or float16.
            Differentiable.
        target: Class indices in ``[0, C)`` or ``ignore_index``, int64, shape ``(...)``; or class
            probabilities :math:`q`, floating, shape of ``logits``, a constant: the loss is then
            :math:`\sum_c q_c \ell(z, c)`.
        a: How sharply the softplus bends, positive and finite.
        b: Where it bends, finite: labels whose standardised logit is well above cost nothing more.
            Tune both; values of ``b`` above :math:`\sqrt{C - 1}` cannot be reached.
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

    Numerics: 16-bit inputs are computed in float32, float64 in float64; mean, then variance of the
    differences from it, both relative to the row's largest logit, so that neither a common offset
    nor a tiny spread loses digits. A constant row (:math:`\sigma = 0`) counts as standardised to
    zeros: its loss is :math:`\log(1 + e^{ab}) / a`, its gradient 0. Classes masked with ``-inf``
    are left out of mean, variance and :math:`C`; a masked label costs infinity. NaN stays in its
    row. No valid row at all gives NaN for ``"mean"`` and 0 for ``"sum"``. Same inputs give the same
    bits for any number of threads.

    Cost: one pass over the logits forward and two backward, or two in all where the gradient is
    written during the forward pass (scalar reductions of float32, float64 and bfloat16 in eager
    mode); further visits of a row find it in cache. No temporary of size N·C. Second derivatives
    are computed by the plain PyTorch reference.

    Source: de Brébisson and Vincent, The Z-loss: a shift and scale invariant classification loss
    belonging to the Spherical Family, arXiv 1604.08859.

    Example:
        >>> import torch
        >>> from robustcore.losses import spherical_z_loss
        >>> logits = torch.tensor([[3.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
        >>> losses = spherical_z_loss(logits, torch.tensor([0, 3]), reduction="none")
        >>> [round(loss, 3) for loss in losses.tolist()]
        [0.163, 0.693]
    """
    _check("spherical_z_loss", a, b)
    return _loss(
        row_loss_arguments(
            "spherical_z_loss",
            ("logits", logits),
            target,
            parameters=(float(a), float(b)),
            weight=weight,
            sample_weight=sample_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
            dim=dim,
            inplace_gradients=inplace_gradients,
        )
    )


class SphericalZLoss(RowLossModule):
    """:func:`spherical_z_loss` as a module, like :class:`torch.nn.CrossEntropyLoss`.

    Args:
        a, b: As of :func:`spherical_z_loss`.
        weight: Class weights, kept as a buffer.
        options: As of :func:`spherical_z_loss`.

    Example:
        >>> import torch
        >>> from robustcore.losses import SphericalZLoss
        >>> criterion = SphericalZLoss(a=0.5, b=2.0)
        >>> loss = criterion(torch.randn(8, 10), torch.arange(8))
    """

    absent = _ABSENT

    def __init__(
        self, a: float = 1.0, b: float = 0.0, weight: Tensor | None = None, **options: Any
    ) -> None:
        super().__init__(weight, **options)
        _check("SphericalZLoss", a, b)
        self.a = a
        self.b = b

    def forward(
        self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        return spherical_z_loss(
            logits, target, a=self.a, b=self.b, sample_weight=sample_weight, **self.options()
        )

    def extra_repr(self) -> str:
        return f"a={self.a}, b={self.b}, {super().extra_repr()}"
