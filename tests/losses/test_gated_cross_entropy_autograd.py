"""Derivatives of gated_cross_entropy, and the systems that trace it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

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


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_numerical_derivatives(check, label_smoothing: float, reduction: str) -> None:
    def loss(f, e, s, v):
        return gated_cross_entropy(
            f,
            e,
            s,
            TARGET,
            weight=WEIGHT,
            sample_weight=v,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )

    assert check(loss, leaves())


@pytest.mark.parametrize("dtype", list(CASE.rtol), ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_gradients_match_the_float64_reference(name: str, dtype: torch.dtype) -> None:
    sample = SAMPLES[name].to(dtype=dtype).requires_grad(CASE.differentiable)
    loss = gated_cross_entropy(*sample.args, **sample.kwargs)
    # A factor other than one, so that the scaling of ready-made gradients is used too.
    cotangent = torch.full_like(loss, 1.5)
    wide = sample.float64().requires_grad(CASE.differentiable)
    exact = reference.losses.gated_cross_entropy(*wide.args, **wide.kwargs)
    actual = torch.autograd.grad(loss, sample.leaves().values(), cotangent)
    expected = torch.autograd.grad(exact, wide.leaves().values(), cotangent.double())
    rtol = max(CASE.rtol[dtype], 2 * torch.finfo(dtype).eps)
    for key, a, b in zip(sample.leaves(), actual, expected):
        scale = b.abs().nan_to_num().max().item() if b.numel() else 0.0
        tiny = torch.finfo(dtype).smallest_normal
        assert_matches(a, b, rtol=rtol, atol=rtol * scale + tiny, name=f"{name}: {key}")


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
    def test_func_grad_and_its_grad(self) -> None:
        f, e, s, _ = (t.detach() for t in leaves())

        def loss(f):
            return gated_cross_entropy(f, e, s, TARGET)

        def exact(f):
            return reference.losses.gated_cross_entropy(f, e, s, TARGET)

        torch.testing.assert_close(torch.func.grad(loss)(f), torch.func.grad(exact)(f))

        def nested(function):
            return torch.func.grad(lambda f: torch.func.grad(function)(f).square().sum())

        torch.testing.assert_close(nested(loss)(f), nested(exact)(f))

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
    def test_batched_cotangents(self, reduction: str) -> None:
        f, e, s, _ = leaves()
        results = []
        for function in (gated_cross_entropy, reference.losses.gated_cross_entropy):
            loss = function(f, e, s, TARGET, reduction=reduction)
            cotangents = torch.ones(3, *loss.shape, dtype=loss.dtype)
            results.append(torch.autograd.grad(loss, (f, e, s), cotangents, is_grads_batched=True))
        for a, b in zip(*results):
            torch.testing.assert_close(a, b)

    def test_forward_mode_is_refused(self) -> None:
        f, e, s, _ = (t.detach() for t in leaves())
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(f, torch.ones_like(f))
            with pytest.raises(NotImplementedError, match="forward-mode"):
                gated_cross_entropy(dual, e, s, TARGET)
            assert gated_cross_entropy(f, e, s, TARGET).isfinite()

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

    def test_meta_tensors(self) -> None:
        f = torch.empty(4, 5, device="meta")
        loss = gated_cross_entropy(
            f, f, f.new_empty(4), torch.empty(4, dtype=torch.int64, device="meta")
        )
        assert loss.shape == ()
        assert loss.device.type == "meta"
        f.requires_grad_()
        gated_cross_entropy(
            f, f.detach(), f.new_empty(4), torch.empty(4, dtype=torch.int64, device="meta")
        ).backward()
        assert f.grad is not None


class TestRawOperators:
    @pytest.mark.parametrize("grad", [False, True])
    @pytest.mark.parametrize("layout", ["contiguous", "strided"])
    @pytest.mark.parametrize("reduction", [0, 1])
    def test_opcheck(self, reduction: int, layout: str, grad: bool) -> None:
        f, e, s, v = (t.detach().float() for t in leaves())
        if layout == "strided":
            f, e = f.t().contiguous().t(), torch.cat([e, e], 1)[:, ::2]
            s, v = torch.stack([s, s], 1)[:, 0], torch.stack([v, v], 1)[:, 1]
        f, e, s, v = (t.requires_grad_(grad) for t in (f, e, s, v))
        forward = (f, e, s, TARGET, WEIGHT.float(), v, -100, 0.1, reduction)
        torch.library.opcheck(OPS.gated_cross_entropy.default, forward)
        # An ignored row's score is NaN, and opcheck takes NaN for a difference.
        present = TARGET.clamp(min=0)
        torch.library.opcheck(
            OPS.gated_cross_entropy_scores.default, (*forward[:3], present, *forward[4:])
        )
        with torch.no_grad():
            _, rows, denominator = OPS.gated_cross_entropy(*forward)
        cotangent = torch.rand(4 if reduction == 0 else (), requires_grad=grad)
        backward = (cotangent, *forward[:6], rows, denominator, *forward[6:], True, True)
        torch.library.opcheck(OPS.gated_cross_entropy_backward.default, backward)
        if reduction and not grad:
            torch.library.opcheck(
                OPS.gated_cross_entropy_with_gradients.default, (*forward, True, False)
            )
            scaled = [f.contiguous().clone(), e.contiguous().clone()]
            torch.library.opcheck(OPS.scale_.default, (scaled, torch.tensor(2.0)))

    def test_a_raw_call_is_differentiable(self) -> None:
        f, e, s, _ = leaves()
        loss = OPS.gated_cross_entropy(f, e, s, TARGET, None, None, -100, 0.0, 1)[0]
        expected = reference.losses.gated_cross_entropy(f, e, s, TARGET)
        for a, b in zip(
            torch.autograd.grad(loss, (f, e, s)), torch.autograd.grad(expected, (f, e, s))
        ):
            torch.testing.assert_close(a, b)

    def test_the_operator_that_returns_gradients_has_none(self) -> None:
        f, e, s, _ = leaves()
        loss = OPS.gated_cross_entropy_with_gradients(
            f, e, s, TARGET, None, None, -100, 0.0, 1, True, True
        )[0]
        with pytest.raises(RuntimeError, match="returns gradients and has none itself"):
            loss.backward()

    def test_a_class_weight_that_requires_grad_is_refused_not_dropped(self) -> None:
        f, e, s, _ = leaves()
        weight = WEIGHT.clone().requires_grad_()
        loss = OPS.gated_cross_entropy(f, e, s, TARGET, weight, None, -100, 0.0, 1)[0]
        with pytest.raises(RuntimeError, match="weight has no derivative"):
            loss.backward()

    def test_scaling_in_place_is_seen_by_autograd(self) -> None:
        leaf = torch.ones(3, requires_grad=True)
        with pytest.raises(RuntimeError, match="must not require grad"):
            OPS.scale_([leaf * 1], torch.tensor(2.0))
        constant = torch.ones(3)
        product = (leaf * constant).sum()
        OPS.scale_([constant], torch.tensor(2.0))
        assert constant.tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()

    def test_wrong_raw_arguments_are_refused(self) -> None:
        f, e, s, _ = (t.detach() for t in leaves())
        good = [f, e, s, TARGET, None, None, -100, 0.0, 1]
        for position, bad, message in (
            (1, e[:, :3], "noise must have the shape"),
            (1, e.float(), "noise has the wrong dtype"),
            (2, s[:2], "gate must have 4 elements"),
            (3, TARGET.int(), "target has the wrong dtype"),
            (4, WEIGHT[:2], "weight must have 5 elements"),
            (8, 7, "reduction must be 0, 1 or 2"),
        ):
            arguments = list(good)
            arguments[position] = bad
            with pytest.raises(RuntimeError, match=message):
                OPS.gated_cross_entropy(*arguments)
