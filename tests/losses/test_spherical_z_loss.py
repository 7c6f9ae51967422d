"""spherical_z_loss: values by definition, invariances, constant rows, masked classes, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from robustcore import losses, reference
from robustcore.losses import SphericalZLoss, spherical_z_loss


@given(st.integers(2, 40), st.floats(0.1, 5), st.floats(-3, 3), st.integers(0, 2**31))
def test_definition_and_published_gradient(classes: int, a: float, b: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, classes, generator=generator, dtype=torch.float64) * 3
    target = torch.randint(classes, (5,), generator=generator)
    logits.requires_grad_()
    loss = spherical_z_loss(logits, target, a=a, b=b, reduction="none")
    z = logits.detach()
    deviation = z.std(1, correction=0, keepdim=True)
    standard = (z - z.mean(1, keepdim=True)) / deviation
    own = standard.gather(1, target[:, None])
    excess = a * (b - own)
    expected = torch.logaddexp(excess, torch.zeros_like(excess))[:, 0] / a
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-11, atol=1e-13)
    one_hot = F.one_hot(target, classes).double()
    gradient = -(torch.sigmoid(excess) / deviation) * (
        one_hot - 1 / classes - own * standard / classes
    )
    (actual,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(actual, gradient, rtol=1e-10, atol=1e-12 / float(deviation.min()))


def test_shift_and_scale_change_nothing() -> None:
    logits, target = torch.randn(8, 30, dtype=torch.float64), torch.arange(8)
    expected = spherical_z_loss(logits, target, reduction="none")
    for changed in (logits * 1e4, logits * 1e-30, logits - 1e4, logits * 3 + 100):
        actual = spherical_z_loss(changed, target, reduction="none")
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e4, 1e30])
def test_gradients_scale_inversely(scale: float) -> None:
    base, target = torch.randn(8, 30), torch.arange(8)
    gradients = []
    for logits, unit in ((base.double(), 1.0), (base * scale, scale)):
        leaf = logits.clone().requires_grad_()
        spherical_z_loss(leaf, target, reduction="sum").backward()
        gradients.append(leaf.grad.double() * unit)  # type: ignore[union-attr]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=2e-6)


def test_a_large_offset_costs_no_digits_in_float32() -> None:
    small = torch.randint(-50, 50, (8, 30)) / 64.0  # exact with the offset, too
    target = torch.arange(8)
    torch.testing.assert_close(
        spherical_z_loss(small + 10000, target), spherical_z_loss(small, target), rtol=0, atol=0
    )


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4, 3e38])
def test_constant_rows(value: float) -> None:
    logits = torch.full((3, 7), value, requires_grad=True)
    loss = spherical_z_loss(logits, torch.arange(3), a=2.0, b=0.5)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(math.log1p(math.exp(1.0)) / 2)
    assert torch.equal(gradient, torch.zeros(3, 7))


def test_masked_classes_are_left_out() -> None:
    logits, target = torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 1, 0, 2])
    masked = torch.cat([logits[:, :3], torch.full((4, 2), -math.inf), logits[:, 3:]], 1)
    results = []
    for values in (logits, masked.clone()):
        values.requires_grad_()
        loss = spherical_z_loss(values, target)
        results.append((loss.detach(), torch.autograd.grad(loss, values)[0]))
    torch.testing.assert_close(results[0][0], results[1][0])
    gradient = results[1][1]
    torch.testing.assert_close(results[0][1], torch.cat([gradient[:, :3], gradient[:, 5:]], 1))
    assert (gradient[:, 3:5] == 0).all()
    assert spherical_z_loss(masked, torch.full((4,), 3)).item() == math.inf


def test_bfloat16_gradient_of_the_true_class() -> None:
    """Within 0.5 % where the label stands out (p = 0.999 as a softmax)."""
    logits = torch.randn(1, 10, generator=torch.Generator().manual_seed(1)) * 0.5
    logits[0, 3] = 9.0
    rounded = logits.bfloat16()
    gradients = []
    for given_logits in (rounded, rounded.double()):
        leaf = given_logits.clone().requires_grad_()
        spherical_z_loss(leaf, torch.tensor([3])).backward()
        gradients.append(float(leaf.grad[0, 3]))  # type: ignore[index]
    assert gradients[0] == pytest.approx(gradients[1], rel=5e-3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"a": 0.0}, ValueError, "a must be positive and finite, got 0.0"),
        ({"b": math.inf}, ValueError, "b must be finite, got inf"),
        ({"b": "1"}, TypeError, "b must be a float, got str"),
    ],
)
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    logits, target = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(error, match=rf"^spherical_z_loss: {message}$"):
        spherical_z_loss(logits, target, **options)
    with pytest.raises(error, match=rf"^SphericalZLoss: {message}$"):
        SphericalZLoss(**options)


def test_module() -> None:
    logits, target, weights = torch.randn(4, 3), torch.tensor([0, 2, 1, 1]), torch.rand(4)
    criterion = SphericalZLoss(0.5, 1.0, reduction="sum")
    expected = spherical_z_loss(
        logits, target, a=0.5, b=1.0, reduction="sum", sample_weight=weights
    )
    assert torch.equal(criterion(logits, target, weights), expected)
    with pytest.raises(TypeError, match="temperature"):
        SphericalZLoss(temperature=2.0)


@pytest.mark.parametrize("module", [losses, reference.losses], ids=["operator", "reference"])
def test_a_masked_label_has_no_gradient(module: Any) -> None:
    z = torch.tensor([[0.0, -torch.inf, 1.0, 2.0]], requires_grad=True)
    loss = module.spherical_z_loss(z, torch.tensor([1]))
    assert loss == torch.inf
    assert torch.equal(torch.autograd.grad(loss, z)[0], torch.zeros(1, 4))
