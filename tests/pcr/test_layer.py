"""The module LinearRecurrence."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from robustcore import reference
from robustcore.pcr import LinearRecurrence
from robustcore.testing import assert_matches


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_formula(gated: bool, reverse: bool) -> None:
    layer = LinearRecurrence(6, gated=gated, reverse=reverse, dtype=torch.float64)
    x, initial = torch.randn(3, 40, 6).double(), torch.randn(3, 6).double()
    rate = F.softplus(layer.decay)
    if layer.gate is not None:
        rate = rate * torch.sigmoid(F.linear(x, layer.gate.weight, layer.gate.bias))
    a = torch.exp(-rate).expand_as(x)
    expected = reference.pcr.linear_recurrence(a, (1 - a) * x, initial, reverse=reverse)
    assert_matches(layer(x, initial), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gated", [False, True])
def test_states_stay_in_the_range_of_the_inputs(gated: bool) -> None:
    layer = LinearRecurrence(16, gated=gated, timescales=(0.5, 1e5))
    x = torch.randn(4, 1000, 16) * 3
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    states = layer(x)
    assert (states >= low - 1e-5).all()
    assert (states <= high + 1e-5).all()


def test_timescales_are_steps_until_one_over_e() -> None:
    layer = LinearRecurrence(3, timescales=(10.0, 1000.0))
    states = layer(torch.zeros(1, 1000, 3), torch.ones(3))[0]
    for channel, memory in enumerate((10, 100, 1000)):
        assert states[memory - 1, channel].item() == pytest.approx(
            torch.tensor(-1.0).exp().item(), 1e-3
        )


def test_it_learns_and_moves_and_saves() -> None:
    layer = LinearRecurrence(4, gated=True)
    layer(torch.randn(2, 10, 4)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    copy = LinearRecurrence(4, gated=True, timescales=(5.0, 5.0))
    copy.load_state_dict(layer.state_dict())
    x = torch.randn(2, 10, 4)
    assert torch.equal(copy(x), layer(x))
    assert layer.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert "4, gated=True, reverse=False" in repr(layer)


def test_autocast_and_compile() -> None:
    layer = LinearRecurrence(4, gated=True)
    x = torch.randn(2, 10, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x.bfloat16()).dtype == torch.float32
    compiled = torch.compile(layer, fullgraph=True)
    assert_matches(compiled(x), layer(x).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_states_stay_in_the_range_of_the_inputs(dtype: torch.dtype, gated: bool) -> None:
    layer = LinearRecurrence(4, gated=gated, timescales=(1000.0, 1000.0), dtype=dtype)
    x = torch.rand(1, 20000, 4, dtype=dtype)
    initial = torch.full((4,), 0.5, dtype=dtype)
    states = layer(x, initial)
    assert states.dtype == dtype
    assert (states >= x.amin()).all()
    assert (states <= x.amax()).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_states_are_those_of_float32_rounded_once(dtype: torch.dtype) -> None:
    layer, wide = LinearRecurrence(4, dtype=dtype), LinearRecurrence(4)
    wide.load_state_dict(layer.state_dict())
    x, initial = torch.randn(2, 500, 4).to(dtype), torch.randn(4).to(dtype)
    assert torch.equal(layer(x, initial), wide(x.float(), initial.float()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("timescale", [1e5, 1e6, 2.0**23])
def test_a_constant_input_keeps_its_state(timescale: float, dtype: torch.dtype) -> None:
    # The weights have the sum 1 even where the gate has only a few bits left below 1.
    layer = LinearRecurrence(4, timescales=(timescale, timescale), dtype=dtype)
    x = torch.tensor([1.0, -0.7, 3e4, 1e-3], dtype=dtype)
    assert torch.equal(layer(x.expand(1, 5000, 4), x), x.expand(1, 5000, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_limits_of_the_timescales_train(dtype: torch.dtype) -> None:
    wide = dtype == torch.float64
    limits = (1 / 708, 2.0**52) if wide else (1 / 87, 2.0**23)
    layer = LinearRecurrence(2, timescales=limits, dtype=dtype)
    assert layer.decay.isfinite().all()
    gates = torch.exp(-F.softplus(layer.decay.double() if wide else layer.decay.float()))
    assert ((gates > 0) & (gates < 1)).all()
    assert layer(torch.ones(1, 4, 2, dtype=dtype)).isfinite().all()


def test_dtypes_are_promoted() -> None:
    x, initial = torch.randn(1, 5, 3), torch.randn(3)
    assert LinearRecurrence(3, dtype=torch.bfloat16)(x, initial).dtype == torch.float32
    assert LinearRecurrence(3)(x.bfloat16(), initial.bfloat16()).dtype == torch.float32
    assert LinearRecurrence(3, dtype=torch.bfloat16)(x.bfloat16(), initial).dtype == torch.bfloat16
    assert LinearRecurrence(3, dtype=torch.float64)(x, initial).dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 3.5}, "channels must be an int, got float"),
        ({"channels": "3"}, "channels must be an int, got str"),
        ({"channels": True}, "channels must be an int, got bool"),
        ({"gated": 1}, "gated must be a bool, got int"),
        ({"reverse": "no"}, "reverse must be a bool, got str"),
        ({"timescales": 3.0}, r"timescales must be \(shortest, longest\), got float"),
        ({"timescales": ("1", 2.0)}, "timescales must be two numbers, got str"),
        ({"dtype": torch.int64}, "dtype must be float32, .* got torch.int64"),
    ],
)
def test_wrong_types(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"LinearRecurrence: {message}"):
        LinearRecurrence(**{"channels": 3, **arguments})


@pytest.mark.parametrize(
    "timescales",
    [
        (0.0, 1.0),
        (2.0, 1.0),
        (-1.0, 1.0),
        (1.0, math.inf),
        (math.nan, 1.0),
        (1.0, math.nan),
        (1e-3, 1.0),
        (1 / 89, 1.0),
        (1.0, 1e7),
    ],
)
def test_timescales_out_of_range(timescales: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"timescales must be .* <= shortest <= longest <= 8\.39e"):
        LinearRecurrence(2, timescales=timescales)


def test_errors() -> None:
    with pytest.raises(ValueError, match="channels must be positive, got 0"):
        LinearRecurrence(0)
    with pytest.raises(ValueError, match=r"timescales must be \(shortest, longest\), got 3 values"):
        LinearRecurrence(2, timescales=(1.0, 2.0, 3.0))  # type: ignore[arg-type]
    layer = LinearRecurrence(3)
    for shape in [(3,), (2, 5, 4)]:
        with pytest.raises(ValueError, match=r"input must have shape \(\.\.\., T, 3\)"):
            layer(torch.zeros(shape))
    x = torch.zeros(1, 5, 3)
    with pytest.raises(TypeError, match=r"input must be a torch\.Tensor, got list"):
        layer([[1.0, 2.0, 3.0]])
    with pytest.raises(TypeError, match=r"LinearRecurrence: input must be float32, .* got int64"):
        layer(x.long())
    with pytest.raises(TypeError, match=r"initial must be a torch\.Tensor, got list"):
        layer(x, [1.0, 2.0, 3.0])
    with pytest.raises(TypeError, match="initial must be float32 for x of float32, got float64"):
        layer(x, torch.zeros(3, dtype=torch.float64))
