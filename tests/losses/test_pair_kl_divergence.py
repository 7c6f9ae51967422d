"""pair_kl_divergence beyond what every row loss is tested for in test_row_losses.py."""

from __future__ import annotations

import math

import pytest
import strategies
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from robustcore import reference
from robustcore.losses import PairKLDivergence, pair_kl_divergence
from robustcore.testing import assert_matches


def problem(rows: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = strategies.seeded(seed)
    first, second = 3 * torch.randn(2, rows, classes, generator=generator)
    return first, second


@given(
    st.data(),
    st.sampled_from([0, 1, 2, 5, 31, 33]),
    strategies.positive_edge_sizes(),
    strategies.floating_dtypes,
    st.sampled_from(["none", "mean", "sum"]),
    st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_random_problems_match_the_float64_reference(
    data: st.DataObject,
    rows: int,
    classes: int,
    dtype: torch.dtype,
    reduction: str,
    size: float,
) -> None:
    first, second = problem(rows, classes, data.draw(st.integers(0, 2**20)))
    first, second = (
        data.draw(strategies.strided((size / 3 * t).to(dtype))) for t in (first, second)
    )
    actual = pair_kl_divergence(first, second, reduction=reduction)
    expected = reference.losses.pair_kl_divergence(
        first.double(), second.double(), reduction=reduction
    )
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    atol = 16 * torch.finfo(compute).eps * (4 * size + 5) * (rows if reduction == "sum" else 1)
    assert_matches(actual, expected, rtol=2 * torch.finfo(dtype).eps, atol=atol)


def test_it_is_torchs_divergence() -> None:
    first, second = problem(16, 20)
    actual = pair_kl_divergence(first, second)
    log_p, log_q = first.log_softmax(1), second.log_softmax(1)
    expected = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    torch.testing.assert_close(actual, expected)


def test_gradients_are_those_of_the_formula() -> None:
    first, second = (t.double().requires_grad_() for t in problem(6, 5))
    rows = pair_kl_divergence(first, second, reduction="none", temperature=2.0)
    for_first, for_second = torch.autograd.grad(rows.sum(), (first, second))
    with torch.no_grad():
        p, q = (first / 2).softmax(1), (second / 2).softmax(1)
        torch.testing.assert_close(for_second, (q - p) / 2)
        torch.testing.assert_close(for_first, p * ((p / q).log() - rows[:, None]) / 2)


def test_equal_logits_have_exactly_no_divergence_and_no_gradient() -> None:
    first = problem(16, 37)[0].requires_grad_()
    second = first.detach().clone().requires_grad_()
    rows = pair_kl_divergence(first, second, reduction="none")
    assert (rows == 0).all()
    for gradient in torch.autograd.grad(rows.sum(), (first, second)):
        assert (gradient == 0).all()


@pytest.mark.parametrize("distance", [1e-3, 1e-2, 0.1])
def test_close_distributions_do_not_cancel(distance: float) -> None:
    """The divergence is of second order in the distance, what is summed of first order."""
    first, second = problem(64, 100)
    second = first + distance * second
    actual = pair_kl_divergence(first, second, reduction="none")
    exact = reference.losses.pair_kl_divergence(first.double(), second.double(), reduction="none")
    naive = reference.losses.pair_kl_divergence(first, second, reduction="none")
    assert (actual > 0).all()
    ours, theirs = (((x - exact).abs() / exact).max() for x in (actual, naive))
    assert ours < 4e-7 / distance
    assert ours < theirs


def test_a_class_that_only_the_first_has_makes_it_infinite() -> None:
    first, second = problem(3, 6)
    second[1, 2] = -math.inf
    rows = pair_kl_divergence(first, second, reduction="none")
    assert rows.isinf().tolist() == [False, True, False]
    assert rows[[0, 2]].isfinite().all()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_target_only_says_which_rows_to_ignore(reduction: str) -> None:
    first, second = problem(6, 7)
    target = torch.tensor([0, 1, -1, 3, -1, 6])
    actual = pair_kl_divergence(first, second, target, ignore_index=-1, reduction=reduction)
    kept = target != -1
    expected = pair_kl_divergence(first[kept], second[kept], reduction=reduction)
    torch.testing.assert_close(actual[kept] if reduction == "none" else actual, expected)
    other = pair_kl_divergence(
        first, second, (target + 1).remainder(7).masked_fill(~kept, -1), ignore_index=-1
    )
    assert torch.equal(other, pair_kl_divergence(first, second, target, ignore_index=-1))


def test_compile_without_a_target() -> None:
    first, second = problem(6, 7)
    first.requires_grad_()
    compiled = torch.compile(pair_kl_divergence, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(first, second), pair_kl_divergence(first, second))
    (actual,) = torch.autograd.grad(compiled(first, second), first)
    (expected,) = torch.autograd.grad(pair_kl_divergence(first, second), first)
    torch.testing.assert_close(actual, expected)


def test_random_rows_of_one_class_are_zero() -> None:
    first, second = problem(5, 1)
    assert_matches(pair_kl_divergence(first, second, reduction="none"), torch.zeros(5))


def test_errors() -> None:
    first, second = problem(8, 5)
    soft = torch.full((8, 5), 0.2)
    with pytest.raises(TypeError, match="target must hold class indices of dtype int64"):
        pair_kl_divergence(first, second, soft)
    with pytest.raises(ValueError, match=r"adversarial_logits must have shape \(8, 5\)"):
        pair_kl_divergence(first, second[:, :4])
    with pytest.raises(ValueError, match="temperature must be positive"):
        pair_kl_divergence(first, second, temperature=0.0)
    with pytest.raises(IndexError, match=r"target must be in \[0, 5\)"):
        pair_kl_divergence(first, second, torch.full((8,), 5))
    with pytest.raises(TypeError, match="has no option label_smoothing"):
        PairKLDivergence(label_smoothing=0.1)


def test_the_raw_operator_of_a_loss_with_labels_needs_a_target() -> None:
    logits = torch.randn(3, 4)
    options = (None, None, [1.0], -100, 0.0, 1.0, 0.0, 0.0, 1)
    with pytest.raises(RuntimeError, match="comp_sum_loss: target must be given"):
        torch.ops.robustcore.comp_sum_loss(logits, None, None, None, None, None, *options)


def test_the_module() -> None:
    first, second = problem(8, 5)
    criterion = PairKLDivergence(2.0, reduction="sum")
    expected = pair_kl_divergence(first, second, temperature=2.0, reduction="sum")
    assert torch.equal(criterion(first, second), expected)
    assert "temperature=2.0" in repr(criterion)
