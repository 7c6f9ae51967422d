"""Digits that a rounded logsumexp would cost: sure rows, common offsets, huge logits.

Losses are compared with the reference in float64 on the same numbers, relative to their size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustcore import losses, reference

Loss = Callable[[Any, Tensor, Tensor], Tensor]


def _state(z: Tensor) -> tuple[Tensor, Tensor]:
    return torch.arange(len(z)), torch.zeros_like(z.detach())


def _gate(z: Tensor, value: float = 0.25) -> Tensor:
    return torch.full(z.shape[:1], value, dtype=z.dtype)


def _one_hot(z: Tensor, y: Tensor) -> Tensor:
    return F.one_hot(y, z.shape[1]).to(z.dtype)


LOSSES: dict[str, Loss] = {
    **{
        f"comp_sum_loss, tau {tau}": lambda m, z, y, tau=tau: m.comp_sum_loss(
            z, y, tau, reduction="none"
        )
        for tau in (0.0, 0.5, 1.0, 1.7, 2.0)
    },
    "probabilities as labels": lambda m, z, y: m.comp_sum_loss(z, _one_hot(z, y), reduction="none"),
    "soft-cap": lambda m, z, y: m.comp_sum_loss(z, y, softcap=1e9, reduction="none"),
    "symmetric_cross_entropy": lambda m, z, y: m.symmetric_cross_entropy(z, y, reduction="none"),
    "taylor_cross_entropy": lambda m, z, y: m.taylor_cross_entropy(z, y, reduction="none"),
    "normalized_cross_entropy": lambda m, z, y: m.normalized_cross_entropy(z, y, reduction="none"),
    "normalized_cross_entropy, probabilities": lambda m, z, y: m.normalized_cross_entropy(
        z, _one_hot(z, y), reduction="none"
    ),
    # Nearly closed: a mixture rounds the logits.
    "gated_cross_entropy": lambda m, z, y: m.gated_cross_entropy(
        z, z, _gate(z, -50.0), y, reduction="none"
    ),
    "mixture_cross_entropy": lambda m, z, y: m.mixture_cross_entropy(
        z, z, _gate(z), y, reduction="none"
    ),
    "smooth_adversarial_loss": lambda m, z, y: m.smooth_adversarial_loss(
        z, z.detach(), y, reduction="none"
    ),
    "early_learning_loss": lambda m, z, y: m.early_learning_loss(
        z, y, *_state(z), strength=0.0, reduction="none"
    ),
}
# Their true class alone is formed without a difference of two numbers close to 1.
BY_CLASS = [name for name in LOSSES if name != "soft-cap" and "probabilities" not in name]

every_loss = pytest.mark.parametrize("name", LOSSES)
label_of_row = torch.tensor([0, 2, 1])


def sure(dtype: torch.dtype) -> Tensor:
    """Three rows whose label has all but exp(-15) to exp(-5) of the probability."""
    z = torch.zeros(3, 20, dtype=dtype)
    z[0, :2] = torch.tensor([30.0, 15.0])
    z[1, 2] = 13.0
    z[2, :2] = torch.tensor([0.5, 8.0])
    return z


def results(name: str, module: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    leaf = z.clone().requires_grad_()
    loss = LOSSES[name](module, leaf, label_of_row)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@every_loss
def test_sure_rows_in_float32(name: str) -> None:
    loss, gradient = results(name, losses, sure(torch.float32))
    exact, exact_gradient = results(name, reference.losses, sure(torch.float64))
    assert (exact > 0).all()
    assert (loss.double() / exact - 1).abs().max() <= 2e-6
    if name in BY_CLASS:
        own = label_of_row[:, None]
        ratio = gradient.double().gather(1, own) / exact_gradient.gather(1, own)
        assert (ratio - 1).abs().max() <= 4e-6


@pytest.mark.parametrize("offset", [-1e4, 1e4, 1e6])
@every_loss
def test_a_common_offset_costs_nothing(name: str, offset: float) -> None:
    z = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5], [0.0] * 5, [3.0, -3.0, 0.0, 1.0, 2.0]])
    loss, gradient = results(name, losses, z + offset)
    shifted, shifted_gradient = results(name, losses, z)
    if name == "soft-cap":  # which is not linear
        z = (z + offset).double()
        shifted, shifted_gradient = results(name, reference.losses, z)
        if abs(offset) > 1e4:
            return
    assert torch.allclose(loss.double(), shifted.double(), rtol=2e-6, atol=0)
    assert torch.allclose(gradient.double(), shifted_gradient.double(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("module", [losses, reference.losses], ids=["operator", "reference"])
@every_loss
def test_constant_rows_of_huge_logits(name: str, module: Any, dtype: torch.dtype) -> None:
    """1e30 is beyond where a logsumexp can hold the logarithm of the number of classes."""
    flat = results(name, reference.losses, torch.zeros(3, 4, dtype=torch.float64))[0]
    loss = results(name, module, torch.full((3, 4), 1e30, dtype=dtype))[0]
    assert torch.allclose(loss.double(), flat, rtol=1e-6, atol=0)


def test_mixture_log_softmax_of_huge_logits_sums_to_one() -> None:
    z = torch.full((1, 3), 1e8)
    for module in (losses, reference.losses):
        total = module.mixture_log_softmax(z, torch.zeros(1, 3), torch.zeros(1)).exp().sum()
        assert abs(total.item() - 1) <= 1e-6


Z_LOSSES: dict[str, Callable[..., Tensor]] = {
    "comp_sum_loss": lambda z, y, a: losses.comp_sum_loss(z, y, lse_square_scale=a),
    "gated_cross_entropy": lambda z, y, a: losses.gated_cross_entropy(
        z, z, _gate(z), y, lse_square_scale=a
    ),
    "early_learning_loss": lambda z, y, a: losses.early_learning_loss(
        z, y, torch.arange(len(z)), torch.zeros(z.shape), lse_square_scale=a
    ),
    "normalized_cross_entropy": lambda z, y, a: losses.normalized_cross_entropy(
        z, y, lse_square_scale=a
    ),
    "over_parameterized_loss": lambda z, y, a: losses.over_parameterized_loss(
        z, y, torch.zeros(len(z)), torch.zeros(z.shape), lse_square_scale=a
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", Z_LOSSES)
def test_a_squared_logsumexp_that_is_off_may_overflow(name: str, dtype: torch.dtype) -> None:
    z = torch.tensor([[2e19, 1e19, 0.0], [-3e19, -3e19, -3e19]], dtype=dtype).requires_grad_()
    y = torch.tensor([0, 1])
    loss = Z_LOSSES[name](z, y, 0.0)
    loss.backward()
    assert loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert Z_LOSSES[name](z, y, 1.0) == math.inf


NOTHING: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    **LOSSES,
    "mixture_log_softmax": lambda m, z, y: m.mixture_log_softmax(z, z, _gate(z))[:, 0],
    "mixture_log_softmax, one head": lambda m, z, y: m.mixture_log_softmax(
        z, torch.zeros_like(z), _gate(z)
    )[:, 0],
    "mixture_cross_entropy, one head": lambda m, z, y: m.mixture_cross_entropy(
        torch.zeros_like(z), z, _gate(z), y, reduction="none"
    ),
    "over_parameterized_loss": lambda m, z, y: m.over_parameterized_loss(
        z, y, torch.zeros(len(z)), torch.zeros(z.shape), reduction="none"
    ),
    "spherical_z_loss": lambda m, z, y: m.spherical_z_loss(z, y, reduction="none"),
    "ldr_kl_loss": lambda m, z, y: m.ldr_kl_loss(z, y, reduction="none"),
    "aldr_kl_loss": lambda m, z, y: m.aldr_kl_loss(z, y, reduction="none"),
    "pair_kl_divergence": lambda m, z, y: m.pair_kl_divergence(z, z, reduction="none"),
}
NO_SOFTMAX = ("spherical_z_loss", "ldr_kl_loss", "aldr_kl_loss")


@pytest.mark.parametrize("module", [losses, reference.losses], ids=["operator", "reference"])
@pytest.mark.parametrize("name", [name for name in NOTHING if name not in NO_SOFTMAX])
def test_a_row_without_a_class_is_nan(name: str, module: Any) -> None:
    """As in torch.nn.functional.cross_entropy; the rows beside it are not touched."""
    z = torch.zeros(3, 4)
    z[1] = -math.inf
    y = torch.tensor([0, 1, 2])
    assert F.cross_entropy(z, y, reduction="none").isnan().tolist() == [False, True, False]
    loss = NOTHING[name](module, z, y)
    assert loss.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", NO_SOFTMAX)
def test_operator_and_reference_agree_on_a_row_without_a_class(name: str) -> None:
    z = torch.full((1, 4), -math.inf)
    y = torch.tensor([1])
    operator, plain = (NOTHING[name](module, z, y) for module in (losses, reference.losses))
    assert torch.equal(operator.nan_to_num(-1), plain.nan_to_num(-1))
    assert operator.isnan() or operator == math.inf
