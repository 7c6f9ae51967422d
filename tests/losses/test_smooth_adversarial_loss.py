"""smooth_adversarial_loss beyond what every row loss is tested for in test_row_losses.py."""

from __future__ import annotations

import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustcore import reference
from robustcore.losses import SmoothAdversarialLoss, comp_sum_loss, smooth_adversarial_loss
from robustcore.testing import assert_matches


def problem(rows: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = strategies.seeded(seed)
    logits, attacked = 3 * torch.randn(2, rows, classes, generator=generator)
    return logits, attacked, torch.randint(classes, (rows,), generator=generator)


@given(
    st.data(),
    st.sampled_from([0, 1, 2, 5, 31, 33]),
    strategies.positive_edge_sizes(),
    strategies.floating_dtypes,
    st.sampled_from(["none", "mean", "sum"]),
    st.sampled_from([0.0, 1.0, 1.7, 2.0]),
    st.sampled_from([0.0, 1e-3, 1.0]),
)
def test_random_problems_match_the_float64_reference(
    data: st.DataObject,
    rows: int,
    classes: int,
    dtype: torch.dtype,
    reduction: str,
    tau: float,
    distance: float,
) -> None:
    logits, attacked, target = problem(rows, classes, data.draw(st.integers(0, 2**20)))
    attacked = logits + distance * attacked
    logits, attacked = (
        data.draw(strategies.strided((0.3 * t).to(dtype))) for t in (logits, attacked)
    )
    options = {"tau": tau, "nu": 0.5, "reduction": reduction}
    actual = smooth_adversarial_loss(logits, attacked, target, **options)
    expected = reference.losses.smooth_adversarial_loss(
        logits.double(), attacked.double(), target, **options
    )
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    rtol = max(2 * torch.finfo(dtype).eps, 32 * torch.finfo(compute).eps)
    atol = 32 * torch.finfo(compute).eps * (rows if reduction == "sum" else 1)
    assert_matches(actual, expected, rtol=rtol, atol=atol)


def test_it_is_the_norm_of_the_difference_of_the_margins() -> None:
    logits, attacked, target = problem(16, 20)
    actual = smooth_adversarial_loss(logits, attacked, target, 1.7, 0.3, reduction="none")

    def margins(z: torch.Tensor) -> torch.Tensor:
        return z.gather(1, target[:, None]) - z

    norm = torch.linalg.vector_norm(margins(attacked) - margins(logits), dim=1)
    expected = comp_sum_loss(logits, target, 1.7, reduction="none") + 0.3 * norm
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_an_attack_that_moves_no_margin(shift: float) -> None:
    logits, _, target = problem(9, 12)
    logits = logits.round().requires_grad_()  # so that adding the shift is exact
    attacked = (logits.detach() + shift).requires_grad_()
    loss = smooth_adversarial_loss(logits, attacked, target)
    plain = comp_sum_loss(logits, target)
    torch.testing.assert_close(loss, plain)
    for_logits, for_attacked = torch.autograd.grad(loss, (logits, attacked))
    assert (for_attacked == 0).all()
    torch.testing.assert_close(for_logits, torch.autograd.grad(plain, logits)[0])


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
def test_the_norm_neither_underflows_nor_overflows(size: float) -> None:
    _, attacked, target = problem(5, 33)
    logits, attacked = torch.zeros_like(attacked), (size * attacked).requires_grad_()
    rows = smooth_adversarial_loss(logits, attacked, target, 2.0, reduction="none")
    (gradient,) = torch.autograd.grad(rows.sum(), attacked)
    wide = attacked.detach().double().requires_grad_()
    exact = reference.losses.smooth_adversarial_loss(
        logits.double(), wide, target, 2.0, reduction="none"
    )
    (expected,) = torch.autograd.grad(exact.sum(), wide)
    torch.testing.assert_close(rows, exact.float())
    torch.testing.assert_close(gradient, expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_gradient_of_the_true_class_keeps_its_precision(dtype: torch.dtype) -> None:
    logits = torch.zeros(1, 2, dtype=dtype)
    logits[0, 0] = 6.9067
    logits.requires_grad_()
    loss = smooth_adversarial_loss(logits, logits.detach(), torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = torch.softmax(logits.detach().double(), 1)[0, 0] - 1
    assert abs(gradient[0, 0].item() / expected.item() - 1) <= 0.005


def test_errors() -> None:
    logits, attacked, target = problem(8, 5)
    for change, error, message in (
        ({"nu": -1.0}, ValueError, "nu must not be negative, got -1.0"),
        ({"nu": float("nan")}, ValueError, "nu must be finite, got nan"),
        ({"nu": torch.tensor(1.0)}, TypeError, "nu must be a float, got Tensor"),
        ({"tau": float("inf")}, ValueError, "tau must be finite, got inf"),
        ({"tau": torch.ones(8, requires_grad=True)}, ValueError, "tau must not require grad"),
        ({"tau": torch.ones(3)}, ValueError, r"tau must have shape \(8,\), got \(3,\)"),
        ({"target": attacked.softmax(1)}, TypeError, "target must hold class indices"),
        ({"target": None}, TypeError, "target must be a torch.Tensor, got NoneType"),
    ):
        arguments = {"logits": logits, "adversarial_logits": attacked, "target": target} | change
        with pytest.raises(error, match="^smooth_adversarial_loss: " + message):
            smooth_adversarial_loss(**arguments)
    with pytest.raises(TypeError, match="has no option softcap"):
        SmoothAdversarialLoss(softcap=1.0)


def test_the_raw_operator_refuses_spread_labels() -> None:
    z, target = torch.randn(3, 4), torch.tensor([0, 1, 2])
    options = (None, None, [1.0, 1.0], -100)
    operator = torch.ops.robustcore.smooth_adversarial_loss
    for label, smoothing in ((torch.full((3, 4), 0.25), 0.0), (target, 0.1)):
        with pytest.raises(RuntimeError, match="the label must be a class, without label smooth"):
            operator(z, z, None, None, None, label, *options, smoothing, 1.0, 0.0, 0.0, 1)


def test_the_module() -> None:
    logits, attacked, target = problem(8, 5)
    criterion = SmoothAdversarialLoss(1.7, 0.5, torch.rand(5), temperature=2.0)
    expected = smooth_adversarial_loss(
        logits, attacked, target, 1.7, 0.5, weight=criterion.weight, temperature=2.0
    )
    assert torch.equal(criterion(logits, attacked, target), expected)
    assert "nu=0.5" in repr(criterion)
