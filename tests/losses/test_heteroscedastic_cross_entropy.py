"""Values of heteroscedastic_cross_entropy: with the reference's noise, in law, and in corners."""

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
from robustcore.losses import (
    HeteroscedasticCrossEntropyLoss,
    heteroscedastic_cross_entropy,
    heteroscedastic_log_probabilities,
)
from robustcore.testing import assert_matches, check_sample
from robustcore.testing.samples_losses.heteroscedastic_cross_entropy import case, samples

CASE = case()
SAMPLES = {sample.name: sample for sample in samples()}


def problem(rows: int, classes: int, rank: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = strategies.seeded(seed)
    return (
        2 * torch.randn(rows, classes, generator=generator),
        0.5 * torch.randn(rows, classes, rank, generator=generator),
        torch.rand(rows, classes, generator=generator) + 1e-3,
        torch.randint(classes, (rows,), generator=generator),
    )


@pytest.mark.parametrize("dtype", strategies.FLOATING, ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_samples_match_the_float64_reference(name: str, dtype: torch.dtype) -> None:
    for finding in check_sample(CASE, SAMPLES[name], "cpu", dtype):
        assert finding.comparison.passed, f"{finding.quantity}: {finding.comparison.problem}"


@given(
    st.data(),
    st.sampled_from([0, 1, 3]),
    st.sampled_from([1, 2, 10, 17, 33]),
    st.sampled_from([0, 1, 2, 3, 5, 9]),
    st.sampled_from([1, 2, 5, 63, 65]),
    strategies.floating_dtypes,
    st.sampled_from(["none", "mean", "sum"]),
    st.sampled_from([0.0, 1e-7]),
    st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
)
def test_random_problems_match_the_float64_reference(
    data: st.DataObject,
    rows: int,
    classes: int,
    rank: int,
    count: int,
    dtype: torch.dtype,
    reduction: str,
    minimum: float,
    scale: float,
) -> None:
    seed = data.draw(st.integers(-(2**63), 2**63 - 1))
    mean, low_rank, diagonal, target = problem(rows, classes, rank, seed % 1000)
    target = target.masked_fill(torch.arange(rows) % 3 == 2, -100)
    inputs = [
        data.draw(strategies.strided(t.to(dtype))) for t in (mean * scale, low_rank, diagonal)
    ]
    options = {
        "temperature": 1.5,
        "samples": count,
        "reduction": reduction,
        "minimum_probability": minimum,
        "seed": seed,
    }
    actual = heteroscedastic_cross_entropy(*inputs, target, **options)
    expected = reference.losses.heteroscedastic_cross_entropy(
        *(t.double() for t in inputs), target, **options
    )
    # The loss is a difference of numbers of the logits' size; 16-bit results are rounded once.
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    atol = 16 * torch.finfo(compute).eps * (scale * 6 + 10) * (rows if reduction == "sum" else 1)
    if dtype is torch.float16:
        expected = expected.where(expected.abs() <= 65504, expected * torch.inf)
    assert_matches(actual, expected, rtol=2 * torch.finfo(dtype).eps, atol=atol)


def test_the_reference_takes_any_noise() -> None:
    mean, low_rank, diagonal, target = problem(4, 6, 2)
    noise = torch.zeros(4, 5, 2), torch.zeros(4, 5, 6)
    loss = reference.losses.heteroscedastic_cross_entropy(
        mean, low_rank, diagonal, target, noise=noise
    )
    torch.testing.assert_close(loss, F.cross_entropy(mean, target))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_without_noise_it_is_plain_cross_entropy(reduction: str) -> None:
    mean, low_rank, diagonal, target = problem(16, 20, 3)
    weight, zero = torch.rand(20), torch.zeros_like
    loss = heteroscedastic_cross_entropy(
        mean, zero(low_rank), zero(diagonal), target, weight=weight, samples=7, reduction=reduction
    )
    torch.testing.assert_close(loss, F.cross_entropy(mean, target, weight, reduction=reduction))
    log_p = heteroscedastic_log_probabilities(mean, None, zero(diagonal), samples=7)
    torch.testing.assert_close(log_p, mean.log_softmax(-1))


def test_many_samples_agree_with_independent_noise() -> None:
    """In law: against torch.randn, within the spread of the mean over samples."""
    mean, low_rank, diagonal, target = (t.double() for t in problem(6, 5, 3))
    target, count = target.long(), 200_000
    u = mean[:, None] + torch.randn(count, 3).double() @ low_rank.transpose(1, 2)
    q = ((u + diagonal[:, None] * torch.randn(6, count, 5)) / 1.3).softmax(-1)
    own = q.gather(-1, target[:, None, None].expand(-1, count, 1)).squeeze(-1)
    spread = own.std(1) / math.sqrt(count)
    log_p = heteroscedastic_log_probabilities(
        mean, low_rank, diagonal, temperature=1.3, samples=count, seed=1
    )
    estimate = log_p.exp().gather(1, target[:, None]).squeeze(1)
    assert ((estimate - own.mean(1)).abs() < 6 * spread).all()
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(6).double())
    loss = heteroscedastic_cross_entropy(
        mean, low_rank, diagonal, target, temperature=1.3, samples=count, seed=1, reduction="none"
    )
    torch.testing.assert_close(loss, -estimate.log())


def test_the_binary_case_has_the_known_integral() -> None:
    """E[sigmoid(N(0, v))] = 1/2, and sigmoid(m + s z) integrated by quadrature."""
    mean, scale = torch.tensor([[1.5, 0.0]]), torch.tensor([[2.0, 1.0]])
    log_p = heteroscedastic_log_probabilities(mean, None, scale, samples=400_000, seed=3)
    z = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    exact = torch.trapezoid(torch.sigmoid(1.5 + math.sqrt(5.0) * z) * density, z)
    assert abs(log_p.exp()[0, 0] - exact) < 5 * 0.5 / math.sqrt(400_000)


def test_an_improbable_label() -> None:
    """At the minimum: the loss is -log(minimum), without a gradient. In log space: exact."""
    mean = torch.tensor([[0.0, 1000.0], [0.0, 1e4]], requires_grad=True)
    diagonal, target = torch.full((2, 2), 0.1), torch.tensor([0, 0])
    loss = heteroscedastic_cross_entropy(mean, None, diagonal, target, samples=50, seed=0)
    torch.testing.assert_close(loss.item(), -math.log(1e-7))
    (gradient,) = torch.autograd.grad(loss, mean)
    assert (gradient == 0).all()
    loss = heteroscedastic_cross_entropy(
        mean, None, diagonal, target, samples=50, minimum_probability=0.0, reduction="none"
    )
    torch.testing.assert_close(loss.detach(), torch.tensor([1000.0, 1e4]), rtol=1e-3, atol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), mean)
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, 1.0]]).expand(2, 2))


def test_float32_gradient_of_a_certain_label() -> None:
    """bfloat16 in: the gradient of the true class at p = 0.999 is right to 0.5 %."""
    mean = torch.zeros(1, 2)
    mean[0, 0] = math.log(999.0)
    low = mean.bfloat16().requires_grad_()
    diagonal, target = torch.full((1, 2), 1e-3), torch.tensor([0])
    options = {"samples": 100, "seed": 4}
    loss = heteroscedastic_cross_entropy(low, None, diagonal.bfloat16(), target, **options)
    (gradient,) = torch.autograd.grad(loss, low)
    wide = low.detach().double().requires_grad_()
    exact = reference.losses.heteroscedastic_cross_entropy(
        wide, None, diagonal.bfloat16().double(), target, **options
    )
    (expected,) = torch.autograd.grad(exact, wide)
    torch.testing.assert_close(gradient.double(), expected, rtol=5e-3, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_do_not_leak(value: float) -> None:
    mean, low_rank, diagonal, target = problem(5, 9, 3)

    def results(mean, low_rank, diagonal, target=target):
        leaves = [t.clone().requires_grad_() for t in (mean, low_rank, diagonal)]
        loss = heteroscedastic_cross_entropy(*leaves, target, samples=20, reduction="none", seed=0)
        log_p = heteroscedastic_log_probabilities(*leaves, samples=20, seed=0)
        return (loss, log_p, *torch.autograd.grad(loss.sum(), leaves))

    clean = results(mean, low_rank, diagonal)
    keep = torch.tensor([True, False, True, True, True])
    for position in range(3):
        spoiled = [t.clone() for t in (mean, low_rank, diagonal)]
        spoiled[position][1] = value
        for a, b in zip(results(*spoiled), clean):
            assert torch.equal(a[keep], b[keep])
        assert results(*spoiled)[0][1].isnan()
        # As an ignored row it is as if it were not there.
        ignored = results(*spoiled, target=target.masked_fill(~keep, -100))
        assert ignored[0][1] == 0
        for gradient in ignored[2:]:
            assert (gradient[1] == 0).all()


def test_the_same_bits_for_any_number_of_threads_and_in_every_run() -> None:
    mean, low_rank, diagonal, target = problem(40, 30, 6)
    leaves = [t.requires_grad_() for t in (mean, low_rank, diagonal)]

    def run() -> list[torch.Tensor]:
        loss = heteroscedastic_cross_entropy(*leaves, target, samples=150, seed=9)
        log_p = heteroscedastic_log_probabilities(*leaves, samples=150, seed=9)
        return [loss, log_p, *torch.autograd.grad(loss, leaves)]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run()
        torch.set_num_threads(2)
        for again in (run(), run()):
            for a, b in zip(alone, again):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


def test_the_seed_comes_from_the_default_generator() -> None:
    mean, low_rank, diagonal, target = problem(3, 4, 2)

    def loss(seed=None) -> float:
        return heteroscedastic_cross_entropy(
            mean, low_rank, diagonal, target, samples=8, seed=seed
        ).item()

    torch.manual_seed(11)
    first, second = loss(), loss()
    torch.manual_seed(11)
    assert loss() == first
    assert first != second
    assert loss(3) == loss(torch.tensor(3)) == loss(torch.tensor([3]))


def test_all_ignored_and_empty_batches_are_as_in_pytorch() -> None:
    mean, low_rank, diagonal, target = problem(3, 4, 2)
    nobody = torch.full_like(target, -100)
    for rows in (3, 0):
        given = (mean[:rows], low_rank[:rows], diagonal[:rows], nobody[:rows])
        for reduction in ("none", "mean", "sum"):
            loss = heteroscedastic_cross_entropy(*given, samples=4, reduction=reduction)
            expected = F.cross_entropy(given[0], given[3], reduction=reduction)
            torch.testing.assert_close(loss, expected, equal_nan=True)


def test_batch_dimensions_and_dim() -> None:
    mean, low_rank, diagonal, target = problem(12, 5, 2)
    options = {"samples": 10, "seed": 1, "reduction": "none"}
    flat = heteroscedastic_cross_entropy(mean, low_rank, diagonal, target, **options)
    shaped = heteroscedastic_cross_entropy(
        mean.reshape(3, 4, 5).movedim(-1, 1),
        low_rank.reshape(3, 4, 5, 2).movedim(-2, 1),
        diagonal.reshape(3, 4, 5).movedim(-1, 1),
        target.reshape(3, 4),
        dim=1,
        **options,
    )
    assert torch.equal(shaped, flat.reshape(3, 4))
    log_p = heteroscedastic_log_probabilities(mean, low_rank, diagonal, samples=10, seed=1)
    moved = heteroscedastic_log_probabilities(
        mean.t(), low_rank.movedim(1, 0), diagonal.t(), samples=10, seed=1, dim=0
    )
    assert torch.equal(moved, log_p.t())


def test_the_module_and_the_forced_reference() -> None:
    mean, low_rank, diagonal, target = problem(4, 5, 2)
    weight = torch.rand(5)
    module = HeteroscedasticCrossEntropyLoss(weight, temperature=1.5, samples=12, reduction="sum")
    loss = module(mean, low_rank, diagonal, target, seed=2)
    with robustcore.use_reference():
        torch.testing.assert_close(module(mean, low_rank, diagonal, target, seed=2), loss)
        log_p = heteroscedastic_log_probabilities(mean, None, diagonal, samples=12, seed=2)
    torch.testing.assert_close(
        heteroscedastic_log_probabilities(mean, None, diagonal, samples=12, seed=2), log_p
    )
    assert "temperature=1.5" in repr(module)
    assert "weight" in module.state_dict()


M, V, D, Y = problem(8, 5, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mean": [1.0]}, TypeError, "mean must be a torch.Tensor, got list"),
        ({"low_rank": 3}, TypeError, "low_rank must be a torch.Tensor, got int"),
        ({"diagonal": None}, TypeError, "diagonal must be a torch.Tensor, got NoneType"),
        ({"target": None}, TypeError, "target must be a torch.Tensor, got NoneType"),
        ({"samples": 1.5}, TypeError, "samples must be an int, got float"),
        ({"samples": 0}, ValueError, r"samples must be in \[1, 2\*\*30\], got 0"),
        ({"temperature": "1"}, TypeError, "temperature must be a float, got str"),
        ({"temperature": True}, TypeError, "temperature must be a float, got bool"),
        ({"minimum_probability": False}, TypeError, "must be a float, got bool"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
        ({"minimum_probability": 1.0}, ValueError, r"must be in \[0, 1\), got 1.0"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of 'none', 'mean', 'sum'"),
        ({"diagonal": D.to("meta")}, ValueError, "diagonal must be on cpu, got meta"),
        ({"mean": M.long()}, TypeError, "mean must be float32, .* got int64"),
        ({"low_rank": V.long()}, TypeError, "low_rank must be float32, .* got int64"),
        ({"target": Y.int()}, TypeError, "target must hold class indices of dtype int64"),
        ({"low_rank": V[:7]}, ValueError, r"low_rank must have the shape of mean, \(8, 5\)"),
        ({"low_rank": V[..., 0]}, ValueError, "and the rank as a last dimension"),
        ({"low_rank": M.new_zeros(8, 5, 1025)}, ValueError, "must be at most 1024, got 1025"),
        ({"diagonal": D[:, :4]}, ValueError, r"diagonal must have shape \(8, 5\), got \(8, 4\)"),
        ({"target": Y[:7]}, ValueError, r"target must have shape \(8,\), got \(7,\)"),
        ({"weight": torch.ones(4)}, ValueError, r"weight must have shape \(5,\), got \(4,\)"),
        ({"weight": torch.ones(5, requires_grad=True)}, ValueError, "weight must not require"),
        ({"sample_weight": torch.ones(5)}, ValueError, r"sample_weight must have shape \(8,\)"),
        ({"dim": 2}, ValueError, r"dim must be in \[-2, 2\)"),
        ({"target": Y.clone().fill_(5)}, IndexError, r"target must be in \[0, 5\) or ignore_index"),
    ],
)
def test_errors(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"mean": M, "low_rank": V, "diagonal": D, "target": Y, **change}
    with pytest.raises(error, match=f"^heteroscedastic_cross_entropy: .*{message}"):
        heteroscedastic_cross_entropy(**arguments)
