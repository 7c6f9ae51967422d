"""ldr_kl_loss: values by definition, limits, digits where the label dominates, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from robustcore import losses, reference
from robustcore.losses import LDRKLLoss, ldr_kl_loss


def scores_of(logits: torch.Tensor) -> torch.Tensor:
    positive = torch.logaddexp(logits, torch.zeros_like(logits))
    return logits.shape[1] * positive / positive.sum(1, keepdim=True)


def by_definition(
    logits: torch.Tensor, target: torch.Tensor, lam: float, margin: float
) -> torch.Tensor:
    scores = scores_of(logits)
    margins = margin * (1 - F.one_hot(target, logits.shape[1]).to(logits.dtype))
    violations = margins + scores - scores.gather(1, target[:, None])
    return lam * ((violations / lam).logsumexp(1) - math.log(logits.shape[1]))


@given(st.integers(1, 40), st.floats(0.1, 20), st.floats(0, 3), st.integers(0, 2**31))
def test_definition(classes: int, lam: float, margin: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, classes, generator=generator, dtype=torch.float64) * 3
    target = torch.randint(classes, (5,), generator=generator)
    results = []
    for function in (
        lambda z: ldr_kl_loss(z, target, lam, margin=margin, reduction="none"),
        lambda z: by_definition(z, target, lam, margin),
    ):
        leaf = logits.clone().requires_grad_()
        loss = function(leaf)
        results.append((loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-9, atol=1e-11)


def test_label_probabilities_average_the_losses_of_the_classes() -> None:
    logits = torch.randn(6, 7, dtype=torch.float64) * 3
    label = torch.rand(6, 7, dtype=torch.float64).softmax(1)
    each = torch.stack([by_definition(logits, torch.full((6,), c), 0.5, 0.1) for c in range(7)], 1)
    actual = ldr_kl_loss(logits, label, 0.5, reduction="none")
    torch.testing.assert_close(actual, (label * each).sum(1))
    one_hot = F.one_hot(torch.arange(6), 7).double()
    torch.testing.assert_close(
        ldr_kl_loss(logits, one_hot, 0.5), ldr_kl_loss(logits, torch.arange(6), 0.5)
    )


def test_the_label_has_no_margin() -> None:
    """A label so far ahead that nothing is violated costs only what the mean takes off."""
    logits = torch.tensor([[50.0, 0.0, 0.0]], dtype=torch.float64)
    target = torch.tensor([0])
    none = ldr_kl_loss(logits, target, 0.05, margin=0.0)
    some = ldr_kl_loss(logits, target, 0.05, margin=0.1)
    torch.testing.assert_close(none, some, rtol=0, atol=1e-12)
    assert none.item() == pytest.approx(-0.05 * math.log(3))


def test_very_negative_rows_have_the_limit_of_softplus() -> None:
    logits = torch.randn(4, 9, dtype=torch.float64)
    target = torch.arange(4)
    scores = 9 * logits.softmax(1)
    margins = 0.1 * (1 - F.one_hot(target, 9).double())
    limit = (margins + scores - scores.gather(1, target[:, None])).logsumexp(1) - math.log(9)
    for offset in (-50, -700, -10000):
        actual = ldr_kl_loss(logits + offset, target, 1.0, reduction="none")
        torch.testing.assert_close(actual, limit, rtol=1e-9, atol=1e-9)
    narrow = ldr_kl_loss((logits - 200).float(), target, 1.0, reduction="none")
    torch.testing.assert_close(narrow.double(), limit, rtol=1e-3, atol=1e-3)


def test_masked_classes_are_left_out() -> None:
    logits, target = torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 1, 0, 2])
    masked = torch.cat([logits[:, :3], torch.full((4, 2), -math.inf), logits[:, 3:]], 1)
    results = []
    for values in (logits, masked.clone()):
        values.requires_grad_()
        loss = ldr_kl_loss(values, target, 0.3)
        results.append((loss.detach(), torch.autograd.grad(loss, values)[0]))
    torch.testing.assert_close(results[0][0], results[1][0])
    gradient = results[1][1]
    torch.testing.assert_close(results[0][1], torch.cat([gradient[:, :3], gradient[:, 5:]], 1))
    assert (gradient[:, 3:5] == 0).all()
    assert ldr_kl_loss(masked, torch.full((4,), 3)).item() == math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("label", ["class", "probabilities"])
def test_gradient_of_a_dominating_label(dtype: torch.dtype, label: str) -> None:
    """Within 0.5 % where r_y is about 0.999: r_y - 1 is not formed."""
    logits = torch.zeros(1, 10)
    logits[0, 3] = 9.0
    rounded = logits.to(dtype)
    gradients = []
    for values in (rounded, rounded.double()):
        leaf = values.clone().requires_grad_()
        target = torch.tensor([3])
        if label == "probabilities":
            target = F.one_hot(target, 10).to(leaf.dtype)
        ldr_kl_loss(leaf, target, 0.7).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=5e-3, atol=0)


def test_small_temperatures_stay_finite() -> None:
    """Margins of hundreds of temperatures: the hinge loss."""
    logits = torch.randn(50, 20) * 3
    target = torch.arange(50) % 20
    leaf = logits.clone().requires_grad_()
    loss = ldr_kl_loss(leaf, target, 1e-4, margin=0.5, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    scores = scores_of(logits.double())
    margins = 0.5 * (1 - F.one_hot(target, 20).double())
    hinge = (margins + scores - scores.gather(1, target[:, None])).amax(1)
    torch.testing.assert_close(loss.detach().double(), hinge, rtol=1e-3, atol=1e-3)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lam": 0.0}, ValueError, "lam must be positive and finite, got 0.0"),
        ({"lam": "1"}, TypeError, "lam must be a float, got str"),
        ({"margin": -0.1}, ValueError, "margin must be finite and not negative, got -0.1"),
    ],
)
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    logits, target = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(error, match=rf"^ldr_kl_loss: {message}$"):
        ldr_kl_loss(logits, target, **options)
    with pytest.raises(error, match=rf"^LDRKLLoss: {message}$"):
        LDRKLLoss(**options)


def test_errors_of_lam_per_row() -> None:
    logits, target = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^ldr_kl_loss: lam must have shape \(2,\), got \(3,\)"):
        ldr_kl_loss(logits, target, torch.ones(3))
    with pytest.raises(ValueError, match=r"^ldr_kl_loss: lam must not require grad, but does"):
        ldr_kl_loss(logits, target, torch.ones(2, requires_grad=True))


def test_module() -> None:
    logits, target, weights = torch.randn(4, 3), torch.tensor([0, 2, 1, 1]), torch.rand(4)
    criterion = LDRKLLoss(10.0, margin=0.5, reduction="sum")
    expected = ldr_kl_loss(logits, target, 10.0, margin=0.5, reduction="sum", sample_weight=weights)
    assert torch.equal(criterion(logits, target, sample_weight=weights), expected)
    lam = torch.rand(4) + 1
    expected = ldr_kl_loss(logits, target, lam, margin=0.5, reduction="sum")
    assert torch.equal(criterion(logits, target, lam), expected)
    assert "lam=10.0, margin=0.5" in repr(criterion)


def test_a_tensor_of_one_number_is_not_read_under_compile() -> None:
    logits, target = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    step = torch.compile(
        lambda lam: ldr_kl_loss(logits, target, lam), backend="eager", fullgraph=True
    )
    for value in (0.5, 2.0):
        torch.testing.assert_close(
            step(torch.tensor(value)), ldr_kl_loss(logits, target, value), rtol=1e-6, atol=1e-6
        )
    mapped = torch.func.vmap(lambda lam: ldr_kl_loss(logits, target, lam))
    torch.testing.assert_close(
        mapped(torch.tensor([0.5, 2.0]))[1], ldr_kl_loss(logits, target, 2.0), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("loss", [losses.ldr_kl_loss, losses.aldr_kl_loss])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf])
def test_lam_of_a_row_is_checked_like_that_of_all(loss: Any, value: float) -> None:
    logits, target = torch.zeros(3, 4), torch.tensor([0, 1, -100])
    lam = torch.tensor([1.0, value, 1.0])
    message = rf"{loss.__name__}: lam must be positive and finite, got {value}"
    with pytest.raises(ValueError, match=rf"^{message} at row 1$"):
        loss(logits, target, lam)
    with pytest.raises(ValueError, match=rf"^{message}$"):
        loss(logits, target, torch.tensor(value))
    # That of an ignored row may be anything.
    assert loss(logits, target, lam.flip(0).roll(1)).isfinite()


@pytest.mark.parametrize("module", [losses, reference.losses], ids=["operator", "reference"])
@pytest.mark.parametrize("name", ["ldr_kl_loss", "aldr_kl_loss"])
@pytest.mark.parametrize("soft", [False, True], ids=["class", "probabilities"])
def test_infinite_logits_are_nan(name: str, module: Any, soft: bool) -> None:
    logits = torch.zeros(4, 3)
    logits[1], logits[2, 1] = math.inf, math.inf
    logits.requires_grad_()
    target = torch.tensor([0, 1, 1, 2])
    label = F.one_hot(target, 3).float() if soft else target
    loss = getattr(module, name)(logits, label, reduction="none")
    assert loss.isnan().tolist() == [False, True, True, False]
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.isnan().any(1).tolist() == [False, True, True, False]


def test_infinite_logits_leave_the_temperatures() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    logits[1] = math.inf
    lam = torch.tensor([3.0, 3.0, 3.0])
    after = losses.aldr_kl_temperature(logits, lam)
    assert after.isnan().tolist() == [False, True, False]
    losses.aldr_kl_indexed_loss(logits, torch.tensor([0, 1, 2]), torch.arange(3), lam)
    assert (lam == 3).tolist() == [False, True, False]
