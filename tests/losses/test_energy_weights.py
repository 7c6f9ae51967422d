"""energy_weights, and the loss that is made of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import strategies
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import robustcore
from robustcore import reference
from robustcore.losses import WEAT, energy_weighted_loss, energy_weights
from robustcore.testing import assert_matches, check_sample
from robustcore.testing.samples_losses import energy_weighted_loss as loss_samples
from robustcore.testing.samples_losses import energy_weights as weight_samples


@pytest.mark.parametrize("module", [weight_samples, loss_samples])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_samples_match_the_float64_reference(module: Any, dtype: torch.dtype) -> None:
    for sample in module.samples():
        for finding in check_sample(module.case(), sample, "cpu", dtype):
            assert finding.comparison.passed, f"{sample.name}: {finding}"


@given(
    st.data(),
    st.sampled_from([0, 1, 5, 33]),
    strategies.positive_edge_sizes(),
    strategies.floating_dtypes,
    st.sampled_from([1e-3, 1.0, 100.0, 1e4]),
)
def test_random_logits_match_the_float64_reference(
    data: st.DataObject, rows: int, classes: int, dtype: torch.dtype, size: float
) -> None:
    generator = strategies.seeded(data.draw(st.integers(0, 2**20)))
    logits = data.draw(
        strategies.strided((size * torch.randn(rows, classes, generator=generator)).to(dtype))
    )
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    weights = energy_weights(logits)
    assert weights.dtype == compute
    expected = reference.losses.energy_weights(logits.double())
    assert_matches(weights, expected, rtol=32 * torch.finfo(compute).eps)


class TestWeights:
    def test_the_formula_where_it_does_not_overflow(self) -> None:
        logits = torch.randn(50, 10)
        energy = -logits.logsumexp(1)
        torch.testing.assert_close(
            energy_weights(logits), 1 / torch.log(1 + torch.exp(energy.abs()))
        )

    def test_beyond_the_range_of_the_exponential(self) -> None:
        logits = torch.tensor([[100.0], [-1000.0], [1e30], [0.0]])
        expected = torch.tensor([0.01, 0.001, 1e-30, 1 / math.log(2)])
        torch.testing.assert_close(energy_weights(logits), expected)

    def test_rows_that_are_not_finite(self) -> None:
        logits = torch.zeros(5, 3)
        logits[0, 1], logits[1, 2], logits[2] = math.nan, math.inf, -math.inf
        logits[3, 0] = -math.inf
        weights = energy_weights(logits)
        assert weights[0].isnan()
        assert weights[1:3].tolist() == [0, 0]
        torch.testing.assert_close(weights[3:], reference.losses.energy_weights(logits[3:]))

    def test_they_are_constants(self) -> None:
        logits = torch.randn(4, 5, requires_grad=True)
        assert not energy_weights(logits).requires_grad
        with robustcore.use_reference():
            assert not energy_weights(logits).requires_grad
        (weights,) = (torch.func.vmap(energy_weights)(logits.detach()[None]),)
        assert torch.equal(weights[0], energy_weights(logits))
        gradient = torch.func.grad(lambda z: (energy_weights(z)[:, None] * z).sum())(
            logits.detach()
        )
        torch.testing.assert_close(gradient, energy_weights(logits)[:, None].expand(4, 5))

    def test_any_dimension_and_empty_input(self) -> None:
        logits = torch.randn(2, 5, 3)
        expected = reference.losses.energy_weights(logits, dim=1)
        torch.testing.assert_close(energy_weights(logits, dim=1), expected)
        assert energy_weights(torch.empty(0, 3)).shape == (0,)
        assert energy_weights(torch.randn(5)).shape == ()

    def test_same_bits_for_any_number_of_threads(self, threads: Any) -> None:
        logits = torch.randn(700, 130)
        with threads(1):
            single = energy_weights(logits)
        for count in (2, 3):
            with threads(count):
                assert torch.equal(energy_weights(logits), single)

    def test_tracing(self) -> None:
        logits = torch.randn(4, 5, requires_grad=True)
        compiled = torch.compile(energy_weights, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(logits), energy_weights(logits))
        assert energy_weights(logits.to("meta")).shape == (4,)
        torch.library.opcheck(torch.ops.robustcore.energy_weights.default, (logits.detach(),))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"logits": [1.0]}, TypeError, "logits must be a torch.Tensor, got list"),
            ({"logits": torch.ones(2, 2).long()}, TypeError, "logits must be float32, .*int64"),
            ({"dim": 2}, ValueError, r"dim must be in \[-2, 2\)"),
            ({"dim": 1.0}, TypeError, "dim must be an int, got float"),
            ({"logits": torch.ones(2, 0)}, ValueError, "at least one class, got shape"),
        ],
    )
    def test_errors(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match="^energy_weights: .*" + message):
            energy_weights(**({"logits": torch.ones(2, 2)} | change))


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    natural, adversarial = (3 * torch.randn(6, 5, requires_grad=True) for _ in range(2))
    return natural, adversarial, torch.randint(5, (6,))


class TestLoss:
    @pytest.mark.parametrize(("variant", "beta"), [("adversarial", 7.0), ("natural", 6.0)])
    def test_the_published_loss(self, variant: str, beta: float) -> None:
        natural, adversarial, target = problem()
        loss = energy_weighted_loss(natural, adversarial, target, variant=variant)
        weights = energy_weights(natural)
        labelled = adversarial if variant == "adversarial" else natural
        cross_entropy = F.cross_entropy(labelled, target, reduction="none")
        log_p, log_q = natural.log_softmax(1), adversarial.log_softmax(1)
        divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
        expected = (weights * (cross_entropy + beta * divergence)).sum() / 6
        torch.testing.assert_close(loss, expected)
        for a, b in zip(
            torch.autograd.grad(loss, (natural, adversarial)),
            torch.autograd.grad(expected, (natural, adversarial)),
        ):
            torch.testing.assert_close(a, b)

    def test_second_derivatives(self) -> None:
        natural, adversarial, target = (
            t.detach().double() if t.is_floating_point() else t for t in problem()
        )

        def nested(function: Any) -> torch.Tensor:
            inner = torch.func.grad(lambda z: function(natural, z, target))
            return torch.func.grad(lambda z: inner(z).square().sum())(adversarial)

        torch.testing.assert_close(
            nested(energy_weighted_loss), nested(reference.losses.energy_weighted_loss)
        )

    def test_compile_in_one_graph(self) -> None:
        natural, adversarial, target = problem()
        compiled = torch.compile(energy_weighted_loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(
            compiled(natural, adversarial, target),
            energy_weighted_loss(natural, adversarial, target),
        )

    def test_an_ignored_row_may_hold_anything(self) -> None:
        natural, adversarial, target = (t.detach().clone() for t in problem())
        target[2] = -100
        expected = energy_weighted_loss(natural, adversarial, target)
        natural[2], adversarial[2] = math.nan, math.inf
        leaves = (natural.requires_grad_(), adversarial.requires_grad_())
        loss = energy_weighted_loss(*leaves, target)
        torch.testing.assert_close(loss, expected)
        for gradient in torch.autograd.grad(loss, leaves):
            assert (gradient[2] == 0).all()
            assert gradient.isfinite().all()

    def test_errors(self) -> None:
        natural, adversarial, target = problem()
        for change, error, message in (
            ({"variant": "other"}, ValueError, "variant must be one of 'adversarial', 'natural'"),
            ({"variant": 1}, TypeError, "variant must be a str, got int"),
            ({"beta": -1.0}, ValueError, "beta must be finite and not negative, got -1.0"),
            ({"beta": "1"}, TypeError, "beta must be a float, got str"),
            ({"natural_logits": None}, TypeError, "natural_logits must be a torch.Tensor"),
            ({"target": 1}, TypeError, "target must be a torch.Tensor, got int"),
            ({"natural_logits": natural.long()}, TypeError, "natural_logits must be float32"),
            ({"target": target.to("meta")}, ValueError, "target must be on cpu, got meta"),
            ({"sample_weight": torch.tensor(1.0)}, ValueError, "sample_weight must have shape"),
            ({"sample_weight": target}, TypeError, "sample_weight must be float32"),
            ({"reduction": "Mean"}, ValueError, "reduction must be one of 'none', 'mean', 'sum'"),
            ({"dim": 1.0}, TypeError, "dim must be an int, got float"),
        ):
            arguments = {
                "natural_logits": natural,
                "adversarial_logits": adversarial,
                "target": target,
            }
            with pytest.raises(error, match=r"^energy_weighted_loss: " + message):
                energy_weighted_loss(**(arguments | change))
        with pytest.raises(TypeError, match="WEAT: has no option softcap"):
            WEAT(softcap=1.0)
        with pytest.raises(ValueError, match=r"^WEAT: reduction must be one of"):
            WEAT(reduction="Mean")
        with pytest.raises(TypeError, match=r"^WEAT: ignore_index must be an int, got float"):
            WEAT(ignore_index=1.5)

    def test_the_module(self) -> None:
        natural, adversarial, target = problem()
        criterion = WEAT("natural", reduction="sum")
        assert criterion.beta == 6
        expected = energy_weighted_loss(
            natural, adversarial, target, variant="natural", reduction="sum"
        )
        assert torch.equal(criterion(natural, adversarial, target), expected)
        assert "beta=6.0" in repr(criterion)
