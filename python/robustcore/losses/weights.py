"""Weights per sample that follow from the losses of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._checks import (
    accumulate_dtype,
    check_choice,
    check_device,
    check_floating,
    check_shape,
    check_tensor,
)
from .._reference import reference_forced
from ._arguments import check_real, check_switch
from ._sums import sum_in_order

__all__ = ["dro_weights"]

_NORMALIZATIONS = ("sum", "mean")


def dro_weights(
    losses: Tensor,
    temperature: float,
    *,
    mask: Tensor | None = None,
    normalization: str = "sum",
    detach: bool = True,
) -> Tensor:
    r"""Weights of distributionally robust optimisation with a Kullback-Leibler penalty (DONE).

    .. math::
        w = \arg\max_{w \in \Delta} \; \sum_i w_i \ell_i - r \, \mathrm{KL}(w \,\|\, \text{uniform})
        \quad\Longrightarrow\quad w_i = \frac{e^{\ell_i / r}}{\sum_j e^{\ell_j / r}}

    Training on :math:`\sum_i w_i \ell_i` with these weights as constants descends
    :math:`r \log \frac1n \sum_i e^{\ell_i / r}`, which lies between the mean (:math:`r \to \infty`)
    and the maximum (:math:`r \to 0`) of the losses.

    Args:
        losses: :math:`\ell`, any shape (one distribution over all of them), float32, float64,
            bfloat16 or float16.
        temperature: :math:`r`, positive and finite, in the unit of the losses.
        mask: Which losses count, bool, shape of ``losses``. The others get weight 0, whatever they
            hold. Pass ``target != ignore_index``.
        normalization: ``"sum"``: the weights add up to 1. ``"mean"``: their mean over the losses
            that count is 1, for losses that are averaged afterwards.
        detach: Whether the weights are constants for autograd. Otherwise differentiable in
            ``losses`` wherever these are finite.

    Returns:
        Weights of the shape of ``losses``, float32 (float64 for float64 losses).

    Raises:
        TypeError: An argument is not a tensor or has an unsupported dtype.
        ValueError: ``mask`` has another shape or device, or an option is out of range.

    Numerics: computed in float64 relative to the largest loss, so that no scale of losses and
    temperature overflows. Losses of ``+inf`` share the weight equally among them, as the limit of
    equal losses that grow; ``-inf`` gets weight 0, unless all are ``-inf``, which are equal. A NaN
    gets the weight NaN and leaves the weights of the others as if it were masked. Where nothing
    counts, all weights are 0. Same inputs, same bits, for any number of threads.

    Cost: a few passes over N values. Works under ``torch.compile`` and ``torch.func``.

    Source: Sow et al., Doubly Robust Instance-Reweighted Adversarial Training, arXiv 2308.00311
    (ICLR 2024). The closed form is that of the maximum above.

    Example:
        >>> import torch
        >>> from robustcore.losses import dro_weights
        >>> weights = dro_weights(torch.tensor([0.0, 1.0, 2.0]), temperature=1.0)
        >>> [round(w, 3) for w in weights.tolist()]
        [0.09, 0.245, 0.665]
        >>> mask = torch.tensor([True, True, False])
        >>> dro_weights(torch.tensor([1.0, 1.0, 9.0]), 0.1, mask=mask, normalization="mean")
        tensor([1., 1., 0.])
    """
    _check_dro(losses, temperature, mask, normalization, detach)
    if reference_forced():
        from ..reference.losses import dro_weights as reference

        return reference(losses, temperature, mask=mask, normalization=normalization, detach=detach)
    if detach:
        losses = losses.detach()
    nan = losses.isnan()
    counted = ~nan if mask is None else mask & ~nan
    values = losses.double().masked_fill(~counted, -math.inf)
    # Of no losses at all the largest is -inf too.
    largest = torch.cat([values.detach().flatten(), values.new_full((1,), -math.inf)]).max()
    finite = values.isfinite()
    distances = values.masked_fill(~finite, 0.0) - largest.nan_to_num(0.0, 0.0, 0.0)
    # inf - inf: an infinite maximum is compared with, and not subtracted.
    powers = torch.where(
        largest.isinf(), (values == largest).double(), (distances / temperature).exp()
    )
    powers = powers.masked_fill(~counted | (values.isneginf() & ~largest.isneginf()), 0.0)
    total = sum_in_order(powers.flatten())
    if normalization == "mean":
        total = total / counted.sum()
    weights = powers / torch.where(counted.any(), total, 1.0)
    weights = weights.masked_fill(nan if mask is None else nan & mask, math.nan)
    return weights.to(accumulate_dtype(losses.dtype))


def _check_dro(
    losses: Tensor, temperature: float, mask: Tensor | None, normalization: str, detach: bool
) -> None:
    op = "dro_weights"
    check_tensor(op, "losses", losses)
    check_real(op, "temperature", temperature)
    check_switch(op, "detach", detach)
    if mask is not None:
        check_tensor(op, "mask", mask)
        check_device(op, "mask", mask, losses.device)
    check_floating(op, "losses", losses)
    if mask is not None:
        if mask.dtype is not torch.bool:
            raise TypeError(
                f"{op}: mask must be bool, got {str(mask.dtype).removeprefix('torch.')}"
            )
        check_shape(op, "mask", mask, losses.shape)
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"{op}: temperature must be positive and finite, got {temperature}")
    check_choice(op, "normalization", normalization, _NORMALIZATIONS)
