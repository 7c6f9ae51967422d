"""Weights per sample: their definition, extreme values, and the systems that trace them."""

from __future__ import annotations

import functools
import math

import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import robustcore
from robustcore import reference
from robustcore.losses import dro_weights
from robustcore.testing import assert_matches, check_sample
from robustcore.testing.samples_losses.dro_weights import case, samples

CASE = case()
SAMPLES = {sample.name: sample for sample in samples()}


@pytest.mark.parametrize("dtype", list(CASE.rtol), ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_samples_match_the_float64_reference(name: str, dtype: torch.dtype) -> None:
    for finding in check_sample(CASE, SAMPLES[name], "cpu", dtype):
        assert finding.comparison.passed, f"{finding.quantity}: {finding.comparison.problem}"


any_loss = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(
    st.lists(st.tuples(any_loss, st.booleans()), max_size=20),
    st.sampled_from([5e-324, 1e-300, 1e-30, 1e-3, 1.0, 17.0, 1e30, 1e308]),
    st.sampled_from(["sum", "mean"]),
    st.sampled_from(strategies.FLOATING),
)
def test_any_losses_and_temperatures(pairs, temperature, normalization, dtype) -> None:
    losses = torch.tensor([loss for loss, _ in pairs], dtype=torch.float32).to(dtype)
    mask = torch.tensor([kept for _, kept in pairs], dtype=torch.bool)
    options = {"mask": mask, "normalization": normalization}
    weights = dro_weights(losses, temperature, **options)
    assert_matches(
        weights,
        reference.losses.dro_weights(losses.double(), temperature, **options),
        rtol=1e-6,
        atol=1e-44,
    )
    assert weights.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert (weights[~mask] == 0).all()
    counted = mask & ~losses.isnan()
    assert torch.equal(weights.isnan(), mask & losses.isnan())
    if counted.any():
        chosen = weights[counted].double()
        total = chosen.sum() if normalization == "sum" else chosen.mean()
        assert abs(total.item() - 1) < 1e-6
        # The larger the loss the larger the weight.
        order = losses[counted].double().argsort()
        assert (chosen[order].diff() >= 0).all()


@given(st.integers(1, 30), st.floats(1e-2, 1e2), st.integers(0, 2**20))
def test_they_maximise_the_penalised_loss(count: int, temperature: float, seed: int) -> None:
    generator = strategies.seeded(seed)
    losses = 5 * torch.rand(count, generator=generator, dtype=torch.float64)

    def objective(weights: torch.Tensor) -> torch.Tensor:
        divergence = torch.xlogy(weights, weights * count).sum()
        return (weights * losses).sum() - temperature * divergence

    weights = dro_weights(losses, temperature)
    value = temperature * (torch.logsumexp(losses / temperature, 0) - math.log(count))
    torch.testing.assert_close(objective(weights), value)
    for _ in range(5):
        other = torch.softmax(5 * torch.randn(count, generator=generator).double(), 0)
        for share in (1.0, 1e-3):
            assert objective(weights.lerp(other, share)) <= value + 1e-9


def test_the_weighted_loss_descends_the_objective() -> None:
    """With constant weights, the gradient is that of r log mean exp(l / r)."""
    x = torch.randn(8, dtype=torch.float64, requires_grad=True)
    losses = x.square()
    (actual,) = torch.autograd.grad((dro_weights(losses, 0.7) * losses).sum(), x, retain_graph=True)
    (expected,) = torch.autograd.grad(0.7 * torch.logsumexp(losses / 0.7, 0), x)
    torch.testing.assert_close(actual, expected)


def test_limits() -> None:
    losses = torch.tensor([1.0, 3.0, 2.0, 3.0])
    assert dro_weights(losses, 1e-30).tolist() == [0.0, 0.5, 0.0, 0.5]
    assert dro_weights(losses, 1e30).tolist() == [0.25] * 4
    assert dro_weights(losses * 1e30, 1e30).isfinite().all()
    infinite = torch.tensor([1.0, math.inf, -math.inf, math.inf])
    assert dro_weights(infinite, 1.0).tolist() == [0.0, 0.5, 0.0, 0.5]
    assert dro_weights(torch.full((4,), -math.inf), 1.0).tolist() == [0.25] * 4
    nan = dro_weights(torch.tensor([1.0, math.nan, 1.0]), 1.0)
    assert nan[[0, 2]].tolist() == [0.5, 0.5]
    assert nan[1].isnan()


def test_a_masked_row_may_hold_anything() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    mask = torch.tensor([True, False, True])
    expected = dro_weights(torch.tensor([1.0, 3.0]), 1.0)
    for value in (math.nan, math.inf, -math.inf):
        with torch.no_grad():
            losses[1] = value
        weights = dro_weights(losses, 1.0, mask=mask, detach=False)
        assert weights[1].item() == 0
        assert torch.equal(weights[[0, 2]], expected)
        (gradient,) = torch.autograd.grad(weights[0], losses)
        assert gradient[1].item() == 0
        assert gradient.isfinite().all()


def test_derivatives() -> None:
    losses = torch.randn(7, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True] * 5 + [False] * 2)
    assert not dro_weights(losses, 1.0).requires_grad
    for normalization in ("sum", "mean"):
        options = {"mask": mask, "normalization": normalization, "detach": False}
        weights = functools.partial(dro_weights, temperature=0.7, **options)
        assert gradcheck(weights, losses)
        assert gradgradcheck(weights, losses)


def test_compile_and_vmap() -> None:
    losses, mask = torch.randn(3, 9), torch.rand(3, 9) < 0.8

    def weights(losses, mask):
        return dro_weights(losses, 0.5, mask=mask, normalization="mean")

    compiled = torch.compile(weights, fullgraph=True)
    torch.testing.assert_close(compiled(losses, mask), weights(losses, mask))
    rows = torch.stack([weights(*row) for row in zip(losses, mask)])
    torch.testing.assert_close(torch.func.vmap(weights)(losses, mask), rows)


def test_same_bits_for_any_number_of_threads(threads) -> None:
    losses = torch.randn(200_000)
    with threads(1):
        single = dro_weights(losses, 1.0)
    with threads(2):
        assert torch.equal(dro_weights(losses, 1.0), single)


def test_the_reference_can_be_forced(monkeypatch) -> None:
    called = []
    original = reference.losses.dro_weights
    monkeypatch.setattr(
        reference.losses, "dro_weights", lambda *a, **k: called.append(1) or original(*a, **k)
    )
    with robustcore.use_reference():
        dro_weights(torch.ones(3), 1.0)
    assert called


LOSSES = torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1.0], 1.0), {}, TypeError, "losses must be a torch.Tensor, got list"),
        ((LOSSES.long(), 1.0), {}, TypeError, "losses must be float32, .* got int64"),
        ((LOSSES, "1"), {}, TypeError, "temperature must be a float, got str"),
        ((LOSSES, True), {}, TypeError, "temperature must be a float, got bool"),
        ((LOSSES, 0.0), {}, ValueError, "temperature must be positive and finite, got 0.0"),
        ((LOSSES, math.inf), {}, ValueError, "temperature must be positive and finite, got inf"),
        ((LOSSES, math.nan), {}, ValueError, "temperature must be positive and finite, got nan"),
        ((LOSSES, 1.0), {"mask": LOSSES}, TypeError, "mask must be bool, got float32"),
        (
            (LOSSES, 1.0),
            {"mask": LOSSES.bool()[:2]},
            ValueError,
            r"mask must have shape \(3,\), got \(2,\)",
        ),
        (
            (LOSSES, 1.0),
            {"mask": LOSSES.bool().to("meta")},
            ValueError,
            "mask must be on cpu, got meta",
        ),
        ((LOSSES, 1.0), {"normalization": "max"}, ValueError, "normalization must be one of"),
        ((LOSSES, 1.0), {"detach": 1}, TypeError, "detach must be a bool, got int"),
    ],
)
def test_bad_arguments(arguments, options, error, message) -> None:
    with pytest.raises(error, match=f"dro_weights: {message}"):
        dro_weights(*arguments, **options)
