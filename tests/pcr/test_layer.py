"""The module LinearRecurrence."""

from __future__ import annotations

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


def test_errors() -> None:
    with pytest.raises(ValueError, match="channels must be positive, got 0"):
        LinearRecurrence(0)
    for timescales in [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0)]:
        with pytest.raises(ValueError, match="0 < shortest <= longest"):
            LinearRecurrence(2, timescales=timescales)
    layer = LinearRecurrence(3)
    for shape in [(3,), (2, 5, 4)]:
        with pytest.raises(ValueError, match=r"input must have shape \(\.\.\., T, 3\)"):
            layer(torch.zeros(shape))
