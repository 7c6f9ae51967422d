"""Values of gated_cross_entropy: against the reference, against PyTorch, and in the corners."""

from __future__ import annotations

import math

import pytest
import strategies
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import robustcore
from robustcore import reference
from robustcore.losses import gated_cross_entropy, gated_cross_entropy_scores
from robustcore.testing import assert_matches, error_against
from robustcore.testing.samples_losses.gated_cross_entropy import case, samples

CASE = case()
SAMPLES = {sample.name: sample for sample in samples()}
MACHINE_EPSILON = {dtype: torch.finfo(dtype).eps for dtype in strategies.FLOATING}


def problem(rows: int, classes: int, seed: int = 0, scale: float = 3.0) -> tuple[torch.Tensor, ...]:
    generator = strategies.seeded(seed)
    return (
        scale * torch.randn(rows, classes, generator=generator),
        scale * torch.randn(rows, classes, generator=generator),
        2 * torch.randn(rows, generator=generator),
        torch.randint(classes, (rows,), generator=generator),
    )


@pytest.mark.parametrize("dtype", strategies.FLOATING, ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_samples_match_the_float64_reference(name: str, dtype: torch.dtype) -> None:
    sample = SAMPLES[name].to(dtype=dtype)
    actual = gated_cross_entropy(*sample.args, **sample.kwargs)
    wide = sample.float64()
    expected = reference.losses.gated_cross_entropy(*wide.args, **wide.kwargs)
    if dtype is torch.float16 and expected.abs().nan_to_num().max() > 65504:
        expected = expected.where(expected.abs() <= 65504, torch.inf)
    assert actual.dtype == dtype
    rtol, atol = CASE.tolerance(dtype)
    assert_matches(actual, expected, rtol=rtol, atol=atol, name=name)


@given(
    st.data(),
    st.sampled_from([0, 1, 2, 5, 31, 33]),
    strategies.positive_edge_sizes(),
    strategies.floating_dtypes,
    st.sampled_from(["none", "mean", "sum"]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
)
def test_random_problems_match_the_float64_reference(
    data: st.DataObject,
    rows: int,
    classes: int,
    dtype: torch.dtype,
    reduction: str,
    label_smoothing: float,
    weighted_classes: bool,
    weighted_samples: bool,
    scale: float,
) -> None:
    seed = data.draw(st.integers(0, 2**20))
    f, e, s, y = problem(rows, classes, seed, scale)
    generator = strategies.seeded(seed + 1)
    ignored = torch.rand(rows, generator=generator) < 0.2
    y = y.masked_fill(ignored, -100)
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    if weighted_classes:
        options["weight"] = torch.rand(classes, generator=generator).to(dtype)
    if weighted_samples:
        options["sample_weight"] = torch.rand(rows, generator=generator).to(dtype)
    f, e, s = (data.draw(strategies.strided(t.to(dtype))) for t in (f, e, s))
    actual = gated_cross_entropy(f, e, s, y, **options)
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    expected = reference.losses.gated_cross_entropy(f.double(), e.double(), s.double(), y, **wide)
    # The loss is a difference of numbers of the logits' size; 16-bit results are rounded once.
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    eps = MACHINE_EPSILON[compute]
    atol = 8 * eps * (scale * 4 + math.log(classes)) * (rows if reduction == "sum" else 1)
    if dtype is torch.float16:
        expected = expected.where(expected.abs() <= 65504, expected * torch.inf)
    assert_matches(actual, expected, rtol=2 * MACHINE_EPSILON[dtype], atol=atol)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_an_open_or_closed_gate_is_plain_cross_entropy(reduction: str) -> None:
    f, e, _, y = problem(16, 20)
    weight = torch.rand(20)
    closed = gated_cross_entropy(
        f, e, torch.full((16,), -200.0), y, weight=weight, reduction=reduction
    )
    opened = gated_cross_entropy(
        f, e, torch.full((16,), 200.0), y, weight=weight, reduction=reduction
    )
    torch.testing.assert_close(closed, F.cross_entropy(f, y, weight, reduction=reduction))
    torch.testing.assert_close(opened, F.cross_entropy(e, y, weight, reduction=reduction))


@pytest.mark.parametrize("shape", [(64, 10), (64, 1000), (8, 5000)])
def test_float32_error_is_at_most_four_times_that_of_eager_pytorch(shape: tuple[int, int]) -> None:
    f, e, s, y = problem(*shape)
    inputs = [t.requires_grad_() for t in (f, e, s)]
    wide = [t.detach().double().requires_grad_() for t in inputs]

    def plain(f: torch.Tensor, e: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        gamma = torch.sigmoid(s).unsqueeze(1)
        return F.cross_entropy((1 - gamma) * f + gamma * e, y)

    exact = plain(*wide)
    expected = (exact, *torch.autograd.grad(exact, wide))
    eager_loss = plain(*inputs)
    eager = (eager_loss, *torch.autograd.grad(eager_loss, inputs))
    fused_loss = gated_cross_entropy(*inputs, y)
    fused = (fused_loss, *torch.autograd.grad(fused_loss, inputs))
    for ours, theirs, right in zip(fused, eager, expected):
        # A scalar can be right by luck; half a unit in the last place is always allowed.
        allowed = max(4 * error_against(theirs, right), 2**-24)
        assert error_against(ours, right) <= allowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_gradient_of_the_true_class_keeps_its_precision(dtype: torch.dtype) -> None:
    # p_y = 0.999: in 16 bits p_y - 1 would have no correct digit left.
    f = torch.zeros(1, 2, dtype=dtype)
    f[0, 0] = 6.9067
    f.requires_grad_()
    gated_cross_entropy(
        f, torch.zeros_like(f), torch.full((1,), -50.0), torch.tensor([0])
    ).backward()
    expected = torch.softmax(f.detach().double(), 1)[0, 0] - 1
    assert f.grad is not None
    assert abs(f.grad[0, 0].item() / expected.item() - 1) <= 0.005


class TestCorners:
    def test_empty_batch(self) -> None:
        args = (torch.empty(0, 5), torch.empty(0, 5), torch.empty(0), torch.empty(0).long())
        assert gated_cross_entropy(*args, reduction="none").shape == (0,)
        assert gated_cross_entropy(*args, reduction="sum").item() == 0
        assert math.isnan(gated_cross_entropy(*args).item())
        assert math.isnan(F.cross_entropy(args[0], args[3]).item())

    def test_all_rows_ignored(self) -> None:
        f, e, s, y = problem(4, 3)
        y.fill_(-100)
        f.requires_grad_()
        loss = gated_cross_entropy(f, e, s, y)
        assert math.isnan(loss.item())
        assert gated_cross_entropy(f, e, s, y, reduction="sum").item() == 0
        loss.backward()
        assert f.grad is not None
        assert (f.grad == 0).all()

    @pytest.mark.parametrize("reduction", ["none", "sum"])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_ignored_rows_may_hold_anything(self, value: float, reduction: str) -> None:
        f, e, s, y = problem(4, 5)
        y[1] = -100
        f[1], e[1], s[1] = value, value, value
        weights = torch.ones(4)
        weights[1] = value
        leaves = [t.requires_grad_() for t in (f, e, s, weights)]
        loss = gated_cross_entropy(f, e, s, y, sample_weight=weights, reduction=reduction)
        assert loss.isfinite().all()
        for gradient in torch.autograd.grad(loss.sum(), leaves):
            assert gradient.isfinite().all()
            assert (gradient[1] == 0).all()

    @pytest.mark.parametrize("place", ["prediction", "noise", "gate"])
    def test_nan_stays_in_its_row(self, place: str) -> None:
        f, e, s, y = problem(6, 7)
        {"prediction": f, "noise": e, "gate": s}[place][2] = math.nan
        leaves = [t.requires_grad_() for t in (f, e, s)]
        rows = gated_cross_entropy(f, e, s, y, reduction="none")
        assert rows.isnan().tolist() == [i == 2 for i in range(6)]
        for gradient in torch.autograd.grad(rows.sum(), leaves):
            assert gradient[2].isnan().all()
            assert gradient[[0, 1, 3, 4, 5]].isfinite().all()
        assert gated_cross_entropy(f, e, s, y).isnan()

    @pytest.mark.parametrize("gate", [-1e4, -100.0, 0.0, 3.0, 100.0, 1e4])
    @pytest.mark.parametrize("masked_in", ["both", "prediction", "noise"])
    def test_masked_classes_take_no_part(self, masked_in: str, gate: float) -> None:
        f, e, _, _ = problem(3, 8)
        y = torch.tensor([0, 2, 3])
        kept = [0, 2, 3, 4, 6, 7]
        masked_f, masked_e = f.clone(), e.clone()
        if masked_in != "noise":
            masked_f[:, [1, 5]] = -math.inf
        if masked_in != "prediction":
            masked_e[:, [1, 5]] = -math.inf
        s = torch.full((3,), gate)
        leaves = [t.requires_grad_() for t in (masked_f, masked_e, s)]
        loss = gated_cross_entropy(masked_f, masked_e, s, y)
        without = [
            t.detach().requires_grad_()
            for t in (f[:, kept].contiguous(), e[:, kept].contiguous(), s)
        ]
        expected = reference.losses.gated_cross_entropy(*without, torch.tensor([0, 1, 2]))
        torch.testing.assert_close(loss, expected)
        gradients = torch.autograd.grad(loss, leaves)
        wanted = torch.autograd.grad(expected, without)
        for actual, right in zip(gradients[:2], wanted[:2]):
            torch.testing.assert_close(actual[:, kept], right)
            assert (actual[:, [1, 5]] == 0).all()
        torch.testing.assert_close(gradients[2], wanted[2])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("gate", [-800.0, -100.0, -90.0, -80.0, 80.0, 90.0, 100.0, 800.0])
    @pytest.mark.parametrize("which", ["prediction", "noise"])
    def test_a_mask_of_the_largest_finite_number(self, which, gate, dtype) -> None:
        f = torch.tensor([[0.0, 1.0, 2.0]], dtype=dtype)
        e = torch.tensor([[1.0, -1.0, 0.0]], dtype=dtype)
        (f if which == "prediction" else e)[0, 1] = torch.finfo(dtype).min
        s, y = torch.tensor([gate], dtype=torch.float64), torch.tensor([0])
        leaves = [t.requires_grad_() for t in (f, e)]
        loss = gated_cross_entropy(f, e, s, y)
        wide = [t.detach().double().requires_grad_() for t in leaves]
        exact = reference.losses.gated_cross_entropy(*wide, s, y)
        tolerance = {"rtol": 4 * MACHINE_EPSILON[dtype], "atol": 2e-6}
        assert_matches(loss, exact, **tolerance)
        for a, b in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(exact, wide)):
            assert_matches(a, b, **tolerance)

    def test_a_masked_target_is_infinitely_wrong(self) -> None:
        f = torch.tensor([[0.0, -math.inf]])
        loss = gated_cross_entropy(f, f, torch.zeros(1), torch.tensor([1]))
        assert loss.item() == math.inf

    @pytest.mark.parametrize("dim", [0, 1, 2, 3, -1, -2, -4])
    def test_classes_in_any_dimension(self, dim: int) -> None:
        shape = [2, 3, 4]
        shape.insert(dim % 4, 5)
        f, e = torch.randn(shape), torch.randn(shape)
        s, y = torch.randn(2, 3, 4), torch.randint(5, (2, 3, 4))
        actual = gated_cross_entropy(f, e, s, y, reduction="none", dim=dim)
        expected = gated_cross_entropy(
            f.movedim(dim, -1).reshape(-1, 5),
            e.movedim(dim, -1).reshape(-1, 5),
            s.reshape(-1),
            y.reshape(-1),
            reduction="none",
        )
        assert torch.equal(actual, expected.reshape(2, 3, 4))

    def test_one_row_without_a_batch_dimension(self) -> None:
        f, e, s, y = problem(1, 5)
        expected = gated_cross_entropy(f, e, s, y)
        assert torch.equal(gated_cross_entropy(f[0], e[0], s[0], y[0]), expected)

    def test_a_gate_may_keep_its_class_dimension(self) -> None:
        f, e, s, y = problem(4, 5)
        expected = gated_cross_entropy(f, e, s, y)
        assert torch.equal(gated_cross_entropy(f, e, s.unsqueeze(1), y), expected)


def test_same_bits_in_every_run_and_for_any_number_of_threads(threads) -> None:
    f, e, s, y = problem(700, 130)
    leaves = [t.requires_grad_() for t in (f, e, s)]

    def run(reduction: str) -> list[torch.Tensor]:
        loss = gated_cross_entropy(f, e, s, y, reduction=reduction)
        return [loss, *torch.autograd.grad(loss.sum(), leaves)]

    for reduction in ("none", "mean"):
        with threads(1):
            single = run(reduction)
        for count in (1, 2, 3):
            with threads(count):
                assert all(torch.equal(a, b) for a, b in zip(run(reduction), single))


def test_two_paths_agree() -> None:
    """The gradients written in the forward pass equal those of the backward operator."""
    f, e, s, y = problem(50, 33)
    weights = torch.rand(50)
    leaves = [t.requires_grad_() for t in (f, e, s, weights)]
    scalar = gated_cross_entropy(f, e, s, y, sample_weight=weights, reduction="sum")
    rows = gated_cross_entropy(f, e, s, y, sample_weight=weights, reduction="none").sum()
    for a, b in zip(torch.autograd.grad(scalar, leaves), torch.autograd.grad(rows, leaves)):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


class TestScores:
    @pytest.mark.parametrize("dtype", strategies.FLOATING, ids=str)
    def test_they_match_the_reference(self, dtype: torch.dtype) -> None:
        f, e, s, y = problem(40, 37)
        y[3] = -100
        f, e, s = f.to(dtype), e.to(dtype), s.to(dtype)
        actual = gated_cross_entropy_scores(f, e, s, y)
        expected = reference.losses.gated_cross_entropy_scores(
            f.double(), e.double(), s.double(), y
        )
        eps = MACHINE_EPSILON[dtype]
        assert_matches(actual.loss, expected.loss, rtol=eps, atol=1e-6)
        assert_matches(actual.log_probability, expected.log_probability, rtol=1e-6, atol=2e-6)
        assert_matches(actual.gate, expected.gate, rtol=1e-6)
        assert torch.equal(actual.predicted, expected.predicted)

    def test_loss_is_the_loss_and_differentiable(self) -> None:
        f, e, s, y = problem(9, 4)
        f.requires_grad_()
        scores = gated_cross_entropy_scores(f, e, s, y)
        loss = gated_cross_entropy(f, e, s, y)
        torch.testing.assert_close(scores.loss, loss)
        (gradient,) = torch.autograd.grad(scores.loss, f)
        torch.testing.assert_close(gradient, torch.autograd.grad(loss, f)[0])
        assert not scores.log_probability.requires_grad
        assert not scores.gate.requires_grad

    def test_predicted_is_the_first_maximum_and_the_first_nan(self) -> None:
        f = torch.tensor([[1.0, 3.0, 3.0], [1.0, math.nan, math.nan], [-math.inf] * 3])
        scores = gated_cross_entropy_scores(
            f, torch.zeros(3, 3), torch.zeros(3), torch.zeros(3).long()
        )
        assert scores.predicted.tolist() == [1, 1, 0]

    def test_shapes_follow_the_batch(self) -> None:
        f, y = torch.randn(2, 5, 3), torch.randint(5, (2, 3))
        scores = gated_cross_entropy_scores(f, f, torch.zeros(2, 3), y, dim=1, reduction="none")
        assert all(value.shape == (2, 3) for value in scores)


def test_use_reference_runs_the_reference() -> None:
    f, e, s, y = problem(5, 6)
    expected = reference.losses.gated_cross_entropy(f, e, s, y)
    with robustcore.use_reference():
        assert torch.equal(gated_cross_entropy(f, e, s, y), expected)
        scores = gated_cross_entropy_scores(f, e, s, y)
    assert torch.equal(scores.loss, expected)
