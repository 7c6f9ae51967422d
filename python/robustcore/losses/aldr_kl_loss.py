"""Adaptive label-distributionally robust loss, ALDR-KL: the loss and the step of temperatures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import check_tensor
from .._library import Operator
from .._reference import wants_reference
from ._arguments import check_real, row_loss_arguments
from ._row_loss import RowLoss, fake_forward, reference_options
from .ldr_kl_loss import check_margin, check_rows, scale_of_rows

__all__ = ["ABSENT", "aldr_kl_loss", "aldr_kl_temperature", "check_aldr", "reference_of"]


# Options of row losses that these do not have.
ABSENT = ("temperature", "softcap", "lse_square_scale")


def reference_of(*raw: Any) -> Tensor:
    """The reference, from the arguments of the operator."""
    from ..reference.losses import aldr_kl_loss as reference

    lam, margin, alpha, lambda0 = raw[8]
    return reference(
        raw[0],
        raw[5],
        lam if raw[2] is None else raw[2],
        margin=margin,
        alpha=alpha,
        lambda0=lambda0,
        **reference_options(raw, ABSENT),
    )


_loss = RowLoss("aldr_kl_loss", reference_of)
_temperature = Operator("aldr_kl_temperature", fake=fake_forward)


def check_aldr(op: str, alpha: float, lambda0: float) -> None:
    check_real(op, "alpha", alpha)
    if not 1.0 < alpha < float("inf"):
        raise ValueError(f"{op}: alpha must be above 1 and finite, got {alpha}")
    scale_of_rows(op, "lambda0", lambda0)


def aldr_kl_loss(
    logits: Tensor,
    target: Tensor,
    lam: float | Tensor = 10.0,
    *,
    margin: float = 0.1,
    alpha: float = 2.0,
    lambda0: float = 10.0,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    r"""Adaptive label-distributionally robust loss (ALDR-KL), the temperatures of the rows given.

    .. math::
        \ell(z, y) = \lambda \log \frac1C \sum_k
        \exp\frac{c [k \ne y] + \tilde z_k - \tilde z_y}{\lambda}
        - \frac{\alpha \log C}{2 \lambda_0} (\lambda - \lambda_0)^2, \qquad
        \tilde z = \frac{C z}{\lVert z \rVert_1}

    As :func:`ldr_kl_loss` with other scores, and with a :math:`\lambda` per example that
    :func:`aldr_kl_temperature` adapts to how sure the model is; here it is an argument.
    :class:`ALDRKLLoss` keeps these temperatures, and :func:`aldr_kl_indexed_loss` does both in one
    operator. With :math:`r` the softmax of the exponents,
    :math:`n = \lVert z \rVert_1 / C` and :math:`d = r - e`:
    :math:`\partial z = (d - \langle d, \tilde z \rangle\,\mathrm{sign}(z) / C) / n`.

    There is no other temperature, no soft-cap and no squared logsumexp.

    Args:
        logits: Shape ``(..., C)`` (classes in ``dim``), float32, float64, bfloat16 or float16.
            Differentiable.
        target: Class indices in ``[0, C)`` or ``ignore_index``, int64, shape ``(...)``; or class
            probabilities :math:`q`, floating, shape of ``logits``, a constant: the loss is then
            :math:`\sum_c q_c \ell(z, c)`.
        lam: :math:`\lambda`, positive; one number, or one per row, shape ``(...)``. A constant.
            Give the result of :func:`aldr_kl_temperature`. Checked as by :func:`ldr_kl_loss`.
        margin: :math:`c`, finite and not negative.
        alpha, lambda0: :math:`\alpha > 1` and :math:`\lambda_0 > 0`, as of
            :func:`aldr_kl_temperature`; they only enter the second term, a constant for the logits.
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
    is not formed as :math:`r_y - 1` where the label has the largest logit, and keeps its digits. A
    row of zeros has :math:`\tilde z = 0` and the gradient 0 (so do not start from logits that are
    exactly zero). Classes masked with ``-inf`` are left out of all sums and of :math:`C`; a masked
    label costs infinity. NaN stays in its row. No valid row at all gives NaN for ``"mean"`` and 0
    for ``"sum"``. Same inputs give the same bits for any number of threads.

    Cost: one pass over the logits forward and two backward, or two in all where the gradient is
    written during the forward pass (scalar reductions of float32, float64 and bfloat16 in eager
    mode); further visits of a row find it in cache. No temporary of size N·C. Second derivatives
    are computed by the plain PyTorch reference.

    Source: Zhu, Ying and Yang, Label Distributionally Robust Losses for Multi-class Classification:
    Consistency, Robustness and Adaptivity, arXiv 2112.14869.

    Example:
        >>> import torch
        >>> from robustcore.losses import aldr_kl_loss, aldr_kl_temperature
        >>> logits = torch.tensor([[4.0, 0.5, 0.5, -1.0], [1.0, 1.0, 1.0, 1.0]])
        >>> lam = aldr_kl_temperature(logits, torch.full((2,), 10.0))
        >>> losses = aldr_kl_loss(logits, torch.tensor([0, 3]), lam, reduction="none")
        >>> [round(loss, 3) for loss in losses.tolist()]
        [-1.853, 0.075]
    """
    check_margin("aldr_kl_loss", margin)
    check_aldr("aldr_kl_loss", alpha, lambda0)
    of_rows, of_all = scale_of_rows("aldr_kl_loss", "lam", lam, logits, dim)
    arguments = row_loss_arguments(
        "aldr_kl_loss",
        ("logits", logits),
        target,
        row_values=(("lam", of_rows),),
        parameters=(of_all, float(margin), float(alpha), float(lambda0)),
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        dim=dim,
        inplace_gradients=inplace_gradients,
    )
    check_rows("aldr_kl_loss", "lam", of_rows, target, ignore_index)
    return _loss(arguments)


def aldr_kl_temperature(
    logits: Tensor, lam: Tensor, *, alpha: float = 2.0, lambda0: float = 10.0, dim: int = -1
) -> Tensor:
    r"""The step of ALDR-KL's temperatures: one closed-form update per row.

    .. math::
        \lambda' = \lambda_0 \left(1 - \frac{\mathrm{KL}(q \Vert \mathrm{uniform})}
        {\alpha \log C}\right), \qquad
        q \propto \mathrm{softmax}(\tilde z / \lambda) + 10^{-5}, \qquad
        \tilde z = \frac{C z}{\lVert z \rVert_1}

    Between :math:`\lambda_0 (1 - 1/\alpha)`, where the model is sure, and :math:`\lambda_0`. The
    label does not enter.

    Args:
        logits: Shape ``(..., C)`` (classes in ``dim``), float32, float64, bfloat16 or float16. A
            constant: no gradient passes.
        lam: :math:`\lambda` of each row, positive, floating, shape ``(...)``.
        alpha: :math:`\alpha > 1`, finite.
        lambda0: :math:`\lambda_0 > 0`, finite.
        dim: Where the classes are.

    Returns:
        The new :math:`\lambda` of each row, shape ``(...)``, float32 (float64 for float64 logits),
        without a gradient.

    Raises:
        TypeError: An argument is not a tensor or has an unsupported dtype.
        ValueError: Devices or shapes differ, there are no classes, or an option is out of range.

    Numerics: computed in float32, float64 in float64. Classes masked with ``-inf`` are left out; a
    single class gives :math:`\lambda_0`. NaN stays in its row.

    Cost: one pass over the logits, no temporary of their size.

    Source: arXiv 2112.14869.

    Example:
        >>> import torch
        >>> from robustcore.losses import aldr_kl_temperature
        >>> logits = torch.tensor([[9.0, 0.1, 0.1, -0.1], [1.0, 1.0, 1.0, 1.0]])
        >>> lam = aldr_kl_temperature(logits, torch.tensor([1.0, 1.0]))
        >>> [round(value, 2) for value in lam.tolist()]
        [6.05, 10.0]
    """
    op = "aldr_kl_temperature"
    check_tensor(op, "logits", logits)
    check_tensor(op, "lam", lam)
    check_aldr(op, alpha, lambda0)
    if lam.dim() == 0 and logits.dim() != 1:
        raise ValueError(f"{op}: lam must have one number per row, got shape ()")
    logits, lam = logits.detach(), lam.detach()
    rows = list(logits.shape)
    if -len(rows) <= dim < len(rows):
        del rows[dim]
    # The operator has the signature of a loss; the label is not looked at.
    arguments = row_loss_arguments(
        op,
        ("logits", logits),
        torch.zeros(rows, dtype=torch.int64, device=logits.device),
        row_values=(("lam", lam),),
        parameters=(float(alpha), float(lambda0)),
        ignore_index=-100,
        reduction="none",
        dim=dim,
    )
    raw = arguments.raw
    if wants_reference(logits):
        from ..reference.losses import aldr_kl_temperature as reference

        result = reference(raw[0], raw[2], alpha=alpha, lambda0=lambda0)
    else:
        result = _temperature(*raw)
    return result.reshape(arguments.shape)
