"""Derivatives of linear_recurrence, and the ways in which PyTorch calls it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import robustcore
from robustcore import reference
from robustcore.pcr import linear_recurrence
from robustcore.pcr._linear_recurrence_op import backward_operator, forward_operator
from robustcore.testing import assert_matches

FLAGS = [flags for flags in itertools.product([False, True], repeat=3) if any(flags)]


def problem(
    *shape: int, time_dim: int = -2, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    a = torch.randn(shape, dtype=dtype)
    step = list(shape)
    del step[time_dim]
    return a, torch.randn(shape, dtype=dtype), torch.randn(step, dtype=dtype)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("time_dim", [-2, -1])
def test_gradcheck_of_any_combination(
    flags: tuple[bool, ...], reverse: bool, time_dim: int
) -> None:
    inputs = problem(2, 4, 3, time_dim=time_dim)
    leaves = [t.requires_grad_(flag) for t, flag in zip(inputs, flags)]

    def function(a: Tensor, x: Tensor, initial: Tensor) -> Tensor:
        return linear_recurrence(a, x, initial, reverse=reverse, time_dim=time_dim)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("channels", [1, 9])
def test_gradcheck_without_initial_state(length: int, channels: int) -> None:
    a, x, _ = problem(2, length, channels)
    leaves = a.requires_grad_(), x.requires_grad_()
    assert torch.autograd.gradcheck(linear_recurrence, leaves)
    assert torch.autograd.gradgradcheck(linear_recurrence, leaves)


@pytest.mark.parametrize("kind", ["broadcast", "sliced", "transposed"])
def test_gradcheck_behind_views(kind: str) -> None:
    a, x, initial = (t.requires_grad_() for t in problem(2, 4, 6))

    def function(a: Tensor, x: Tensor, initial: Tensor) -> Tensor:
        if kind == "broadcast":
            return linear_recurrence(a[:, :1, :1], x, initial[:1])
        if kind == "sliced":
            return linear_recurrence(a[..., ::2], x[..., 1::2], initial[..., ::2])
        return linear_recurrence(a.mT, x.mT, initial, time_dim=-1)

    assert torch.autograd.gradcheck(function, (a, x, initial))
    assert torch.autograd.gradgradcheck(function, (a, x, initial))


def test_third_derivatives_match_the_reference() -> None:
    inputs = problem(1, 4, 2)

    def third(function: object) -> Tensor:
        a, x, initial = (t.clone().requires_grad_() for t in inputs)
        value = function(a, x, initial).pow(3).sum()  # type: ignore[operator]
        for _ in range(3):
            value = torch.autograd.grad(value, a, create_graph=True)[0].pow(2).sum()
        return value

    expected = third(reference.pcr.linear_recurrence)
    assert_matches(third(linear_recurrence), expected, rtol=1e-10)


def test_only_the_gradients_asked_for_are_computed() -> None:
    a, x, initial = problem(2, 30, 9)
    states = forward_operator(a, x, initial, -2, False)
    grad = torch.randn_like(states)
    full = backward_operator(grad, a, states, initial, -2, False, True, True, True)
    for needs in itertools.product([False, True], repeat=3):
        saved = states if needs[0] else None
        partial = backward_operator(grad, a, saved, initial, -2, False, *needs)
        for needed, got, wanted in zip(needs, partial, full):
            assert got.numel() == (wanted.numel() if needed else 0)
            assert not needed or torch.equal(got, wanted)


def test_states_are_kept_only_for_the_gates() -> None:
    a, x, _ = problem(2, 30, 9)
    states = linear_recurrence(a, x.requires_grad_())
    states.mul_(2)  # would be an error at the backward pass if they had been kept
    states.sum().backward()
    assert x.grad is not None
    states = linear_recurrence(a.requires_grad_(), x)
    states.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        states.sum().backward()


def test_the_unused_first_gate_has_no_gradient() -> None:
    a, x, _ = (t.requires_grad_() for t in problem(2, 5, 9))
    for time_dim in (-2, -1):
        states = linear_recurrence(a, x, time_dim=time_dim)
        # Even where the gradient that it would be multiplied by is not finite.
        grad = torch.full_like(states, torch.inf)
        gradient = torch.autograd.grad(states, a, grad)[0]
        assert torch.equal(gradient.select(time_dim, 0), torch.zeros_like(x.select(time_dim, 0)))


def test_empty_sequences() -> None:
    for shape in [(2, 0, 3), (0, 5, 3), (2, 5, 0)]:
        a, x, initial = (t.requires_grad_() for t in problem(*shape))
        states = linear_recurrence(a, x, initial)
        assert states.shape == shape
        states.sum().backward()
        assert a.grad is not None
        assert a.grad.shape == shape
        assert initial.grad is not None
        assert torch.equal(initial.grad, torch.zeros_like(initial))
        once = torch.autograd.grad(
            linear_recurrence(a, x, initial).sum(), (a, x, initial), create_graph=True
        )
        assert not any(g.requires_grad and g.sum().item() != 0 for g in once)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_gradients_that_are_not_finite_stay_in_their_channel_and_earlier(value: float) -> None:
    a, x, initial = (t.float().requires_grad_() for t in problem(2, 20, 11))
    grad = torch.randn(2, 20, 11)
    states = linear_recurrence(a, x, initial)
    clean = torch.autograd.grad(states, (a, x, initial), grad, retain_graph=True)
    grad[1, 12, 4] = value
    dirty = torch.autograd.grad(states, (a, x, initial), grad)
    reached = torch.zeros(2, 20, 11, dtype=torch.bool)
    reached[1, :13, 4] = True
    for before, after in zip(clean[:2], dirty[:2]):
        assert not after[reached].isfinite().any()
        assert torch.equal(after[~reached], before[~reached])
    assert not dirty[2][1, 4].isfinite()
    assert dirty[2].isfinite().sum() == 21


@pytest.mark.parametrize("flags", [(False, False, False), *FLAGS], ids=str)
@pytest.mark.parametrize("strided", [False, True])
def test_opcheck(flags: tuple[bool, ...], strided: bool) -> None:
    a, x, initial = problem(2, 6, 5, dtype=torch.float32)
    if strided:
        a, x = a.mT.contiguous().mT, torch.randn(2, 6, 10)[..., ::2]
        initial = initial[:1].expand(2, 5)
    a, x, initial = (t.detach().requires_grad_(flag) for t, flag in zip((a, x, initial), flags))
    torch.library.opcheck(forward_operator.raw, (a, x, initial, -2, False))
    torch.library.opcheck(forward_operator.raw, (a, x, None, -2, True))
    torch.library.opcheck(backward_operator.raw, (x, a, x.detach(), initial, -2, False, *flags))


def test_raw_operators_keep_gradients() -> None:
    a, x, initial = (t.requires_grad_() for t in problem(2, 6, 5))
    states = torch.ops.robustcore.linear_recurrence(a, x, initial, -2, False)
    assert states.requires_grad
    expected = torch.autograd.grad(linear_recurrence(a, x, initial).sum(), (a, x, initial))
    for got, wanted in zip(torch.autograd.grad(states.sum(), (a, x, initial)), expected):
        assert torch.equal(got, wanted)


def test_compile_without_graph_breaks() -> None:
    inputs = problem(2, 20, 6, dtype=torch.float32)

    def function(a: Tensor, x: Tensor, initial: Tensor) -> Tensor:
        return linear_recurrence(a.sigmoid(), x, initial, reverse=True).square().sum()

    compiled = torch.compile(function, fullgraph=True)
    for _ in range(2):
        eager_leaves = [t.clone().requires_grad_() for t in inputs]
        leaves = [t.clone().requires_grad_() for t in inputs]
        expected = torch.autograd.grad(function(*eager_leaves), eager_leaves)
        for got, wanted in zip(torch.autograd.grad(compiled(*leaves), leaves), expected):
            assert_matches(got, wanted.double(), rtol=1e-5, atol=1e-6)
        inputs = problem(3, 33, 7, dtype=torch.float32)


def test_compile_follows_use_reference() -> None:
    a, x, _ = problem(2, 8, 6, dtype=torch.float32)
    compiled = torch.compile(linear_recurrence, fullgraph=True)
    states = compiled(a, x)
    with robustcore.use_reference():
        assert_matches(compiled(a, x), states.double(), rtol=1e-6, atol=1e-6)


def test_export() -> None:
    class Model(torch.nn.Module):
        def forward(self, a: Tensor, x: Tensor) -> Tensor:
            return linear_recurrence(a, x)

    a, x, _ = problem(2, 20, 6, dtype=torch.float32)
    program = torch.export.export(
        Model(),
        (a, x),
        dynamic_shapes={"a": {1: torch.export.Dim("T")}, "x": {1: torch.export.Dim("T")}},
    )
    a, x, _ = problem(2, 50, 6, dtype=torch.float32)
    assert torch.equal(program.module()(a, x), linear_recurrence(a, x))


def test_meta_tensors_get_shapes() -> None:
    a = torch.empty(2, 30, 5, device="meta", dtype=torch.bfloat16)
    states = linear_recurrence(a, torch.empty(5, device="meta", dtype=torch.bfloat16))
    assert states.shape == (2, 30, 5)
    assert states.dtype == torch.bfloat16


def test_func_transforms_match_the_reference() -> None:
    a, x, initial = problem(4, 6, 3)
    x = x.movedim(0, 2).contiguous()

    def loss(function: object) -> object:
        def value(a: Tensor, x: Tensor, initial: Tensor) -> Tensor:
            return function(a, x, initial).pow(2).sum()  # type: ignore[operator]

        gradients = torch.func.grad(value, argnums=(0, 1, 2))
        return torch.func.vmap(gradients, in_dims=(0, 2, None))(a, x, initial[0])

    ours, theirs = loss(linear_recurrence), loss(reference.pcr.linear_recurrence)
    for got, wanted in zip(ours, theirs):  # type: ignore[call-overload]
        assert_matches(got, wanted, rtol=1e-10, atol=1e-12)


def test_hessian_by_nested_transforms() -> None:
    a, x, _ = problem(1, 4, 2)

    def hessian(function: object) -> Tensor:
        def value(a: Tensor) -> Tensor:
            return function(a, x).pow(2).sum()  # type: ignore[operator]

        return torch.func.jacrev(torch.func.jacrev(value))(a)

    expected = hessian(reference.pcr.linear_recurrence)
    assert_matches(hessian(linear_recurrence), expected, rtol=1e-10, atol=1e-12)


def test_vmap_over_anything_and_time_dim() -> None:
    a, x = torch.rand(20, 5, 3), torch.randn(4, 20, 5)
    actual = torch.func.vmap(
        lambda a, x: linear_recurrence(a, x, time_dim=0), in_dims=(2, None), out_dims=1
    )(a, x[0])
    for i in range(3):
        assert torch.equal(actual[:, i], linear_recurrence(a[..., i], x[0], time_dim=0))
    initial = torch.randn(4, 5)
    actual = torch.func.vmap(lambda x, h: linear_recurrence(torch.tensor(0.5), x, h))(x, initial)
    assert torch.equal(actual, linear_recurrence(torch.tensor(0.5), x, initial))


def test_forward_mode_is_a_clear_error() -> None:
    a, x, _ = problem(2, 6, 3)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(lambda x: linear_recurrence(a, x), (x,), (x,))


def test_autocast_promotes() -> None:
    a, x, initial = problem(2, 20, 6, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = linear_recurrence(a, x.bfloat16(), initial.bfloat16())
        low = linear_recurrence(a.bfloat16(), x.bfloat16(), initial)
    assert mixed.dtype == torch.float32
    assert low.dtype == torch.bfloat16
    expected = linear_recurrence(a, x.bfloat16().float(), initial.bfloat16().float())
    assert torch.equal(mixed, expected)


def test_16_bit_initial_state_gets_a_gradient_of_its_own_dtype() -> None:
    a, x, initial = (t.requires_grad_() for t in problem(2, 20, 6, dtype=torch.bfloat16))
    linear_recurrence(a, x, initial).sum().backward()
    assert initial.grad is not None
    assert initial.grad.dtype == torch.bfloat16
