"""symmetric_cross_entropy: values by definition, each part alone, errors, the module."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from robustcore.losses import SymmetricCrossEntropyLoss, comp_sum_loss, symmetric_cross_entropy


def by_definition(
    logits: torch.Tensor, target: torch.Tensor, alpha: float, beta: float, log_zero: float
) -> torch.Tensor:
    probability = logits.softmax(1)
    label = F.one_hot(target, logits.shape[1]).to(logits.dtype)
    log_label = log_zero * (1 - label)
    return -alpha * (label * logits.log_softmax(1)).sum(1) - beta * (probability * log_label).sum(1)


@given(
    st.integers(1, 40),
    st.floats(0, 10),
    st.floats(0, 10),
    st.floats(-20, 0),
    st.integers(0, 2**31),
)
def test_definition(classes: int, alpha: float, beta: float, log_zero: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, classes, generator=generator, dtype=torch.float64) * 3
    target = torch.randint(classes, (5,), generator=generator)
    options: dict[str, Any] = {"alpha": alpha, "beta": beta, "log_zero": log_zero}
    actual = symmetric_cross_entropy(logits, target, reduction="none", **options)
    expected = by_definition(logits, target, alpha, beta, log_zero)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_parts_are_cross_entropy_and_mean_absolute_error() -> None:
    logits, target = torch.randn(7, 5, dtype=torch.float64), torch.randint(5, (7,))
    torch.testing.assert_close(
        symmetric_cross_entropy(logits, target, alpha=2.0, beta=0.0),
        2 * F.cross_entropy(logits, target),
    )
    torch.testing.assert_close(
        symmetric_cross_entropy(logits, target, alpha=0.0, beta=0.5),
        -0.5 * math.log(1e-4) * comp_sum_loss(logits, target, 2.0),
    )


def test_a_masked_label_costs_a_bounded_amount_without_cross_entropy() -> None:
    logits = torch.tensor([[0.0, -math.inf, 1.0]], requires_grad=True)
    target = torch.tensor([1])
    loss = symmetric_cross_entropy(logits, target, alpha=0.0, beta=1.0)
    assert loss.item() == pytest.approx(-math.log(1e-4))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient, torch.zeros(1, 3))
    assert symmetric_cross_entropy(logits.detach(), target).item() == math.inf


def test_bfloat16_gradient_of_the_true_class() -> None:
    """Within 0.5 % at p = 0.999, where p - 1 formed in bfloat16 is off by much more."""
    rest = 1e-3 / 9
    logits = torch.full((1, 10), 0.0)
    logits[0, 3] = math.log(0.999 / rest)
    rounded = logits.bfloat16()
    target = torch.tensor([3])
    gradients = []
    for given_logits in (rounded, rounded.double()):
        leaf = given_logits.clone().requires_grad_()
        symmetric_cross_entropy(leaf, target).backward()
        gradients.append(float(leaf.grad[0, 3]))  # type: ignore[index]
    assert gradients[0] == pytest.approx(gradients[1], rel=5e-3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": -1.0}, ValueError, "alpha must be finite and not negative, got -1.0"),
        ({"beta": math.inf}, ValueError, "beta must be finite and not negative, got inf"),
        ({"log_zero": 0.5}, ValueError, "log_zero must be finite and not positive, got 0.5"),
        ({"alpha": "1"}, TypeError, "alpha must be a float, got str"),
    ],
)
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    logits, target = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(error, match=rf"^symmetric_cross_entropy: {message}$"):
        symmetric_cross_entropy(logits, target, **options)
    with pytest.raises(error, match=rf"^SymmetricCrossEntropyLoss: {message}$"):
        SymmetricCrossEntropyLoss(**options)


def test_module() -> None:
    logits, target = torch.randn(4, 3), torch.tensor([0, 2, -1, 1])
    criterion = SymmetricCrossEntropyLoss(6.0, 0.1, weight=torch.ones(3) * 2, ignore_index=-1)
    weights = torch.rand(4)
    assert torch.equal(
        criterion(logits, target, weights),
        symmetric_cross_entropy(
            logits,
            target,
            alpha=6.0,
            beta=0.1,
            weight=torch.ones(3) * 2,
            ignore_index=-1,
            sample_weight=weights,
        ),
    )
    assert "alpha=6.0, beta=0.1" in repr(criterion)
