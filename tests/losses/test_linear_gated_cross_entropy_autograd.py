"""Derivatives of linear_gated_cross_entropy, and the systems that trace it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import forward_ad, gradcheck
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from robustcore import reference
from robustcore.losses import linear_gated_cross_entropy

OPS = torch.ops.robustcore
TARGET = torch.tensor([0, 4, -100, 2])
WEIGHT = torch.tensor([1.0, 0.5, 2.0, 0.0, 3.0], dtype=torch.float64)
exact = reference.losses.linear_gated_cross_entropy


def leaves(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """The seven differentiable inputs in order, then sample weights."""
    make = {"dtype": dtype, "requires_grad": True}
    shapes = ((4, 3), (5, 3), (5,), (4, 2), (5, 2), (5,), (4,))
    return [*(torch.randn(shape, **make) for shape in shapes), torch.rand(4, **make)]


def raw_arguments(tensors, reduction: int, chunk_rows: int = 2) -> tuple:
    *inputs, sample_weight = tensors
    weight = WEIGHT.to(inputs[0].dtype)
    options = (-100, 0.1, 1.5, 8.0, 0.01, reduction, chunk_rows)
    return (*inputs, TARGET, weight, sample_weight, *options)


@pytest.mark.parametrize("chunk_rows", [None, 1, 3])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_numerical_derivatives(reduction: str, chunk_rows: int | None) -> None:
    def loss(*inputs):
        *inputs, v = inputs
        return linear_gated_cross_entropy(
            *inputs,
            TARGET,
            class_weight=WEIGHT,
            sample_weight=v,
            label_smoothing=0.2,
            reduction=reduction,
            chunk_rows=chunk_rows,
        )

    assert gradcheck(loss, leaves(), fast_mode=True)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_any_combination_of_inputs_that_require_grad(reduction: str) -> None:
    everything = [t.detach() for t in leaves()]

    def result(function, inputs):
        *inputs, v = inputs
        return function(*inputs, TARGET, sample_weight=v, reduction=reduction).sum()

    full = [t.clone().requires_grad_() for t in everything]
    expected = torch.autograd.grad(result(exact, full), full)
    for wanted in itertools.product([False, True], repeat=8):
        inputs = [t.clone().requires_grad_(want) for t, want in zip(everything, wanted)]
        loss = result(linear_gated_cross_entropy, inputs)
        assert loss.requires_grad == any(wanted)
        if any(wanted):
            loss.backward()
        for tensor, right, want in zip(inputs, expected, wanted):
            if want:
                torch.testing.assert_close(tensor.grad, right)
            else:
                assert tensor.grad is None


def test_products_that_nobody_needs_are_not_computed() -> None:
    def products(*places: int) -> int:
        inputs = [t.detach().requires_grad_(i in places) for i, t in enumerate(leaves())]
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            loss = linear_gated_cross_entropy(*inputs[:7], TARGET)
            if places:
                torch.autograd.grad(loss, [inputs[i] for i in places])
        names = ("aten::mm", "aten::addmm", "aten::addmm_")
        return sum(event.name in names for event in profiled.events())

    assert products() == 2
    assert products(6) == products(2, 5) == 2
    assert products(0) == products(1) == products(3) == products(4) == 3
    assert products(3, 4) == 4
    assert products(0, 1, 2, 3, 4, 5, 6) == 6


def test_backward_twice_gives_the_same_gradients() -> None:
    inputs = leaves()[:7]
    loss = linear_gated_cross_entropy(*inputs, TARGET, chunk_rows=3)
    factor = torch.tensor(3.0).double()
    once = torch.autograd.grad(loss, inputs, factor, retain_graph=True)
    kept = [t.clone() for t in once]
    twice = torch.autograd.grad(loss, inputs, factor)
    for first, copy, second in zip(once, kept, twice):
        assert torch.equal(first, second)
        assert torch.equal(first, copy), "a later backward pass changed gradients handed out before"


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_second_derivatives_are_refused(reduction: str) -> None:
    inputs = leaves()[:7]
    loss = linear_gated_cross_entropy(*inputs, TARGET, reduction=reduction).sum()
    gradients = torch.autograd.grad(loss, inputs, create_graph=True)
    expected = torch.autograd.grad(exact(*inputs, TARGET, reduction=reduction).sum(), inputs)
    for a, b in zip(gradients, expected):
        torch.testing.assert_close(a, b)
    with pytest.raises(NotImplementedError, match="second derivatives are not offered"):
        gradients[0].sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_gradients_survive_a_loss_scale(dtype: torch.dtype) -> None:
    """Divided by the batch size before the scale is applied they would be below float16's range."""
    rows, classes, scale = 4096, 1000, 2.0**14
    weight = torch.zeros(classes, 1, dtype=dtype, requires_grad=True)
    x = torch.ones(rows, 1, dtype=dtype, requires_grad=True)
    zeros = torch.zeros(classes, 1, dtype=dtype)
    loss = linear_gated_cross_entropy(
        x,
        weight,
        None,
        x.detach(),
        zeros,
        None,
        torch.zeros(rows),
        torch.zeros(rows, dtype=torch.int64),
        chunk_rows=1000,
    )
    (gradient,) = torch.autograd.grad(loss * scale, weight)
    torch.testing.assert_close(
        gradient[1, 0].float().item(), 0.5 * scale / classes, rtol=4e-3, atol=0
    )


def test_activation_checkpointing() -> None:
    inputs = leaves()[:7]

    def loss(*inputs):
        return linear_gated_cross_entropy(*inputs, TARGET, chunk_rows=3)

    kept = torch.autograd.grad(loss(*inputs), inputs)
    again = torch.autograd.grad(checkpoint(loss, *inputs, use_reentrant=False), inputs)
    for a, b in zip(kept, again):
        assert torch.equal(a, b)


class TestTransforms:
    def test_func_grad(self) -> None:
        inputs = [t.detach() for t in leaves()[:7]]
        argnums = tuple(range(7))
        actual = torch.func.grad(linear_gated_cross_entropy, argnums)(*inputs, TARGET)
        expected = torch.func.grad(exact, argnums)(*inputs, TARGET)
        for a, b in zip(actual, expected):
            torch.testing.assert_close(a, b)

    @pytest.mark.parametrize("reduction", ["none", "mean"])
    def test_vmap_and_per_sample_gradients(self, reduction: str) -> None:
        x, *rest = (t.detach() for t in leaves()[:7])
        batch = torch.stack([x, 2 * x, 3 * x])

        def total(function):
            return lambda x: function(x, *rest, TARGET, reduction=reduction).sum()

        for transform in (torch.func.vmap, lambda g: torch.func.vmap(torch.func.grad(g))):
            torch.testing.assert_close(
                transform(total(linear_gated_cross_entropy))(batch), transform(total(exact))(batch)
            )

    @pytest.mark.parametrize("reduction", ["none", "mean"])
    def test_batched_cotangents(self, reduction: str) -> None:
        inputs = leaves()[:7]
        results = []
        for function in (linear_gated_cross_entropy, exact):
            loss = function(*inputs, TARGET, reduction=reduction)
            cotangents = torch.ones(3, *loss.shape, dtype=loss.dtype)
            results.append(torch.autograd.grad(loss, inputs, cotangents, is_grads_batched=True))
        for a, b in zip(*results):
            torch.testing.assert_close(a, b)

    def test_forward_mode_is_refused(self) -> None:
        x, *rest = (t.detach() for t in leaves()[:7])
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            with pytest.raises(NotImplementedError, match="forward-mode"):
                linear_gated_cross_entropy(dual, *rest, TARGET)

    @pytest.mark.parametrize("reduction", ["none", "mean"])
    def test_compile_in_one_graph(self, reduction: str) -> None:
        inputs = leaves(torch.float32)

        def loss(*inputs):
            *inputs, v = inputs
            value = linear_gated_cross_entropy(
                *inputs,
                TARGET,
                sample_weight=v,
                label_smoothing=0.1,
                reduction=reduction,
                chunk_rows=3,
            )
            return (2 * value).sum()

        compiled = torch.compile(loss, fullgraph=True)
        a, b = loss(*inputs), compiled(*inputs)
        torch.testing.assert_close(a, b)
        for x, y in zip(torch.autograd.grad(a, inputs), torch.autograd.grad(b, inputs)):
            torch.testing.assert_close(x, y)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*inputs), a)

    def test_compile_with_class_probabilities(self) -> None:
        inputs = leaves(torch.float32)[:7]
        target = torch.rand(4, 5)

        def loss(*inputs):
            return linear_gated_cross_entropy(
                *inputs, target, temperature=2.0, softcap=9.0, lse_square_scale=0.1, chunk_rows=3
            )

        a, b = loss(*inputs), torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs)
        torch.testing.assert_close(a, b)
        for x, y in zip(torch.autograd.grad(a, inputs), torch.autograd.grad(b, inputs)):
            torch.testing.assert_close(x, y)

    def test_compile_with_dynamic_shapes(self) -> None:
        @torch.compile(fullgraph=True, dynamic=True)
        def loss(*inputs):
            return linear_gated_cross_entropy(*inputs)

        _, weight, bias, _, noise_weight, noise_bias, _ = leaves(torch.float32)[:7]
        for rows in (3, 8):
            x, noise_x = torch.randn(rows, 3), torch.randn(rows, 2)
            y = torch.randint(5, (rows,))
            arguments = (x, weight, bias, noise_x, noise_weight, noise_bias, torch.randn(rows), y)
            torch.testing.assert_close(loss(*arguments), linear_gated_cross_entropy(*arguments))
            (a,) = torch.autograd.grad(loss(*arguments), weight)
            (b,) = torch.autograd.grad(linear_gated_cross_entropy(*arguments), weight)
            torch.testing.assert_close(a, b)

    def test_export(self) -> None:
        class Model(torch.nn.Module):
            def forward(self, *inputs):
                return linear_gated_cross_entropy(*inputs)

        inputs = (*(t.detach() for t in leaves()[:7]), TARGET)
        program = torch.export.export(Model(), inputs)
        torch.testing.assert_close(program.module()(*inputs), linear_gated_cross_entropy(*inputs))

    @pytest.mark.parametrize("reduction", ["none", "mean"])
    def test_autocast_multiplies_in_16_bits_and_returns_float32(self, reduction: str) -> None:
        inputs = leaves(torch.float32)[:7]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = linear_gated_cross_entropy(*inputs, TARGET, reduction=reduction, chunk_rows=3)
            wide = linear_gated_cross_entropy(
                *(t.detach().double() for t in inputs), TARGET, reduction=reduction
            )
        rounded = [t.detach().bfloat16().requires_grad_() for t in inputs[:6]]
        gate = inputs[6].detach().requires_grad_()
        expected = linear_gated_cross_entropy(
            *rounded, gate, TARGET, reduction=reduction, chunk_rows=3
        )
        assert loss.dtype == torch.float32
        assert wide.dtype == torch.float64
        torch.testing.assert_close(loss.to(torch.bfloat16), expected, rtol=2**-7, atol=0)
        gradients = torch.autograd.grad(loss.sum(), inputs)
        wanted = torch.autograd.grad(expected.sum(), [*rounded, gate])
        for a, b in zip(gradients, wanted):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a, b.float())

    def test_meta_tensors(self) -> None:
        inputs = [t.detach().to("meta").requires_grad_() for t in leaves(torch.float32)[:7]]
        loss = linear_gated_cross_entropy(*inputs, TARGET.to("meta"))
        assert loss.shape == ()
        loss.backward()
        assert all(t.grad is not None and t.grad.shape == t.shape for t in inputs)


class TestRawOperators:
    @pytest.mark.parametrize("grad", [False, True])
    @pytest.mark.parametrize("layout", ["contiguous", "strided"])
    @pytest.mark.parametrize("reduction", [0, 1])
    def test_opcheck(self, reduction: int, layout: str, grad: bool) -> None:
        tensors = [t.detach().float() for t in leaves()]
        if layout == "strided":
            tensors = [
                t.t().contiguous().t() if t.dim() == 2 else torch.stack([t, t], 1)[:, 1]
                for t in tensors
            ]
        forward = raw_arguments([t.requires_grad_(grad) for t in tensors], reduction)
        torch.library.opcheck(OPS.linear_gated_cross_entropy.default, forward)
        needs = [True] * 8 if grad else [True, False] * 4
        cotangent = torch.rand(4 if reduction == 0 else (), requires_grad=grad)
        if not grad:  # its derivative is an error
            torch.library.opcheck(
                OPS.linear_gated_cross_entropy_backward.default, (cotangent, *forward, needs)
            )
        if reduction:
            torch.library.opcheck(
                OPS.linear_gated_cross_entropy_with_gradients.default, (*forward, needs)
            )

    def test_opcheck_of_class_probabilities(self) -> None:
        arguments = list(raw_arguments([t.float() for t in leaves()], 0))
        arguments[7] = torch.rand(4, 5)
        arguments = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments]
        torch.library.opcheck(OPS.linear_gated_cross_entropy.default, tuple(arguments))
        torch.library.opcheck(
            OPS.linear_gated_cross_entropy_backward.default,
            (torch.rand(4), *arguments, [True] * 8),
        )

    @pytest.mark.parametrize("reduction", [0, 1, 2])
    def test_raw_calls_are_differentiable(self, reduction: int) -> None:
        tensors = leaves()
        arguments = raw_arguments(tensors, reduction)
        expected = exact(
            *tensors[:7],
            TARGET,
            class_weight=WEIGHT,
            sample_weight=tensors[7],
            label_smoothing=0.1,
            temperature=1.5,
            softcap=8.0,
            lse_square_scale=0.01,
            reduction=("none", "mean", "sum")[reduction],
        )
        wanted = torch.autograd.grad(expected.sum(), tensors)
        losses = [OPS.linear_gated_cross_entropy(*arguments)]
        if reduction:
            for needs in ([True] * 8, [False] * 8):
                losses.append(OPS.linear_gated_cross_entropy_with_gradients(*arguments, needs)[0])
        for loss in losses:
            torch.testing.assert_close(loss, expected)
            for a, b in zip(torch.autograd.grad(loss.sum(), tensors), wanted):
                torch.testing.assert_close(a, b)

    def test_a_class_weight_that_requires_grad_is_refused_not_dropped(self) -> None:
        arguments = list(raw_arguments(leaves(), 1))
        arguments[8] = arguments[8].requires_grad_()
        for loss in (
            OPS.linear_gated_cross_entropy(*arguments),
            OPS.linear_gated_cross_entropy_with_gradients(*arguments, [True] * 8)[0],
        ):
            with pytest.raises(RuntimeError, match="class_weight has no derivative"):
                loss.backward()
