"""The CUDA kernels of linear_recurrence in the host executor, against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from simt.harness import Executor
from torch import Tensor

from robustcore.reference.pcr import linear_recurrence as reference

# Tails of the 32 lanes of a warp, of the 4 warps of a block, of the 16 (float64: 8) steps of a warp
# and the 160 (80) of a chunk.
SHAPES = [
    (1, 1, 1),
    (1, 15, 31),
    (2, 16, 33),
    (1, 17, 129),
    (3, 159, 5),
    (1, 160, 40),
    (2, 161, 16),
    (5, 400, 1),
    (1, 481, 2),
]
LAYOUTS = ["channels last", "time last", "sliced", "gates shared by channels"]


def _laid_out(layout: str, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    outer, length, inner = shape
    if layout == "time last":
        return torch.empty(outer, inner, length, dtype=dtype).transpose(1, 2)
    if layout == "sliced":
        return torch.empty(outer, length, inner * 2 + 1, dtype=dtype)[..., 1::2]
    if layout == "gates shared by channels":
        return torch.empty(outer, length, 1, dtype=dtype).expand(shape)
    return torch.empty(shape, dtype=dtype)


def _filled(layout: str, values: Tensor) -> Tensor:
    """The values in a layout; where that makes elements one, the first of them."""
    result = _laid_out(layout, tuple(values.shape), values.dtype)
    if layout == "gates shared by channels":
        return values[..., :1].contiguous().expand(values.shape)
    return result.copy_(values)


def _strides(name: str, tensor: Tensor, backwards: bool) -> dict[str, int]:
    outer, time, inner = tensor.stride()
    last = (tensor.shape[1] - 1) * time
    return {
        f"{name}_offset": last if backwards else 0,
        f"{name}_outer": outer,
        f"{name}_time": -time if backwards else time,
        f"{name}_inner": inner,
    }


def _arguments(backwards: bool, **tensors: Tensor | None) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name, tensor in tensors.items():
        arguments[name] = tensor
        if tensor is not None and tensor.dim() == 3:
            arguments |= _strides(name, tensor, backwards)
    return arguments


def _workspace(chained: bool, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor | None:
    """The zeroed words of the chained kernel: a ticket and, per chunk and lane, the carry."""
    if not chained:
        return None
    outer, length, inner = shape
    chunk, words = (80, 2) if dtype is torch.float64 else (160, 1)
    return torch.zeros(1 + -(-length // chunk) * outer * inner * words, dtype=torch.int64)


def _problem(
    shape: tuple[int, int, int], dtype: torch.dtype, with_initial: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(sum(shape))
    a = torch.rand(shape, generator=generator) * 1.2 - 0.2
    x = torch.randn(shape, generator=generator)
    carry = torch.float64 if dtype is torch.float64 else torch.float32
    initial = torch.randn(shape[0], shape[2], generator=generator) if with_initial else None
    return a.to(dtype), x.to(dtype), None if initial is None else initial.to(carry)


TOLERANCE = {
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.bfloat16: {"rtol": 1e-2, "atol": 1e-2},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
}
OPTIONS = [
    pytest.param(torch.float32, "channels last", False, True, id="float32"),
    pytest.param(torch.float32, "time last", True, False, id="float32-time-last-reverse"),
    pytest.param(torch.float32, "sliced", True, True, id="float32-sliced-reverse"),
    pytest.param(
        torch.float64, "gates shared by channels", False, False, id="float64-shared-gates"
    ),
    pytest.param(torch.float64, "time last", False, True, id="float64-time-last"),
    pytest.param(torch.bfloat16, "channels last", True, True, id="bfloat16-reverse"),
    pytest.param(torch.float16, "time last", False, False, id="float16-time-last"),
]


@pytest.mark.parametrize("chained", [False, True], ids=["rows", "chained"])
@pytest.mark.parametrize(("dtype", "layout", "reverse", "with_initial"), OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(
    simt: Executor,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    layout: str,
    reverse: bool,
    with_initial: bool,
    chained: bool,
) -> None:
    a, x, initial = _problem(shape, dtype, with_initial)
    a = _filled(layout, a)
    x = _filled("channels last" if layout == "gates shared by channels" else layout, x)
    states = torch.empty(shape, dtype=dtype)
    outer, length, inner = shape
    simt.run(
        "linear_recurrence",
        outer=outer,
        length=length,
        inner=inner,
        workspace=_workspace(chained, shape, dtype),
        **_arguments(reverse, a=a, x=x, initial=initial, states=states),
    )
    start = None if initial is None else initial.double()
    expected = reference(a.double(), x.double(), start, reverse=reverse)
    torch.testing.assert_close(states.double(), expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("chained", [False, True], ids=["rows", "chained"])
@pytest.mark.parametrize(("dtype", "layout", "reverse", "with_initial"), OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward(
    simt: Executor,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    layout: str,
    reverse: bool,
    with_initial: bool,
    chained: bool,
) -> None:
    a, x, initial = _problem(shape, dtype, with_initial)
    a = _filled(layout, a)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(shape, generator=generator).to(dtype)
    wide = [t.double().requires_grad_() for t in (a, x, initial) if t is not None]
    expected_states = reference(*wide, reverse=reverse)
    states = expected_states.detach().to(dtype)
    # One step without an initial state does not use its gate at all.
    expected = torch.autograd.grad(expected_states, wide, grad.double(), allow_unused=True)

    grad = _filled("channels last" if layout == "gates shared by channels" else layout, grad)
    grad_a, grad_x = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
    grad_initial = None if initial is None else torch.empty_like(initial)
    outer, length, inner = shape
    simt.run(
        "linear_recurrence_backward",
        outer=outer,
        length=length,
        inner=inner,
        workspace=_workspace(chained, shape, dtype),
        **_arguments(
            not reverse,
            grad=grad,
            a=a,
            initial=initial,
            states=states,
            grad_a=grad_a,
            grad_x=grad_x,
            grad_initial=grad_initial,
        ),
    )
    results = (grad_a, grad_x, grad_initial)
    for result, wanted in zip(results, expected):
        wanted = torch.zeros(shape).double() if wanted is None else wanted
        torch.testing.assert_close(result.double(), wanted, **TOLERANCE[dtype])


@pytest.mark.parametrize("wanted", ["grad_a", "grad_x"])
@pytest.mark.parametrize("chained", [False, True], ids=["rows", "chained"])
def test_only_what_is_wanted(simt: Executor, wanted: str, chained: bool) -> None:
    shape = (1, 210, 33)
    a, grad, _ = _problem(shape, torch.float32, False)
    states = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    expected = _problem_gradients(a, grad, states)[wanted]
    result = torch.empty(shape)
    outputs: dict[str, Tensor | None] = {"grad_a": None, "grad_x": None, wanted: result}
    if wanted == "grad_a":
        outputs["states"] = states
    simt.run(
        "linear_recurrence_backward",
        outer=1,
        length=210,
        inner=33,
        workspace=_workspace(chained, shape, torch.float32),
        **_arguments(True, grad=grad, a=a, initial=None, grad_initial=None, **outputs),
    )
    torch.testing.assert_close(result, expected, rtol=2e-5, atol=2e-5)


def _problem_gradients(a: Tensor, grad: Tensor, states: Tensor) -> dict[str, Tensor]:
    """The formulas of the method: G_t = g_t + a_{t+1} G_{t+1}, da_t = G_t h_{t-1}."""
    following = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1)
    before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
    G = reference(following, grad, reverse=True)
    return {"grad_x": G, "grad_a": G * before}


@pytest.mark.parametrize("layout", ["channels last", "time last"])
def test_kernels_agree_bitwise_and_nothing_leaks(simt: Executor, layout: str) -> None:
    """Not-a-number stays in its lane and in later steps, in both kernels with the same bits."""
    shape = (2, 500, 20)
    a, x, initial = _problem(shape, torch.float32, True)
    a, x = _filled(layout, a), _filled(layout, x)
    clean = torch.empty(shape)
    sizes = {"outer": 2, "length": 500, "inner": 20}
    simt.run(
        "linear_recurrence",
        **sizes,
        workspace=None,
        **_arguments(False, a=a, x=x, initial=initial, states=clean),
    )
    x[1, 300, 7] = torch.nan
    a[0, 100, 3] = torch.inf
    results = []
    for chained in (False, True):
        states = torch.empty(shape)
        simt.run(
            "linear_recurrence",
            **sizes,
            workspace=_workspace(chained, shape, torch.float32),
            **_arguments(False, a=a, x=x, initial=initial, states=states),
        )
        results.append(states)
    assert torch.equal(results[0].view(torch.int32), results[1].view(torch.int32))
    touched = torch.zeros(shape, dtype=torch.bool)
    touched[1, 300:, 7] = True
    touched[0, 100:, 3] = True
    assert torch.equal(results[0][~touched], clean[~touched])
    assert not results[0][touched].isfinite().any()
