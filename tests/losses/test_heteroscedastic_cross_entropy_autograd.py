"""Derivatives of heteroscedastic_cross_entropy, and the systems that trace it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from robustcore.losses import heteroscedastic_cross_entropy, heteroscedastic_log_probabilities
from robustcore.reference import losses as reference

OPS = torch.ops.robustcore
TARGET = torch.tensor([0, 4, -100, 2])
WEIGHT = torch.tensor([1.0, 0.5, 2.0, 0.0, 3.0], dtype=torch.float64)


def leaves(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    make = {"dtype": dtype, "requires_grad": True}
    return (
        torch.randn(4, 5, **make),
        torch.randn(4, 5, 2, **make),
        torch.rand(4, 5, **make),
        torch.rand(4, **make),
    )


def options(**changes) -> dict:
    return {"temperature": 1.3, "samples": 6, "seed": 3, **changes}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_numerical_derivatives(check, reduction: str) -> None:
    # The whole matrix of second derivatives takes seconds: once is enough.
    fast = check is gradgradcheck and reduction != "none"

    def loss(m, v, d, w):
        return heteroscedastic_cross_entropy(
            m, v, d, TARGET, weight=WEIGHT, sample_weight=w, **options(reduction=reduction)
        )

    assert check(loss, leaves(), fast_mode=fast)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_numerical_derivatives_of_log_probabilities(check) -> None:
    assert check(
        lambda *t: heteroscedastic_log_probabilities(*t, **options()), leaves()[:3], fast_mode=True
    )


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_any_combination_of_inputs_that_require_grad(reduction: str) -> None:
    everything = [t.detach() for t in leaves()]
    kwargs = options(reduction=reduction)
    for wanted in itertools.product([False, True], repeat=4):
        inputs = [t.clone().requires_grad_(want) for t, want in zip(everything, wanted)]
        loss = heteroscedastic_cross_entropy(
            *inputs[:3], TARGET, sample_weight=inputs[3], **kwargs
        ).sum()
        assert loss.requires_grad == any(wanted)
        if not any(wanted):
            continue
        loss.backward()
        full = [t.clone().requires_grad_() for t in everything]
        reference.heteroscedastic_cross_entropy(
            *full[:3], TARGET, sample_weight=full[3], **kwargs
        ).sum().backward()
        for tensor, right, want in zip(inputs, full, wanted):
            if want:
                torch.testing.assert_close(tensor.grad, right.grad)
            else:
                assert tensor.grad is None


def test_backward_twice_gives_the_same_gradients() -> None:
    inputs = leaves()[:3]
    loss = heteroscedastic_cross_entropy(*inputs, TARGET, **options())
    three = torch.tensor(3.0).double()
    once = torch.autograd.grad(loss, inputs, three, retain_graph=True)
    twice = torch.autograd.grad(loss, inputs, three)
    for a, b in zip(once, twice):
        assert torch.equal(a, b)


def test_an_ignored_row_stays_at_zero_whatever_comes_from_above() -> None:
    inputs = leaves()
    loss = heteroscedastic_cross_entropy(
        *inputs[:3], TARGET, sample_weight=inputs[3], **options(reduction="none")
    )
    from_above = torch.tensor([1.0, 1.0, torch.nan, 1.0]).double()
    for gradient in torch.autograd.grad(loss, inputs, from_above):
        assert (gradient[2] == 0).all()
        assert gradient.isfinite().all()


def test_float16_gradients_survive_a_loss_scale() -> None:
    """Divided by the batch size before the scale is applied they would be below float16's range."""
    rows, classes = 512, 1000
    mean = torch.zeros(rows, classes, dtype=torch.float16, requires_grad=True)
    loss = heteroscedastic_cross_entropy(
        mean, None, torch.zeros_like(mean), torch.zeros(rows, dtype=torch.int64), samples=4
    )
    (gradient,) = torch.autograd.grad(loss * 2.0**14, mean)
    expected = 2.0**14 / rows / classes
    torch.testing.assert_close(gradient[0, 1].float().item(), expected, rtol=1e-3, atol=0)


def test_activation_checkpointing_repeats_the_same_noise() -> None:
    m, v, d, _ = leaves()

    def loss(m):
        return heteroscedastic_cross_entropy(2 * m, v, d, TARGET, samples=8)

    torch.manual_seed(1)
    plain = torch.autograd.grad(loss(m), m)[0]
    torch.manual_seed(1)
    again = torch.autograd.grad(checkpoint(loss, m, use_reentrant=False), m)[0]
    assert torch.equal(plain, again)


class TestTransforms:
    def test_func_grad_and_its_grad(self) -> None:
        m, v, d, _ = (t.detach() for t in leaves())
        both = [
            lambda m, f=f: f(m, v, d, TARGET, **options())
            for f in (heteroscedastic_cross_entropy, reference.heteroscedastic_cross_entropy)
        ]
        torch.testing.assert_close(*(torch.func.grad(f)(m) for f in both))

        def nested(function):
            return torch.func.grad(lambda m: torch.func.grad(function)(m).square().sum())

        torch.testing.assert_close(*(nested(f)(m) for f in both))

    def test_vmap_and_per_sample_gradients(self) -> None:
        m, v, d, _ = (torch.stack([t.detach(), 2 * t.detach()]) for t in leaves())
        both = [
            lambda m, v, d, f=f: f(m, v, d, TARGET, **options())
            for f in (heteroscedastic_cross_entropy, reference.heteroscedastic_cross_entropy)
        ]
        for transform in (torch.func.vmap, lambda g: torch.func.vmap(torch.func.grad(g))):
            torch.testing.assert_close(*(transform(f)(m, v, d) for f in both))

    def test_batched_cotangents(self) -> None:
        inputs, results = leaves()[:3], []
        for function in (heteroscedastic_cross_entropy, reference.heteroscedastic_cross_entropy):
            loss = function(*inputs, TARGET, **options())
            above = torch.arange(3.0, dtype=loss.dtype)
            results.append(torch.autograd.grad(loss, inputs, above, is_grads_batched=True))
        for a, b in zip(*results):
            torch.testing.assert_close(a, b)

    def test_forward_mode_is_refused(self) -> None:
        m, v, d, _ = (t.detach() for t in leaves())
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(m, torch.ones_like(m))
            with pytest.raises(NotImplementedError, match="forward-mode"):
                heteroscedastic_cross_entropy(dual, v, d, TARGET, **options())
            assert heteroscedastic_cross_entropy(m, v, d, TARGET, **options()).isfinite()

    @pytest.mark.parametrize("reduction", ["none", "mean"])
    def test_compile_in_one_graph(self, reduction: str) -> None:
        inputs = leaves(torch.float32)

        def loss(m, v, d, w):
            value = heteroscedastic_cross_entropy(
                m, v, d, TARGET, sample_weight=w, **options(reduction=reduction)
            )
            return (2 * value).sum()

        compiled = torch.compile(loss, fullgraph=True)
        a, b = loss(*inputs), compiled(*inputs)
        torch.testing.assert_close(a, b)
        for x, y in zip(torch.autograd.grad(a, inputs), torch.autograd.grad(b, inputs)):
            torch.testing.assert_close(x, y)

    def test_a_compiled_call_draws_its_seed(self) -> None:
        m, v, d, _ = (t.detach() for t in leaves())

        @torch.compile(fullgraph=True)
        def loss(m):
            return heteroscedastic_cross_entropy(m, v, d, TARGET, samples=8)

        torch.manual_seed(5)
        first, second = loss(m), loss(m)
        torch.manual_seed(5)
        assert loss(m) == first
        assert first != second

    def test_a_seed_tensor_changes_without_another_compilation(self) -> None:
        m, v, d, _ = (t.detach() for t in leaves())
        compiled = torch.compile(
            lambda seed: heteroscedastic_log_probabilities(m, v, d, samples=8, seed=seed),
            fullgraph=True,
        )
        for number in (1, 2):
            expected = heteroscedastic_log_probabilities(m, v, d, samples=8, seed=number)
            assert torch.equal(compiled(torch.tensor([number])), expected)

    def test_export(self) -> None:
        class Model(torch.nn.Module):
            def forward(self, m, v, d, y):
                return heteroscedastic_cross_entropy(m, v, d, y, **options())

        m, v, d, _ = (t.detach() for t in leaves())
        program = torch.export.export(Model(), (m, v, d, TARGET))
        torch.testing.assert_close(
            program.module()(m, v, d, TARGET),
            heteroscedastic_cross_entropy(m, v, d, TARGET, **options()),
        )

    def test_autocast_takes_16_bit_logits_and_returns_float32(self) -> None:
        layer = torch.nn.Linear(6, 5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mean = layer(torch.randn(4, 6))
            assert mean.dtype == torch.bfloat16
            loss = heteroscedastic_cross_entropy(mean, None, torch.rand(4, 5), TARGET, samples=8)
        assert loss.dtype == torch.float32
        loss.backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.isfinite().all()

    def test_meta_tensors(self) -> None:
        m = torch.empty(4, 5, device="meta", requires_grad=True)
        target = torch.empty(4, dtype=torch.int64, device="meta")
        loss = heteroscedastic_cross_entropy(m, m.detach().new_empty(4, 5, 2), m.detach(), target)
        assert loss.shape == ()
        loss.backward()
        assert m.grad is not None
        assert m.grad.shape == (4, 5)


class TestRawOperators:
    @pytest.mark.parametrize("grad", [False, True])
    @pytest.mark.parametrize("layout", ["contiguous", "strided"])
    @pytest.mark.parametrize("reduction", [0, 1])
    def test_opcheck(self, reduction: int, layout: str, grad: bool) -> None:
        m, v, d, w = (t.detach().float() for t in leaves())
        if layout == "strided":
            m, d = m.t().contiguous().t(), torch.cat([d, d], 1)[:, ::2]
            v, w = v.permute(2, 1, 0).contiguous().permute(2, 1, 0), torch.stack([w, w], 1)[:, 1]
        m, v, d, w = (t.requires_grad_(grad) for t in (m, v, d, w))
        seed = torch.tensor([3])
        given = (m, v, d, TARGET, WEIGHT.float(), w, seed)
        numbers = (1.3, 6, 1e-7, -100, reduction)
        torch.library.opcheck(OPS.heteroscedastic_cross_entropy.default, (*given, *numbers, grad))
        torch.library.opcheck(
            OPS.heteroscedastic_log_probabilities.default, (m, v, d, seed, 1.3, 6)
        )
        with torch.no_grad():
            _, *kept = OPS.heteroscedastic_cross_entropy(*given, *numbers, True)
        above = torch.rand(4 if reduction == 0 else (), requires_grad=grad)
        torch.library.opcheck(
            OPS.heteroscedastic_cross_entropy_backward.default, (above, *given, *kept, *numbers)
        )

    @pytest.mark.parametrize("needs_gradients", [False, True])
    def test_a_raw_call_is_differentiable(self, needs_gradients: bool) -> None:
        inputs = leaves()[:3]
        loss = OPS.heteroscedastic_cross_entropy(
            *inputs, TARGET, None, None, torch.tensor([3]), 1.3, 6, 1e-7, -100, 1, needs_gradients
        )[0]
        expected = reference.heteroscedastic_cross_entropy(*inputs, TARGET, **options())
        for a, b in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs)):
            torch.testing.assert_close(a, b)

    def test_a_class_weight_that_requires_grad_is_refused_not_dropped(self) -> None:
        m, v, d, _ = leaves()
        weight = WEIGHT.clone().requires_grad_()
        loss = OPS.heteroscedastic_cross_entropy(
            m, v, d, TARGET, weight, None, torch.tensor([3]), 1.3, 6, 1e-7, -100, 1, True
        )[0]
        with pytest.raises(RuntimeError, match="weight has no derivative"):
            loss.backward()

    def test_wrong_raw_arguments_are_refused(self) -> None:
        m, v, d, _ = (t.detach() for t in leaves())
        good = [m, v, d, TARGET, None, None, torch.tensor([3]), 1.3, 6, 1e-7, -100, 1, False]
        for position, bad, message in (
            (0, m.half(), "mean must be float32 or float64"),
            (1, v[:, :3], "low_rank must have the shape of mean"),
            (2, d.float(), "diagonal has the wrong dtype"),
            (3, TARGET[:2], "target must have 4 elements"),
            (4, WEIGHT[:2], "weight must have 5 elements"),
            (6, torch.tensor([1, 2]), "seed must have 1 elements"),
            (7, 0.0, "temperature must be positive"),
            (8, 0, r"samples must be in \[1, 2\^30\]"),
            (9, 2.0, r"minimum_probability must be in \[0, 1\)"),
            (11, 7, "reduction must be 0, 1 or 2"),
        ):
            arguments = list(good)
            arguments[position] = bad
            with pytest.raises(RuntimeError, match=message):
                OPS.heteroscedastic_cross_entropy(*arguments)
