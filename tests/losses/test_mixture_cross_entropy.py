"""mixture_cross_entropy beyond what every row loss is tested for in test_row_losses.py."""

from __future__ import annotations

import pytest
import strategies
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from robustcore import reference
from robustcore.losses import MixtureCrossEntropyLoss, mixture_cross_entropy, mixture_log_softmax
from robustcore.testing import assert_matches, error_against


def problem(rows: int, classes: int, seed: int = 0, scale: float = 3.0) -> tuple[torch.Tensor, ...]:
    generator = strategies.seeded(seed)
    return (
        scale * torch.randn(rows, classes, generator=generator),
        scale * torch.randn(rows, classes, generator=generator),
        2 * torch.randn(rows, generator=generator),
        torch.randint(classes, (rows,), generator=generator),
    )


@given(
    st.data(),
    st.sampled_from([0, 1, 2, 5, 31, 33]),
    strategies.positive_edge_sizes(),
    strategies.floating_dtypes,
    st.sampled_from(["none", "mean", "sum"]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_random_problems_match_the_float64_reference(
    data: st.DataObject,
    rows: int,
    classes: int,
    dtype: torch.dtype,
    reduction: str,
    label_smoothing: float,
    scale: float,
) -> None:
    seed = data.draw(st.integers(0, 2**20))
    z1, z2, gate, target = problem(rows, classes, seed, scale)
    target = target.masked_fill(torch.rand(rows, generator=strategies.seeded(seed)) < 0.2, -100)
    z1, z2, gate = (data.draw(strategies.strided(t.to(dtype))) for t in (z1, z2, gate))
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    actual = mixture_cross_entropy(z1, z2, gate, target, 1.2, 0.5, **options)
    expected = reference.losses.mixture_cross_entropy(
        z1.double(), z2.double(), gate.double(), target, 1.2, 0.5, **options
    )
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    atol = 16 * torch.finfo(compute).eps * (4 * scale + 5) * (rows if reduction == "sum" else 1)
    assert_matches(actual, expected, rtol=2 * torch.finfo(dtype).eps, atol=atol)


def test_gradients_are_those_of_the_formula() -> None:
    z1, z2, gate, target = (t.double() if t.is_floating_point() else t for t in problem(6, 5))
    leaves = [t.requires_grad_() for t in (z1, z2, gate)]
    s1, s2 = 1.2, 0.5
    loss = mixture_cross_entropy(z1, z2, gate, target, s1, s2, reduction="sum")
    actual = torch.autograd.grad(loss, leaves)
    with torch.no_grad():
        alpha = torch.sigmoid(gate)
        p1, p2 = (s1 * z1).softmax(1), (s2 * z2).softmax(1)
        label = F.one_hot(target, 5)
        p1y, p2y = (p1 * label).sum(1), (p2 * label).sum(1)
        m = (1 - alpha) * p1y + alpha * p2y
        w = (1 - alpha) * p1y / m
        torch.testing.assert_close(actual[0], s1 * w[:, None] * (p1 - label))
        torch.testing.assert_close(actual[1], s2 * (1 - w)[:, None] * (p2 - label))
        torch.testing.assert_close(actual[2], -(p2y - p1y) / m * alpha * (1 - alpha))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_an_open_or_closed_gate_is_plain_cross_entropy(reduction: str) -> None:
    z1, z2, _, target = problem(16, 20)
    weight = torch.rand(20)
    options = {"weight": weight, "reduction": reduction, "label_smoothing": 0.1}
    for gate, logits in ((-200.0, z1), (200.0, z2)):
        actual = mixture_cross_entropy(z1, z2, torch.full((16,), gate), target, **options)
        torch.testing.assert_close(actual, F.cross_entropy(logits, target, **options))


def test_it_is_the_negative_mixed_log_probability_of_the_label() -> None:
    z1, z2, gate, target = problem(16, 20)
    actual = mixture_cross_entropy(z1, z2, gate, target, 1.2, 0.5)
    mixed = mixture_log_softmax(z1, z2, gate, 1.2, 0.5)
    torch.testing.assert_close(actual, F.nll_loss(mixed, target))


def test_a_label_that_both_find_unlikely_keeps_its_gradient() -> None:
    """Probabilities below float32's range: their log is -inf, and 1e-12 inside it is a plateau."""
    z = torch.tensor([[0.0, 200.0]], requires_grad=True)
    loss = mixture_cross_entropy(z, z.detach(), torch.zeros(1), torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.item() == 200
    torch.testing.assert_close(gradient, torch.tensor([[-0.5, 0.5]]))


@pytest.mark.parametrize("shape", [(64, 10), (64, 1000), (8, 5000)])
def test_float32_error_is_at_most_four_times_that_of_eager_pytorch(shape: tuple[int, int]) -> None:
    z1, z2, gate, target = problem(*shape)
    inputs = [t.requires_grad_() for t in (z1, z2, gate)]
    wide = [t.detach().double().requires_grad_() for t in inputs]

    def plain(z1: torch.Tensor, z2: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        first = F.logsigmoid(-gate)[:, None] + z1.log_softmax(1)
        second = F.logsigmoid(gate)[:, None] + z2.log_softmax(1)
        return F.nll_loss(torch.logaddexp(first, second), target)

    exact = plain(*wide)
    expected = (exact, *torch.autograd.grad(exact, wide))
    eager_loss = plain(*inputs)
    eager = (eager_loss, *torch.autograd.grad(eager_loss, inputs))
    fused_loss = mixture_cross_entropy(*inputs, target)
    fused = (fused_loss, *torch.autograd.grad(fused_loss, inputs))
    for ours, theirs, right in zip(fused, eager, expected):
        # A scalar can be right by luck; half a unit in the last place is always allowed.
        assert error_against(ours, right) <= max(4 * error_against(theirs, right), 2**-24)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_gradient_of_the_true_class_keeps_its_precision(dtype: torch.dtype) -> None:
    # p_y = 0.999: in 16 bits p_y - 1 would have no correct digit left.
    z = torch.zeros(1, 2, dtype=dtype)
    z[0, 0] = 6.9067
    z.requires_grad_()
    target = torch.tensor([0])
    (gradient,) = torch.autograd.grad(mixture_cross_entropy(z, z.detach(), z[:, 1], target), z)
    expected = 0.5 * (torch.softmax(z.detach().double(), 1)[0, 0] - 1)
    assert abs(gradient[0, 0].item() / expected.item() - 1) <= 0.005


class TestScales:
    def test_one_number_as_a_tensor_gets_the_sum_of_the_rows(self) -> None:
        z1, z2, gate, target = problem(9, 7)
        one = [torch.tensor(v, requires_grad=True) for v in (1.2, 0.5)]
        rows = [torch.full((9,), v, requires_grad=True) for v in (1.2, 0.5)]
        columns = [torch.full((9, 1), v, requires_grad=True) for v in (1.2, 0.5)]
        losses = [
            mixture_cross_entropy(z1, z2, gate, target, *s)
            for s in (one, rows, columns, (1.2, 0.5))
        ]
        for loss in losses[1:]:
            assert torch.equal(loss, losses[0])
        for loss, scales in zip(losses, (one, rows, columns)):
            loss.backward()
            for scale, expected in zip(scales, one):
                assert scale.grad is not None
                assert scale.grad.shape == scale.shape
                torch.testing.assert_close(scale.grad.sum(), expected.grad)

    @pytest.mark.parametrize(
        ("scale", "error", "message"),
        [
            (0.0, ValueError, "scale1 must be positive and finite, got 0.0"),
            (float("inf"), ValueError, "scale1 must be positive and finite, got inf"),
            ("1", TypeError, "scale1 must be a float, got str"),
            (torch.ones(3), ValueError, r"scale1 must have shape \(8,\), got \(3,\)"),
            (torch.ones(8).long(), TypeError, "scale1 must be float32, .* got int64"),
            (torch.ones(8, device="meta"), ValueError, "scale1 must be on cpu, got meta"),
        ],
    )
    def test_errors(self, scale: object, error: type[Exception], message: str) -> None:
        z1, z2, gate, target = problem(8, 5)
        with pytest.raises(error, match="^mixture_cross_entropy: " + message):
            mixture_cross_entropy(z1, z2, gate, target, scale)  # type: ignore[arg-type]

    def test_classes_in_another_dimension(self) -> None:
        z1, z2 = torch.randn(2, 4, 5, 3)
        gate, target = torch.randn(4, 3), torch.randint(5, (4, 3))
        scale = torch.tensor(1.3, requires_grad=True)
        actual = mixture_cross_entropy(z1, z2, gate, target, scale, dim=1, reduction="none")
        expected = mixture_cross_entropy(z1.mT, z2.mT, gate, target, scale, reduction="none")
        assert torch.equal(actual, expected)


class TestModule:
    def test_options_and_learned_scales(self) -> None:
        z1, z2, gate, target = problem(8, 5)
        learned = torch.nn.Parameter(torch.tensor(1.2))
        criterion = MixtureCrossEntropyLoss(
            learned, 0.5, torch.rand(5), label_smoothing=0.1, reduction="sum"
        )
        assert [name for name, _ in criterion.named_parameters()] == ["scale1"]
        assert "scale2=0.5" in repr(criterion)
        loss = criterion(z1, z2, gate, target)
        expected = mixture_cross_entropy(
            z1,
            z2,
            gate,
            target,
            1.2,
            0.5,
            weight=criterion.weight,
            label_smoothing=0.1,
            reduction="sum",
        )
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert learned.grad is not None

    @pytest.mark.parametrize("option", [{"temperature": 2.0}, {"softcap": 1.0}])
    def test_options_that_there_are_not(self, option: dict[str, float]) -> None:
        with pytest.raises(TypeError, match=f"has no option {next(iter(option))}"):
            MixtureCrossEntropyLoss(**option)
        with pytest.raises(ValueError, match="scale1 must be positive"):
            MixtureCrossEntropyLoss(-1.0)
