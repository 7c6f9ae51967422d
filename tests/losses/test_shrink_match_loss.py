"""Values of shrink_match_loss: against the reference, against loops, and in the corners."""

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
from robustcore.losses import shrink_match_loss, shrink_match_scores
from robustcore.testing import assert_matches
from robustcore.testing.samples_losses.shrink_match_loss import case, samples

CASE = case()
SAMPLES = {sample.name: sample for sample in samples()}
MACHINE_EPSILON = {dtype: torch.finfo(dtype).eps for dtype in strategies.FLOATING}
# The docstring's band, within which rounding may move the cut.
BAND = {torch.float32: 4e-6, torch.float64: 1e-14}


def problem(
    rows: int, classes: int, seed: int = 0, scale: float = 2.0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = strategies.seeded(seed)
    return (
        scale * torch.randn(rows, classes, generator=generator),
        scale * torch.randn(rows, classes, generator=generator),
    )


def wider(threshold: float, band: float) -> float:
    """The threshold that allows (1 + band) times the probability beside the largest."""
    return 1 / (1 + (1 + band) * (1 - threshold) / threshold)


def row_by_definition(weak: torch.Tensor, strong: torch.Tensor, threshold: float) -> torch.Tensor:
    """One row, class by class, as the definition says it."""
    p, order = weak.softmax(0).sort(descending=True, stable=True)
    if p[0] >= threshold:
        return 0 * strong.sum()
    for c in range(1, len(p)):
        if p[0] / (p[0] + p[c:].sum()) >= threshold:
            kept = torch.cat([order[:1], order[c:]])
            return p[0] * F.cross_entropy(strong[kept], torch.tensor(0))
    return 0 * strong.sum()


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("function", [shrink_match_loss, reference.losses.shrink_match_loss])
def test_the_definition_in_a_loop(function, threshold: float) -> None:
    weak, strong = (x.double() for x in problem(40, 12, scale=1.0))
    strong.requires_grad_()
    expected = torch.stack([row_by_definition(w, s, threshold) for w, s in zip(weak, strong)])
    actual = function(weak, strong, threshold=threshold, reduction="none")
    assert (actual > 0).sum() > 5
    torch.testing.assert_close(actual, expected)
    for a, b in zip(
        torch.autograd.grad(actual.sum(), strong), torch.autograd.grad(expected.sum(), strong)
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", strategies.FLOATING, ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_samples_match_the_float64_reference(name: str, dtype: torch.dtype) -> None:
    sample = SAMPLES[name].to(dtype=dtype)
    actual = shrink_match_loss(*sample.args, **sample.kwargs)
    wide = sample.float64()
    expected = reference.losses.shrink_match_loss(*wide.args, **wide.kwargs)
    assert actual.dtype == dtype
    rtol, atol = CASE.tolerance(dtype)
    assert_matches(actual, expected, rtol=rtol, atol=atol, name=name)


@given(
    st.data(),
    st.sampled_from([0, 1, 2, 5, 17]),
    st.one_of(strategies.positive_edge_sizes(), st.sampled_from([1023, 1024, 1025, 3000])),
    strategies.floating_dtypes,
    st.sampled_from([0.05, 0.4, 0.5, 0.7, 0.95, 0.9999]),
    st.sampled_from([0.0, 1e-3, 0.5, 3.0, 100.0, 1e4]),
    st.booleans(),
)
def test_random_problems_match_the_float64_reference(
    data: st.DataObject,
    rows: int,
    classes: int,
    dtype: torch.dtype,
    threshold: float,
    scale: float,
    masked: bool,
) -> None:
    seed = data.draw(st.integers(0, 2**20))
    weak, strong = problem(rows, classes, seed, scale)
    if masked:
        absent = torch.rand(classes, generator=strategies.seeded(seed)) < 0.3
        absent[0] = False
        weak, strong = (x.masked_fill(absent, -math.inf) for x in (weak, strong))
    weak, strong = (data.draw(strategies.strided(x.to(dtype))) for x in (weak, strong))
    strong.requires_grad_()
    wide = strong.detach().double().requires_grad_()
    scores = shrink_match_scores(weak, strong, threshold=threshold, reduction="none")
    (gradient,) = torch.autograd.grad(scores.loss.sum(), strong)
    compute = torch.float64 if dtype is torch.float64 else torch.float32

    # Where the cut is not within the band of rounding, everything must agree; the number of classes
    # removed must lie between those of both ends of the band in any case.
    exact, less, more = (
        reference.losses.shrink_match_scores(
            weak.double(), wide, threshold=wider(threshold, band), reduction="none"
        )
        for band in (0.0, BAND[compute], -BAND[compute])
    )
    assert torch.equal(scores.predicted, exact.predicted)
    assert ((scores.removed >= less.removed) & (scores.removed <= more.removed)).all()
    sure = less.removed == more.removed
    assert torch.equal(scores.removed[sure], exact.removed[sure])
    (wanted,) = torch.autograd.grad(exact.loss.sum(), wide)
    eps = MACHINE_EPSILON[compute]
    assert_matches(scores.confidence, exact.confidence, rtol=16 * eps)
    # The loss is a difference of numbers of the logits' size; 16-bit results are rounded once.
    atol = 8 * eps * (4 * scale + math.log(classes) + 1)
    expected = exact.loss[sure]
    if dtype is torch.float16:
        expected = expected.where(expected.abs() <= 65504, torch.inf)
    rtol = 2 * MACHINE_EPSILON[dtype]
    assert_matches(scores.loss[sure], expected, rtol=rtol, atol=atol)
    tiny = torch.finfo(dtype).smallest_normal
    assert_matches(gradient[sure], wanted[sure], rtol=rtol, atol=atol + tiny)


class TestCorners:
    def test_certain_rows_have_no_loss_and_no_gradient_whatever_they_hold(self) -> None:
        weak = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
        strong = torch.tensor([[math.nan, 1.0, 2.0], [math.inf, 0.0, 0.0]], requires_grad=True)
        for reduction in ("none", "mean", "sum"):
            for function in (shrink_match_loss, reference.losses.shrink_match_loss):
                loss = function(weak, strong, reduction=reduction)
                assert (loss == 0).all()
                (gradient,) = torch.autograd.grad(loss.sum(), strong)
                assert (gradient == 0).all()

    @pytest.mark.parametrize("classes", [1, 2])
    def test_one_or_two_classes_never_learn(self, classes: int) -> None:
        weak, strong = problem(9, classes)
        strong.requires_grad_()
        scores = shrink_match_scores(weak, strong, reduction="sum")
        assert scores.loss == 0
        scores.loss.backward()
        assert (strong.grad == 0).all()
        uncertain = weak.softmax(1).amax(1) < 0.95
        assert torch.equal(scores.removed, uncertain.long())

    def test_rows_that_stay_uncertain_beside_the_weakest_rival_have_no_loss(self) -> None:
        weak, strong = torch.zeros(3, 4), torch.randn(3, 4)
        scores = shrink_match_scores(weak, strong, reduction="none")
        assert scores.loss.tolist() == [0, 0, 0]
        assert scores.removed.tolist() == [3, 3, 3]

    def test_of_equal_classes_the_later_ones_stay(self) -> None:
        # Beside p_1 = 1 the threshold allows 1/4, that is two of the four classes of 1/8.
        weak = torch.tensor([[0.125, 1.0, 0.125, 0.125, 0.125]]).log()
        strong = torch.randn(1, 5, requires_grad=True)
        scores = shrink_match_scores(weak, strong, threshold=0.7999, reduction="sum")
        scores.loss.backward()
        assert scores.removed.item() == 2
        assert (strong.grad[0] != 0).tolist() == [False, True, False, True, True]

    def test_of_equal_maxima_the_first_is_the_class(self) -> None:
        weak = torch.tensor([[0.0, 3.0, 3.0, -9.0]])
        assert shrink_match_scores(weak, weak).predicted.item() == 1

    def test_classes_masked_in_the_weak_view_stay(self) -> None:
        weak = torch.tensor([[1.0, 1.0, -math.inf, -math.inf]])
        strong = torch.zeros(1, 4)
        loss = shrink_match_loss(weak, strong)
        torch.testing.assert_close(loss, torch.tensor(0.5 * math.log(3)))

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_bad_weak_row_spoils_itself_only(self, bad: float) -> None:
        weak, strong = problem(6, 40)
        clean = strong.clone().requires_grad_()
        dirty = strong.clone().requires_grad_()
        before = shrink_match_scores(weak, clean, reduction="none")
        weak[2, 7] = bad
        for function in (shrink_match_scores, reference.losses.shrink_match_scores):
            after = function(weak, dirty, reduction="none")
            others = torch.arange(6) != 2
            torch.testing.assert_close(after.loss[others], before.loss[others])
            assert after.loss[2].isnan()
            assert after.confidence[2].isnan()
            assert (after.predicted[2], after.removed[2]) == (7, -1)
            (gradient,) = torch.autograd.grad(after.loss.sum(), dirty)
            assert gradient[2].isnan().all()
            assert gradient[others].isfinite().all()

    def test_a_row_without_any_class_is_nan(self) -> None:
        weak = torch.full((1, 5), -math.inf)
        scores = shrink_match_scores(weak, torch.zeros(1, 5))
        assert scores.loss.isnan()
        assert scores.removed.item() == -1

    def test_nan_in_a_strong_row_counts_where_the_class_stays(self) -> None:
        weak = torch.tensor([[1.0, 0.9, -6.0, -6.0]]).expand(2, 4)
        strong = torch.zeros(2, 4)
        strong[0, 1] = strong[1, 2] = math.nan
        loss = shrink_match_loss(weak, strong, reduction="none")
        assert loss.isnan().tolist() == [False, True]

    def test_empty_batches_give_what_pytorch_gives(self) -> None:
        empty = torch.empty(0, 7, requires_grad=True)
        assert shrink_match_loss(empty, empty).isnan()
        assert shrink_match_loss(empty, empty, reduction="sum") == 0
        assert shrink_match_loss(empty, empty, reduction="none").shape == (0,)
        shrink_match_loss(empty, empty, reduction="sum").backward()
        assert empty.grad is not None
        assert empty.grad.shape == (0, 7)

    def test_certain_rows_are_in_the_denominator(self) -> None:
        weak, strong = problem(5, 30)
        total = shrink_match_loss(weak, strong, reduction="sum")
        sure = F.one_hot(torch.tensor([0, 1, 2]), 30).float() * 50
        both = shrink_match_loss(torch.cat([weak, sure]), torch.cat([strong, strong[:3]]))
        torch.testing.assert_close(both, total / 8)

    def test_shapes_and_dim(self) -> None:
        weak, strong = problem(2 * 3 * 4, 11)
        flat = shrink_match_scores(weak, strong, reduction="none")
        weak, strong = (x.reshape(2, 3, 4, 11).movedim(-1, 1) for x in (weak, strong))
        scores = shrink_match_scores(weak, strong, reduction="none", dim=1)
        for a, b in zip(scores, flat):
            assert torch.equal(a, b.reshape(2, 3, 4))
        assert shrink_match_loss(weak[0, :, 0, 0], strong[0, :, 0, 0], reduction="none").dim() == 0


def test_bits_do_not_depend_on_the_number_of_threads(threads) -> None:
    weak, strong = problem(900, 301)
    results = []
    for count in (1, 2, 2):
        with threads(count):
            leaf = strong.clone().requires_grad_()
            loss = shrink_match_loss(weak, leaf)
            rows = shrink_match_loss(weak, strong, reduction="none")
            results.append((loss, rows, *torch.autograd.grad(loss, leaf)))
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.equal(a, b)


def test_the_reference_on_demand() -> None:
    weak, strong = problem(8, 20)
    with robustcore.use_reference():
        forced = shrink_match_scores(weak, strong)
    for a, b in zip(shrink_match_scores(weak, strong), forced):
        torch.testing.assert_close(a, b)


def test_bfloat16_gradient_of_the_predicted_class() -> None:
    """p - 1 near p = 0.999: formed in float32, so its relative error is that of one rounding."""
    weak = torch.tensor([[2.0, 1.5, -4.0, -4.0]], dtype=torch.bfloat16)
    strong = torch.tensor([[7.0, 0.0, -0.5, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    (gradient,) = torch.autograd.grad(shrink_match_loss(weak, strong, reduction="sum"), strong)
    wide = strong.detach().double().requires_grad_()
    loss = reference.losses.shrink_match_loss(weak.double(), wide, reduction="sum")
    (exact,) = torch.autograd.grad(loss, wide)
    assert abs(gradient[0, 0].item() / exact[0, 0].item() - 1) <= 0.005
