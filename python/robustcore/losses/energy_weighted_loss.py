"""The loss of energy-weighted adversarial training (WEAT)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._checks import (
    autocast_enabled,
    check_choice,
    check_device,
    check_floating,
    check_int64,
    check_shape,
    check_tensor,
)
from ._arguments import check_class_options, check_real
from .comp_sum_loss import comp_sum_loss
from .energy_weights import energy_weights
from .pair_kl_divergence import pair_kl_divergence

__all__ = ["WEAT", "energy_weighted_loss"]

# What the published code takes for each variant.
_BETA = {"adversarial": 7.0, "natural": 6.0}


def energy_weighted_loss(
    natural_logits: Tensor,
    adversarial_logits: Tensor,
    target: Tensor,
    beta: float | None = None,
    *,
    variant: str = "adversarial",
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
) -> Tensor:
    r"""Cross-entropy and the TRADES divergence, both weighted by the energy of the natural input.

    .. math::
        \ell_i = w_i \left[\mathrm{CE}(\hat z_i, y_i) + \beta\, \mathrm{KL}(\mathrm{softmax}(z_i)
        \,\|\, \mathrm{softmax}(z'_i))\right], \qquad w = \mathrm{energy\_weights}(z)

    with natural logits :math:`z` and adversarial logits :math:`z'`. The cross-entropy is of
    :math:`\hat z = z'` in the ``"adversarial"`` variant and of :math:`\hat z = z` in the
    ``"natural"`` one. No gradient flows through the weights.

    Args:
        natural_logits: :math:`z`, shape ``(..., C)`` (classes in ``dim``), float32, float64,
            bfloat16 or float16. Differentiable.
        adversarial_logits: :math:`z'`, shape and dtype of ``natural_logits``. Differentiable.
        target: Class indices in ``[0, C)`` or ``ignore_index``, int64, shape ``(...)``; or class
            probabilities, floating, shape of the logits, a constant.
        beta: :math:`\beta`, finite and not negative; None takes that of the published code, 7 for
            ``"adversarial"`` and 6 for ``"natural"``.
        variant: ``"adversarial"`` or ``"natural"``.
        sample_weight: Further weights, shape ``(...)``, floating. Differentiable.
        ignore_index: Rows with this target contribute nothing to either term.
        label_smoothing: In ``[0, 1]``, of the cross-entropy.
        reduction: ``"none"`` (shape ``(...)``), ``"sum"``, or ``"mean"``: divided by the number of
            rows that are not ignored. No weight enters the denominator.
        dim: Where the classes are. Other than last costs copies.

    Returns:
        The loss, in the dtype of ``natural_logits`` (under autocast float32).

    Raises:
        TypeError: An argument is not a tensor or has an unsupported dtype.
        ValueError: Devices or shapes differ, there are no classes, or an option is out of range.
        IndexError: A target is out of range (CPU; under ``torch.compile`` a RuntimeError). On CUDA
            this is a device-side assertion, as in PyTorch, reported at the next synchronisation.
        NotImplementedError: Forward-mode derivatives, which are not offered.

    Numerics and determinism: those of :func:`energy_weights`, :func:`comp_sum_loss` (with
    :math:`\tau = 1`) and :func:`pair_kl_divergence`, of which this is made. Unlike the published
    code nothing is clamped: it adds 1e-12 inside the logarithm, which takes away the gradient of
    small probabilities.

    Cost: that of the three operators: the natural logits are read by two or three of them. 16-bit
    logits are copied to float32 first, so that the gradients of both terms are added before they
    are rounded: the gradient of a true class with probability 0.999 is right to 0.4 %.

    Source: energy-weighted adversarial training (WEAT), its published code.

    Example:
        >>> import torch
        >>> from robustcore.losses import energy_weighted_loss
        >>> natural = torch.tensor([[3.0, 0.0]], requires_grad=True)
        >>> adversarial = torch.tensor([[0.0, 0.0]], requires_grad=True)
        >>> loss = energy_weighted_loss(natural, adversarial, torch.tensor([0]))
        >>> loss.backward()
        >>> round(loss.item(), 4)
        1.36
    """
    op = "energy_weighted_loss"
    _check_options(op, beta, variant)
    for name, logits in (
        ("natural_logits", natural_logits),
        ("adversarial_logits", adversarial_logits),
    ):
        check_tensor(op, name, logits)
        check_device(op, name, logits, natural_logits.device)
        check_floating(op, name, logits)
    check_tensor(op, "target", target)
    check_device(op, "target", target, natural_logits.device)
    check_class_options(op, label_smoothing, reduction)
    check_int64(op, "ignore_index", ignore_index)
    check_int64(op, "dim", dim)
    dtype = natural_logits.dtype
    narrow = dtype in (torch.bfloat16, torch.float16) and adversarial_logits.dtype is dtype
    if narrow:
        # The gradients of the two terms are added before they are rounded.
        natural_logits, adversarial_logits = natural_logits.float(), adversarial_logits.float()
    weights = energy_weights(natural_logits, dim=dim)
    if sample_weight is not None:
        check_tensor(op, "sample_weight", sample_weight)
        check_device(op, "sample_weight", sample_weight, natural_logits.device)
        check_floating(op, "sample_weight", sample_weight)
        check_shape(op, "sample_weight", sample_weight, weights.shape)
        weights = weights * sample_weight.to(weights.dtype)
    cross_entropy = comp_sum_loss(
        adversarial_logits if variant == "adversarial" else natural_logits,
        target,
        sample_weight=weights,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        dim=dim,
    )
    divergence = pair_kl_divergence(
        natural_logits,
        adversarial_logits,
        None if target.is_floating_point() else target,
        sample_weight=weights,
        ignore_index=ignore_index,
        reduction=reduction,
        dim=dim,
    )
    loss = cross_entropy + (_BETA[variant] if beta is None else beta) * divergence
    return loss.to(dtype) if narrow and not autocast_enabled(loss.device) else loss


def _check_options(op: str, beta: float | None, variant: str) -> None:
    if not isinstance(variant, str):
        raise TypeError(f"{op}: variant must be a str, got {type(variant).__name__}")
    check_choice(op, "variant", variant, tuple(_BETA))
    if beta is None:
        return
    check_real(op, "beta", beta)
    if not 0.0 <= beta < float("inf"):
        raise ValueError(f"{op}: beta must be finite and not negative, got {beta}")


class WEAT(nn.Module):
    """:func:`energy_weighted_loss` as a module.

    Args:
        variant: ``"adversarial"`` or ``"natural"``.
        beta: Factor of the divergence; None takes the published one of the variant.
        options: As of :func:`energy_weighted_loss`.

    Example:
        >>> import torch
        >>> from robustcore.losses import WEAT
        >>> criterion = WEAT("natural", label_smoothing=0.1)
        >>> loss = criterion(torch.randn(8, 10), torch.randn(8, 10), torch.arange(8))
    """

    def __init__(
        self, variant: str = "adversarial", beta: float | None = None, **options: Any
    ) -> None:
        super().__init__()
        _check_options("WEAT", beta, variant)
        unknown = set(options) - {"ignore_index", "label_smoothing", "reduction", "dim"}
        if unknown:
            raise TypeError(f"WEAT: has no option {sorted(unknown)[0]}")
        given = {
            name: options[name] for name in ("label_smoothing", "reduction") if name in options
        }
        check_class_options("WEAT", **given)
        for name in ("ignore_index", "dim"):
            if name in options:
                check_int64("WEAT", name, options[name])
        self.variant = variant
        self.beta = _BETA[variant] if beta is None else beta
        self.options = options

    def forward(
        self,
        natural_logits: Tensor,
        adversarial_logits: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        return energy_weighted_loss(
            natural_logits,
            adversarial_logits,
            target,
            self.beta,
            variant=self.variant,
            sample_weight=sample_weight,
            **self.options,
        )

    def extra_repr(self) -> str:
        shown = [f"{name}={value!r}" for name, value in self.options.items()]
        return ", ".join([f"variant={self.variant!r}", f"beta={self.beta}", *shown])
