"""Derivatives of gated_cross_entropy, and the systems that trace it."""

from __future__ import annotations

import itertools

import pytest
import torch

from robustcore import reference
from robustcore.losses import gated_cross_entropy, gated_cross_entropy_scores
from robustcore.testing import assert_matches
from robustcore.testing.samples_losses.gated_cross_entropy import case, samples

CASE = case()
SAMPLES = {s.name: s for s in samples() if s.differentiable}
OPS = torch.ops.robustcore


def leaves(rows: int = 4, classes: int = 5) -> tuple[torch.Tensor, ...]:
    make = {"dtype": torch.float64, "requires_grad": True}
    return (
        torch.randn(rows, classes, **make),
        torch.randn(rows, classes, **make),
        torch.randn(rows, **make),
        torch.rand(rows, **make),
    )


TARGET = torch.tensor([0, 4, -100, 2])
WEIGHT = torch.tensor([1.0, 0.5, 2.0, 0.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_any_combination_of_inputs_that_require_grad(reduction: str) -> None:
    everything = [t.detach() for t in leaves()]
    for wanted in itertools.product([False, True], repeat=4):
        inputs = [t.clone().requires_grad_(want) for t, want in zip(everything, wanted)]
        f, e, s, v = inputs
        loss = gated_cross_entropy(f, e, s, TARGET, sample_weight=v, reduction=reduction).sum()
        assert loss.requires_grad == any(wanted)
        if not any(wanted):
            continue
        loss.backward()
        full = [t.clone().requires_grad_() for t in everything]
        reference.losses.gated_cross_entropy(
            *full[:3], TARGET, sample_weight=full[3], reduction=reduction
        ).sum().backward()
        for tensor, right, want in zip(inputs, full, wanted):
            if want:
                torch.testing.assert_close(tensor.grad, right.grad)
            else:
                assert tensor.grad is None


def test_backward_twice_gives_the_same_gradients() -> None:
    f, e, s, _ = leaves()
    loss = gated_cross_entropy(f, e, s, TARGET)
    once = torch.autograd.grad(loss, (f, e, s), torch.tensor(3.0).double(), retain_graph=True)
    kept = [t.clone() for t in once]
    twice = torch.autograd.grad(loss, (f, e, s), torch.tensor(3.0).double())
    for first, copy, second in zip(once, kept, twice):
        torch.testing.assert_close(first, second)
        assert torch.equal(first, copy), "a later backward pass changed gradients handed out before"


@pytest.mark.parametrize("factor", [0.0, -2.0, 65536.0])
def test_loss_scaling(factor: float) -> None:
    f, e, s, _ = (t.detach().float().requires_grad_() for t in leaves())
    loss = gated_cross_entropy(f, e, s, TARGET)
    scaled = torch.autograd.grad(loss * factor, (f, e, s))
    exact = reference.losses.gated_cross_entropy(f, e, s, TARGET)
    expected = torch.autograd.grad(exact * factor, (f, e, s))
    for a, b in zip(scaled, expected):
        kept = TARGET != -100
        assert_matches(a[kept], b[kept], rtol=1e-5, atol=1e-7 * abs(factor))
        assert (a[~kept] == 0).all()


def test_float16_gradients_survive_a_loss_scale() -> None:
    """Divided by the batch size before the scale is applied they would be below float16's range."""
    rows = 4096
    f = torch.zeros(rows, 1000, dtype=torch.float16, requires_grad=True)
    y = torch.zeros(rows, dtype=torch.int64)
    loss = gated_cross_entropy(f, torch.zeros_like(f), torch.zeros(rows), y)
    (gradient,) = torch.autograd.grad(loss * 2.0**14, f)
    expected = 0.5 * 2.0**14 / rows / 1000
    torch.testing.assert_close(gradient[0, 1].float().item(), expected, rtol=1e-3, atol=0)


def test_third_derivatives_exist() -> None:
    f, e, s, _ = leaves()
    loss = gated_cross_entropy(f, e, s, TARGET, reduction="sum")
    exact = reference.losses.gated_cross_entropy(f, e, s, TARGET, reduction="sum")
    for _ in range(3):
        (loss,) = torch.autograd.grad(loss, s, create_graph=True)
        (exact,) = torch.autograd.grad(exact, s, create_graph=True)
        torch.testing.assert_close(loss, exact)
        loss, exact = loss.sum(), exact.sum()


class TestTransforms:
    @pytest.mark.parametrize("reduction", ["none", "mean"])
    def test_vmap_and_per_sample_gradients(self, reduction: str) -> None:
        f, e, s, _ = (torch.stack([t.detach()] * 3) * torch.tensor(1.5) for t in leaves())
        f = f + torch.arange(3.0).reshape(3, 1, 1)

        def total(function):
            return lambda f, e, s: function(f, e, s, TARGET, reduction=reduction).sum()

        both = [total(gated_cross_entropy), total(reference.losses.gated_cross_entropy)]
        for transform in (torch.func.vmap, lambda g: torch.func.vmap(torch.func.grad(g))):
            actual, expected = (transform(function)(f, e, s) for function in both)
            torch.testing.assert_close(actual, expected)

    @pytest.mark.parametrize("reduction", ["none", "mean"])
    def test_compile_in_one_graph(self, reduction: str) -> None:
        f, e, s, v = (t.detach().float().requires_grad_() for t in leaves())

        def loss(f, e, s, v):
            value = gated_cross_entropy(
                f, e, s, TARGET, sample_weight=v, label_smoothing=0.1, reduction=reduction
            )
            return (2 * value).sum()

        compiled = torch.compile(loss, fullgraph=True)
        a, b = loss(f, e, s, v), compiled(f, e, s, v)
        torch.testing.assert_close(a, b)
        for x, y in zip(torch.autograd.grad(a, (f, e, s, v)), torch.autograd.grad(b, (f, e, s, v))):
            torch.testing.assert_close(x, y)

    def test_compile_with_dynamic_shapes_and_scores(self) -> None:
        @torch.compile(fullgraph=True, dynamic=True)
        def scores(f, e, s, y):
            return gated_cross_entropy_scores(f, e, s, y)

        for rows in (3, 8):
            f, e, s = torch.randn(rows, 6), torch.randn(rows, 6), torch.randn(rows, 1)
            y = torch.randint(6, (rows,))
            for a, b in zip(scores(f, e, s, y), gated_cross_entropy_scores(f, e, s, y)):
                torch.testing.assert_close(a, b)

    def test_export(self) -> None:
        class Model(torch.nn.Module):
            def forward(self, f, e, s, y):
                return gated_cross_entropy(f, e, s, y)

        f, e, s, _ = (t.detach() for t in leaves())
        program = torch.export.export(Model(), (f, e, s, TARGET))
        torch.testing.assert_close(
            program.module()(f, e, s, TARGET), gated_cross_entropy(f, e, s, TARGET)
        )

    def test_autocast_takes_16_bit_logits_and_returns_float32(self) -> None:
        layer = torch.nn.Linear(6, 5)
        gate = torch.randn(4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            f = layer(torch.randn(4, 6))
            assert f.dtype == torch.bfloat16
            loss = gated_cross_entropy(f, torch.randn(4, 5), gate, TARGET)
        assert loss.dtype == torch.float32
        loss.backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.isfinite().all()


class TestRawOperators:
    def test_opcheck_of_the_scores(self) -> None:
        f, e, s, v = (t.detach().float() for t in leaves())
        # An ignored row's score is NaN, and opcheck takes NaN for a difference.
        arguments = (f, e, s, None, None, TARGET.clamp(min=0), WEIGHT.float(), v, [], -100)
        torch.library.opcheck(
            OPS.gated_cross_entropy_scores.default, (*arguments, 0.1, 1.0, 0.0, 0.0, 1)
        )

    def test_scaling_in_place_is_seen_by_autograd(self) -> None:
        torch.library.opcheck(OPS.scale_.default, ([torch.rand(3)], torch.tensor(2.0)))
        leaf = torch.ones(3, requires_grad=True)
        with pytest.raises(RuntimeError, match="must not require grad"):
            OPS.scale_([leaf * 1], torch.tensor(2.0))
        constant = torch.ones(3)
        product = (leaf * constant).sum()
        OPS.scale_([constant], torch.tensor(2.0))
        assert constant.tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()
