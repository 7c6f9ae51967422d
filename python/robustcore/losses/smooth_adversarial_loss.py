"""The smooth adversarial comp-sum loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._arguments import check_real, row_loss_arguments
from ._module import RowLossModule
from ._row_loss import RowLoss, reference_options
from ._scales import one_per_row

__all__ = ["SmoothAdversarialLoss", "smooth_adversarial_loss"]

_ABSENT = ("label_smoothing", "softcap", "lse_square_scale")


def _reference(*raw: Any) -> Tensor:
    from ..reference.losses import smooth_adversarial_loss as reference

    logits, adversarial_logits, tau, _, _, target, _, _, parameters = raw[:9]
    return reference(
        logits,
        adversarial_logits,
        target,
        parameters[0] if tau is None else tau,
        parameters[1],
        **reference_options(raw, _ABSENT),
    )


_loss = RowLoss("smooth_adversarial_loss", _reference)


def smooth_adversarial_loss(
    logits: Tensor,
    adversarial_logits: Tensor,
    target: Tensor,
    tau: float | Tensor = 1.0,
    nu: float = 1.0,
    *,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    temperature: float = 1.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    r"""A comp-sum loss of natural inputs, and how far an attack moves the margins.

    .. math::
        \ell(z, z', y) = \ell_\tau(z / T, y) + \nu \left\| \Delta(z') - \Delta(z) \right\|_2, \qquad
        \Delta_k(z) = z_y - z_k

    :math:`z` are the logits of natural inputs, :math:`z'` those of inputs that an attack has found
    within its bounds; :math:`\ell_\tau` is :func:`comp_sum_loss` (:math:`\tau = 1`: cross-entropy).
    The comp-sum loss is Lipschitz in the margins, so that for :math:`\nu` large enough the sum
    bounds its value under the attack. With :math:`u_k = (z'_k - z_k) - (z'_y - z_y)` the norm is
    :math:`\|u\|`; its derivatives for :math:`z'` are :math:`u_k / \|u\|` for :math:`k \ne y` and
    :math:`-\sum_k u_k / \|u\|` for :math:`y`, the opposite for :math:`z`, and all 0 where the
    attack moves nothing.

    Args:
        logits: :math:`z`, shape ``(..., C)`` (classes in ``dim``), float32, float64, bfloat16 or
            float16. Differentiable.
        adversarial_logits: :math:`z'`, shape and dtype of ``logits``. Differentiable.
        target: Class indices in ``[0, C)`` or ``ignore_index``, int64, shape ``(...)``. Margins are
            those of one class: class probabilities and label smoothing are not offered.
        tau: :math:`\tau`, finite; one number, or one per row, shape ``(...)``. A constant.
        nu: :math:`\nu`, finite and not negative.
        weight: Class weights, shape ``(C,)``, floating; a constant. They multiply both terms.
        sample_weight: Weights of the rows, shape ``(...)``, floating. Differentiable.
        ignore_index: Rows with this target contribute nothing: loss 0, gradients exactly 0, even
            where their logits are not finite.
        temperature: :math:`T` (the paper's :math:`\rho`), positive; in the first term alone.
        reduction: ``"none"`` (shape ``(...)``), ``"sum"``, or ``"mean"``, which divides as
            :func:`torch.nn.functional.cross_entropy` does: by the sum of ``weight[target]`` over
            the rows that are not ignored. Sample weights do not enter the denominator.
        dim: Where the classes are. Other than last costs a copy.
        inplace_gradients: Allows the gradients to overwrite the logits (those that require grad) in
            the forward pass, which saves their memory. Done for scalar reductions in eager mode
            where the logits are contiguous; their version counters move, so that autograd notices
            anyone who still needs the values.

    Returns:
        The loss, in the dtype of ``logits`` (under autocast float32).

    Raises:
        TypeError: An argument is not a tensor or has an unsupported dtype.
        ValueError: Devices or shapes differ, there are no classes, or an option is out of range;
            ``inplace_gradients`` with a leaf that requires grad.
        IndexError: A target is out of range (CPU; under ``torch.compile`` a RuntimeError). On CUDA
            this is a device-side assertion, as in PyTorch, reported at the next synchronisation.
        NotImplementedError: Forward-mode derivatives, which are not offered.

    Numerics: 16-bit inputs are computed in float32, float64 in float64. The norm is summed relative
    to its largest entry, so that nothing overflows, underflows or cancels. A class masked with
    ``-inf`` in both tensors takes no part; masked in one alone it makes the norm infinite. NaN
    stays in its row. Same inputs give the same bits for any number of threads.

    Cost: one pass over the logits forward and two backward, or two in all where the gradients are
    written during the forward pass (scalar reductions of float32, float64 and bfloat16 in eager
    mode). No temporary of size N·C. Second derivatives are computed by the plain PyTorch reference.

    Source: Mao, Mohri and Zhong, Cross-Entropy Loss Functions: Theoretical Analysis and
    Applications, arXiv 2304.07288.

    Example:
        >>> import torch
        >>> from robustcore.losses import smooth_adversarial_loss
        >>> logits, target = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> attacked = torch.tensor([[1.0, 1.0]], requires_grad=True)
        >>> loss = smooth_adversarial_loss(logits, attacked, target, nu=0.5)
        >>> loss.backward()
        >>> round(loss.item(), 4), attacked.grad.tolist()
        (1.1269, [[-0.5, 0.5]])
    """
    op = "smooth_adversarial_loss"
    tau_of_rows: Tensor | None = None
    number = 1.0
    if isinstance(tau, Tensor):
        if tau.requires_grad:
            raise ValueError(f"{op}: tau must not require grad, but does")
        tau_of_rows = one_per_row(tau, logits, dim)
    else:
        number = tau
        _check_number(op, "tau", tau)
    _check_nu(op, nu)
    return _loss(
        row_loss_arguments(
            op,
            ("logits", logits),
            target,
            second=("adversarial_logits", adversarial_logits),
            row_values=(("tau", tau_of_rows),),
            parameters=(float(number), float(nu)),
            weight=weight,
            sample_weight=sample_weight,
            ignore_index=ignore_index,
            temperature=temperature,
            reduction=reduction,
            dim=dim,
            inplace_gradients=inplace_gradients,
            soft_labels=False,
        )
    )


def _check_number(op: str, name: str, value: float) -> None:
    check_real(op, name, value)
    if not float("-inf") < value < float("inf"):
        raise ValueError(f"{op}: {name} must be finite, got {value}")


def _check_nu(op: str, nu: float) -> None:
    _check_number(op, "nu", nu)
    if nu < 0:
        raise ValueError(f"{op}: nu must not be negative, got {nu}")


class SmoothAdversarialLoss(RowLossModule):
    """:func:`smooth_adversarial_loss` as a module.

    Args:
        tau: One number for all rows.
        nu: Factor of the norm.
        weight: Class weights, kept as a buffer.
        options: As of :func:`smooth_adversarial_loss`.

    Example:
        >>> import torch
        >>> from robustcore.losses import SmoothAdversarialLoss
        >>> criterion = SmoothAdversarialLoss(nu=0.5)
        >>> loss = criterion(torch.randn(8, 10), torch.randn(8, 10), torch.arange(8))
    """

    absent = _ABSENT

    def __init__(
        self, tau: float = 1.0, nu: float = 1.0, weight: Tensor | None = None, **options: Any
    ) -> None:
        super().__init__(weight, **options)
        _check_number("SmoothAdversarialLoss", "tau", tau)
        _check_nu("SmoothAdversarialLoss", nu)
        self.tau = tau
        self.nu = nu

    def forward(
        self,
        logits: Tensor,
        adversarial_logits: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        return smooth_adversarial_loss(
            logits,
            adversarial_logits,
            target,
            self.tau,
            self.nu,
            sample_weight=sample_weight,
            **self.options(),
        )

    def extra_repr(self) -> str:
        return f"tau={self.tau}, nu={self.nu}, {super().extra_repr()}"
