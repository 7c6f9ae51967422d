"""normalized_cross_entropy: values by definition, masked classes, corners, the module."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustcore.losses import NormalizedCrossEntropyLoss, normalized_cross_entropy


@given(st.integers(2, 40), st.integers(0, 2**31))
def test_definition_and_published_gradient(classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, classes, generator=generator, dtype=torch.float64) * 3
    target = torch.randint(classes, (5,), generator=generator)
    logits.requires_grad_()
    loss = normalized_cross_entropy(logits, target, reduction="none")
    log_probability = logits.detach().log_softmax(1)
    n = -log_probability.gather(1, target[:, None])
    total = -log_probability.sum(1, keepdim=True)
    torch.testing.assert_close(loss.detach(), (n / total)[:, 0], rtol=1e-12, atol=1e-14)
    p = log_probability.exp()
    one_hot = torch.nn.functional.one_hot(target, classes)
    expected = ((p - one_hot) * total - (classes * p - 1) * n) / total**2
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-14)


def test_masked_classes_are_left_out() -> None:
    logits, target = torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 1, 0, 2])
    masked = torch.cat([logits[:, :3], torch.full((4, 2), -math.inf), logits[:, 3:]], 1)
    results = []
    for values in (logits, masked.clone()):
        values.requires_grad_()
        loss = normalized_cross_entropy(values, target)
        results.append((loss.detach(), torch.autograd.grad(loss, values)[0]))
    torch.testing.assert_close(results[0][0], results[1][0])
    gradient = results[1][1]
    torch.testing.assert_close(results[0][1], torch.cat([gradient[:, :3], gradient[:, 5:]], 1))
    assert (gradient[:, 3:5] == 0).all()


def test_one_class_alone_costs_nothing() -> None:
    logits = torch.tensor([[-math.inf, 2.0, -math.inf]], requires_grad=True)
    loss = normalized_cross_entropy(logits, torch.tensor([1]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros(1, 3))


def test_bfloat16_gradient_of_the_true_class() -> None:
    """Within 0.5 % at p = 0.999."""
    logits = torch.zeros(1, 10)
    logits[0, 3] = math.log(0.999 / (1e-3 / 9))
    rounded = logits.bfloat16()
    gradients = []
    for given_logits in (rounded, rounded.double()):
        leaf = given_logits.clone().requires_grad_()
        normalized_cross_entropy(leaf, torch.tensor([3])).backward()
        gradients.append(float(leaf.grad[0, 3]))  # type: ignore[index]
    assert gradients[0] == pytest.approx(gradients[1], rel=5e-3)


def test_between_zero_and_one_at_any_scale() -> None:
    logits = torch.randn(50, 30) * torch.logspace(-4, 4, 50)[:, None]
    loss = normalized_cross_entropy(logits, torch.arange(50) % 30, reduction="none")
    assert ((loss >= 0) & (loss <= 1)).all()


def test_module() -> None:
    logits, target, weights = torch.randn(4, 3), torch.tensor([0, 2, 1, 1]), torch.rand(4)
    criterion = NormalizedCrossEntropyLoss(label_smoothing=0.2, temperature=2.0, reduction="sum")
    expected = normalized_cross_entropy(
        logits,
        target,
        label_smoothing=0.2,
        temperature=2.0,
        reduction="sum",
        sample_weight=weights,
    )
    assert torch.equal(criterion(logits, target, weights), expected)
    with pytest.raises(ValueError, match=r"^NormalizedCrossEntropyLoss: label_smoothing must be"):
        NormalizedCrossEntropyLoss(label_smoothing=2.0)
