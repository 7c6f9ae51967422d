"""Values of linear_recurrence: against the reference, the plain loop, and in the corners."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import robustcore
from robustcore import reference
from robustcore.pcr import linear_recurrence
from robustcore.testing import assert_matches, check_sample, error_against
from robustcore.testing.samples_pcr import linear_recurrence_samples, operator_cases

CASE = operator_cases()[0]
SAMPLES = {sample.name: sample for sample in linear_recurrence_samples()}
EDGES = (0, 1, 31, 32, 33, 127, 128, 129, 1023, 1024, 1025)


def problem(*shape: int, seed: int = 0, low: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = strategies.seeded(seed)
    a = low + (1 - low) * torch.rand(shape, generator=generator)
    return a, torch.randn(shape, generator=generator)


def loop(a: Tensor, x: Tensor) -> Tensor:
    """(B, T, C): separate multiplications and additions, in the dtype of the inputs."""
    # unbind: the backward pass of indexing would fill the whole tensor at every step.
    gates, inputs = a.unbind(1), x.unbind(1)
    states = [inputs[0]]
    for gate, value in zip(gates[1:], inputs[1:]):
        states.append(gate * states[-1] + value)
    return torch.stack(states, 1)


def same_bits(left: Tensor, right: Tensor) -> bool:
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[left.element_size()]
    return torch.equal(left.contiguous().view(integer), right.contiguous().view(integer))


@pytest.mark.parametrize("dtype", strategies.FLOATING, ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_samples_match_the_float64_reference(name: str, dtype: torch.dtype) -> None:
    for finding in check_sample(CASE, SAMPLES[name], "cpu", dtype):
        assert finding.comparison.passed, f"{finding.quantity}: {finding.comparison.problem}"


@given(
    st.data(),
    st.lists(strategies.edge_sizes, min_size=1, max_size=4),
    strategies.floating_dtypes,
    st.booleans(),
    st.booleans(),
    st.sampled_from([1e-38, 1e-3, 1.0, 1e4]),
)
def test_random_problems_match_the_float64_reference(
    data: st.DataObject,
    shape: list[int],
    dtype: torch.dtype,
    reverse: bool,
    with_initial: bool,
    scale: float,
) -> None:
    while math.prod(shape) > 100_000:
        shape[shape.index(max(shape))] //= 4
    time_dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    seed = data.draw(st.integers(0, 2**20))
    a, x = problem(*shape, seed=seed, low=-1.0)
    a, x = (data.draw(strategies.strided(t.to(dtype))) for t in (a, x * scale))
    step = list(shape)
    del step[time_dim]
    initial = None
    if with_initial:
        initial = (scale * torch.randn(step, generator=strategies.seeded(seed + 1))).to(dtype)
        initial = data.draw(strategies.strided(initial))
    actual = linear_recurrence(a, x, initial, reverse=reverse, time_dim=time_dim)
    wide = None if initial is None else initial.double()
    expected = reference.pcr.linear_recurrence(
        a.double(), x.double(), wide, reverse=reverse, time_dim=time_dim
    )
    assert actual.dtype == dtype
    assert actual.is_contiguous()
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    # Terms that cancel: their sum of sizes is what rounding is relative to. float16 overflows.
    largest = torch.finfo(dtype).max
    if dtype is torch.float16:
        expected = expected.where(expected.abs() < largest, expected * torch.inf)
    mass = reference.pcr.linear_recurrence(
        a.double().abs(),
        x.double().abs(),
        None if wide is None else wide.abs(),
        reverse=reverse,
        time_dim=time_dim,
    )
    bound = float(mass.max()) if mass.numel() else 0.0
    atol = 8 * torch.finfo(compute).eps * bound + 2 * torch.finfo(dtype).smallest_normal * 2**-7
    assert_matches(actual, expected, rtol=torch.finfo(dtype).eps, atol=atol)


@pytest.mark.parametrize("channels", EDGES)
@pytest.mark.parametrize("length", [0, 1, 33, 129])
def test_channels_of_every_size(length: int, channels: int) -> None:
    a, x = problem(2, length, channels)
    expected = reference.pcr.linear_recurrence(a.double(), x.double())
    assert_matches(linear_recurrence(a, x), expected, rtol=1e-6, atol=2e-6)
    by_rows = linear_recurrence(a.mT.contiguous(), x.mT.contiguous(), time_dim=-1).mT
    assert same_bits(by_rows, linear_recurrence(a, x))


@pytest.mark.parametrize("length", EDGES)
@pytest.mark.parametrize("channels", [1, 3, 40])
def test_lengths_of_every_size(length: int, channels: int) -> None:
    a, x = problem(3, length, channels)
    expected = reference.pcr.linear_recurrence(a.double(), x.double())
    assert_matches(linear_recurrence(a, x), expected, rtol=1e-6, atol=2e-6)
    by_rows = linear_recurrence(a.mT.contiguous(), x.mT.contiguous(), time_dim=-1).mT
    assert same_bits(by_rows, linear_recurrence(a, x))


@pytest.mark.parametrize(
    "gates",
    [
        pytest.param(lambda a: a, id="uniform"),
        pytest.param(lambda a: 0.999 + 0.001 * a, id="close to one"),
        pytest.param(lambda a: (a - 0.5).sign(), id="plus and minus one"),
    ],
)
@pytest.mark.parametrize("shape", [(1, 16384, 8), (4, 1024, 33)])
def test_float32_error_is_at_most_four_times_that_of_the_loop(
    shape: tuple[int, ...], gates: Callable[[Tensor], Tensor]
) -> None:
    a, x = problem(*shape)
    a = gates(a)
    with torch.enable_grad():
        wide = [t.double().requires_grad_() for t in (a, x)]
        plain = [t.clone().requires_grad_() for t in (a, x)]
        ours = [t.clone().requires_grad_() for t in (a, x)]
        grad = torch.randn(shape)
        exact, eager, fused = loop(*wide), loop(*plain), linear_recurrence(*ours)
        right = (exact, *torch.autograd.grad(exact, wide, grad.double()))
        theirs = (eager, *torch.autograd.grad(eager, plain, grad))
        result = (fused, *torch.autograd.grad(fused, ours, grad))
    for actual, other, expected in zip(result, theirs, right):
        assert error_against(actual, expected) <= 4 * error_against(other, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_storage_has_a_float32_carry(dtype: torch.dtype) -> None:
    # In 16 bits 256 + 1 = 256 (2048 + 1 = 2048 in float16).
    ones = torch.ones(1, 5000, 9, dtype=dtype)
    last = linear_recurrence(ones, ones)[0, -1]
    assert torch.equal(last, torch.full((9,), 5000.0).to(dtype))
    by_rows = linear_recurrence(ones.mT, ones.mT, time_dim=-1)[0, :, -1]
    assert torch.equal(by_rows, last)


@pytest.mark.parametrize("dtype", strategies.FLOATING, ids=str)
@pytest.mark.parametrize("time_dim", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("with_initial", [False, True])
def test_reverse_equals_flip(time_dim: int, dtype: torch.dtype, with_initial: bool) -> None:
    a, x = (t.to(dtype) for t in problem(9, 20, 33))
    initial = x.select(time_dim, 0).clone() if with_initial else None
    actual = linear_recurrence(a, x, initial, reverse=True, time_dim=time_dim)
    flipped = linear_recurrence(a.flip(time_dim), x.flip(time_dim), initial, time_dim=time_dim)
    assert same_bits(actual, flipped.flip(time_dim))


@pytest.mark.parametrize("time_dim", [0, 1, 2, 3])
def test_time_dim_equals_movedim(time_dim: int) -> None:
    a, x = problem(3, 17, 12, 10)
    moved = linear_recurrence(a.movedim(time_dim, -2), x.movedim(time_dim, -2))
    actual = linear_recurrence(a, x, time_dim=time_dim)
    assert same_bits(actual, moved.movedim(-2, time_dim))
    assert same_bits(actual, linear_recurrence(a, x, time_dim=time_dim - 4))


def test_broadcasting_follows_pytorch() -> None:
    x = torch.randn(2, 30, 12)
    for shape in [(), (1,), (12,), (30, 1), (30, 12), (2, 1, 12), (2, 30, 1), (1, 1, 1)]:
        a = torch.rand(shape)
        assert same_bits(linear_recurrence(a, x), linear_recurrence(a.expand_as(x).clone(), x))
    a = torch.rand(2, 30, 12)
    assert linear_recurrence(a, torch.ones(12)).shape == (2, 30, 12)
    for shape in [(), (1,), (12,), (2, 12), (2, 1)]:
        initial = torch.randn(shape)
        full = initial.expand(2, 12).clone()
        assert same_bits(linear_recurrence(a, x, initial), linear_recurrence(a, x, full))


class TestCorners:
    def test_no_initial_state_starts_at_x_and_ignores_the_first_gate(self) -> None:
        a, x = problem(2, 10, 20)
        a[:, 0] = torch.nan
        for time_dim in (-2, -1):
            gates = a if time_dim == -2 else a.mT.contiguous()
            inputs = x if time_dim == -2 else x.mT.contiguous()
            states = linear_recurrence(gates, inputs, time_dim=time_dim)
            assert states.isfinite().all()
            assert same_bits(states.select(time_dim, 0), x[:, 0])

    def test_zero_initial_state_is_the_same_as_none(self) -> None:
        a, x = problem(2, 10, 20)
        states = linear_recurrence(a, x, torch.zeros(20))
        assert torch.equal(states, linear_recurrence(a, x))

    def test_a_zero_gate_resets(self) -> None:
        a, x = problem(2, 50, 20)
        a[:, 25] = 0
        states = linear_recurrence(a, x)
        assert torch.equal(states[:, 25:], linear_recurrence(a[:, 25:], x[:, 25:]))

    def test_gates_of_one_add_and_of_minus_one_alternate(self) -> None:
        x = torch.randint(-8, 9, (2, 300, 10)).float()
        assert torch.equal(linear_recurrence(torch.tensor(1.0), x), x.cumsum(1))
        signs = torch.ones(300).masked_fill(torch.arange(300) % 2 == 1, -1.0)[:, None]
        states = linear_recurrence(torch.tensor(-1.0), x)
        assert torch.equal(states, signs * (signs * x).cumsum(1))

    def test_growth_beyond_the_largest_number_keeps_its_sign(self) -> None:
        a, x = torch.full((1, 300, 9), -2.0), torch.ones(1, 300, 9)
        states = linear_recurrence(a, x)
        assert_matches(states, loop(a, x).double())
        assert states[0, -1].isinf().all()

    def test_products_of_gates_that_overflow_do_no_harm(self) -> None:
        # 1e30 ** 2 is not a float32, but x is zero until after the reset.
        a = torch.full((1, 400, 8), 1e30)
        a[:, 200] = 0
        x = torch.zeros(1, 400, 8)
        x[:, -1] = 3
        assert torch.equal(linear_recurrence(a, x), x)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("where", ["a", "x", "initial"])
    @pytest.mark.parametrize("time_dim", [-2, -1])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_what_is_not_finite_stays_in_its_channel_and_later(
        self, value: float, where: str, time_dim: int, reverse: bool
    ) -> None:
        a, x = problem(3, 40, 21)
        initial = torch.randn(3, 21)
        position = (1, 15, 7)
        untouched = linear_recurrence(a, x, initial, reverse=reverse)
        reached = torch.zeros(3, 40, 21, dtype=torch.bool)
        if where == "initial":
            initial[1, 7] = value
            reached[1, :, 7] = True
        else:
            (a if where == "a" else x)[position] = value
            reached[1, : 16 if reverse else None, 7] = True
            if not reverse:
                reached[1, :15, 7] = False
        if time_dim == -1:
            a, x = a.mT.contiguous(), x.mT.contiguous()
        states = linear_recurrence(a, x, initial, reverse=reverse, time_dim=time_dim)
        states = states if time_dim == -2 else states.mT
        assert not states[reached].isfinite().any()
        assert torch.equal(states[~reached], untouched[~reached])

    def test_subnormals_survive(self) -> None:
        x = torch.full((1, 3, 9), 1e-40)
        expected = 1e-40 * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        states = linear_recurrence(torch.ones(1, 3, 9), x)
        assert_matches(states[0, :, 0], expected, atol=2e-45)


@pytest.mark.parametrize("dtype", strategies.FLOATING, ids=str)
@pytest.mark.parametrize("layout", ["channels last", "time last", "sliced"])
@pytest.mark.parametrize("shape", [(3, 2000, 70), (1, 5000, 33), (2, 9000, 2)])
def test_same_bits_for_any_number_of_threads_and_in_every_run(
    shape: tuple[int, ...],
    layout: str,
    dtype: torch.dtype,
    threads: Callable[[int], AbstractContextManager[None]],
) -> None:
    a, x = (t.to(dtype) for t in problem(*shape))
    if layout == "time last":
        a, x = a.mT.contiguous().mT, x.mT.contiguous().mT
    elif layout == "sliced":
        a, x = a[..., ::2], x[..., ::2]
    a, x = a.detach().requires_grad_(), x.detach().requires_grad_()
    results = []
    for count in (1, 2, 2, 3):
        with threads(count):
            states = linear_recurrence(a, x)
            results.append((states, *torch.autograd.grad(states.float().sin().sum(), (a, x))))
    for other in results[1:]:
        assert all(same_bits(left, right) for left, right in zip(results[0], other))


def test_pieces_continue_with_the_bits_of_the_whole() -> None:
    a, x = problem(2, 100, 30)
    whole = linear_recurrence(a, x)
    state, pieces = None, []
    for a_piece, x_piece in zip(a.split(33, 1), x.split(33, 1)):
        pieces.append(linear_recurrence(a_piece, x_piece, state))
        state = pieces[-1][:, -1]
    assert same_bits(torch.cat(pieces, 1), whole)


def test_no_steps_allocate_nothing_for_a_broadcast_initial_state() -> None:
    # 4 TiB, were the state copied out.
    x = torch.empty(0, 2**40)
    assert linear_recurrence(x, x, torch.zeros(())).shape == (0, 2**40)


def test_inputs_are_not_written() -> None:
    a, x = problem(2, 40, 30)
    kept = a.clone(), x.clone()
    linear_recurrence(a, x)
    assert torch.equal(a, kept[0])
    assert torch.equal(x, kept[1])


def test_use_reference_runs_the_loop() -> None:
    a, x = problem(2, 40, 30)
    with robustcore.use_reference():
        states = linear_recurrence(a, x)
    assert same_bits(states, reference.pcr.linear_recurrence(a, x))
    assert_matches(linear_recurrence(a, x), states.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.parametrize("shape", [(3, 31, 33), (2, 3000, 70), (64, 300, 1024), (1, 20000, 5)])
@pytest.mark.parametrize("time_dim", [-2, -1])
@pytest.mark.parametrize("reverse", [False, True])
def test_cuda_matches_the_cpu(shape: tuple[int, ...], time_dim: int, reverse: bool) -> None:
    a, x = problem(*shape)
    leaves = [t.requires_grad_() for t in (a, x)]
    on_gpu = [t.detach().cuda().requires_grad_() for t in (a, x)]
    grad = torch.randn(shape)
    options = {"reverse": reverse, "time_dim": time_dim}
    expected = linear_recurrence(*leaves, **options)
    actual = linear_recurrence(*on_gpu, **options)
    for left, right in zip(
        (actual, *torch.autograd.grad(actual, on_gpu, grad.cuda())),
        (expected, *torch.autograd.grad(expected, leaves, grad)),
    ):
        assert_matches(left, right.double(), rtol=1e-6, atol=1e-5)
    again = linear_recurrence(*on_gpu, **options)
    assert same_bits(again, actual)
