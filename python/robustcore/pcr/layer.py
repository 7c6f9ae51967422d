"""A linear recurrent layer."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import FLOATING_DTYPES, accumulate_dtype, check_floating, check_tensor
from .linear_recurrence import linear_recurrence

__all__ = ["LinearRecurrence"]

_LAYER = "LinearRecurrence"


class LinearRecurrence(nn.Module):
    r"""A layer whose every channel is a leaky average with a learned memory.

    .. math::
        h_t = a_t \odot h_{t-1} + (1 - a_t) \odot x_t, \qquad
        a_t = \exp(-\mathrm{softplus}(d) \odot r_t)

    with a learned decay :math:`d` for each channel, so that gates stay between 0 and 1. Without
    gating :math:`r_t = 1`; with it :math:`r_t = \sigma(W x_t + b)`, and the layer chooses at each
    step what to keep. States never leave the range of the inputs and of the initial state (zero
    where there is none), but for rounding.

    Args:
        channels: Number of channels C.
        gated: Whether the gates depend on the input; adds a linear map of C × C weights.
        timescales: The shortest and the longest memory in steps at the start of training, both
            finite; the channels are spread evenly between their logarithms. The memory of a channel
            is the number of steps in which an ungated state falls to 1/e. In the precision of the
            gates (see Numerics) these must be above 0 and below 1 by at least one unit: memories
            from 1/87 to 2²³ steps in float32, from 1/708 to 2⁵² in float64.
        reverse: Run from the last step to the first. Two layers, one of them reversed, make a
            bidirectional one.
        device: Where the parameters are made.
        dtype: Of the parameters: float32, float64, bfloat16 or float16.

    Shape:
        - input ``(..., T, C)``, initial ``(..., C)`` or None (zeros)
        - output ``(..., T, C)``: all states, in the wider dtype of the input's and the parameters';
          the last one, ``output[..., -1, :]`` (``0`` where reversed), is the ``initial`` that
          continues the sequence

    Raises:
        TypeError: An argument has the wrong type, or a tensor the wrong dtype.
        ValueError: ``channels`` is not positive, ``timescales`` are out of range or out of order,
            or the last dimension of the input is not C.

    Numerics: 16-bit inputs and parameters are computed with in float32, and only the states are
    rounded: a gate of 0.999 would be 1 in bfloat16, and the state grow without bound. For the same
    reason :math:`1 - a_t` is taken from the rounded gate, exactly where that is at least 1/2, so
    that the two weights have the sum 1 whatever the memory. The recurrence is
    :func:`robustcore.pcr.linear_recurrence`: same bits in every run, NaN stays in its sequence and
    channel (with gating it reaches the other channels of its sequence through ``W``).

    Source: the gate is a simplification of the RG-LRU of De et al., Griffin, arXiv 2402.19427, with
    the input weighted as in Feng et al., Were RNNs All We Needed?, arXiv 2410.01201.

    Example:
        >>> import torch
        >>> from robustcore.pcr import LinearRecurrence
        >>> layer = LinearRecurrence(3, gated=True)
        >>> x = torch.randn(2, 10, 3)
        >>> h = layer(x)
        >>> rest = layer(x[:, 4:], initial=layer(x[:, :4])[:, -1])
        >>> torch.allclose(rest, h[:, 4:], atol=1e-6)
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        gated: bool = False,
        timescales: tuple[float, float] = (1.0, 1000.0),
        reverse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_type("channels", channels, int, "an int")
        if channels < 1:
            raise ValueError(f"{_LAYER}: channels must be positive, got {channels}")
        for name, flag in (("gated", gated), ("reverse", reverse)):
            if not isinstance(flag, bool):
                raise TypeError(f"{_LAYER}: {name} must be a bool, got {type(flag).__name__}")
        if dtype is None:
            dtype = torch.get_default_dtype()
        if dtype not in FLOATING_DTYPES:
            raise TypeError(
                f"{_LAYER}: dtype must be float32, float64, bfloat16 or float16, got {dtype}"
            )
        self.channels = channels
        self.timescales = _timescales(timescales, accumulate_dtype(dtype))
        self.reverse = reverse
        self.decay = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.gate = nn.Linear(channels, channels, device=device, dtype=dtype) if gated else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Spreads the memories; the gate starts as :class:`torch.nn.Linear` does."""
        shortest, longest = map(math.log, self.timescales)
        logarithms = torch.linspace(shortest, longest, self.channels, dtype=torch.float64)
        # softplus(decay) = 1 / memory
        decay = torch.log(torch.expm1(torch.exp(-logarithms)))
        with torch.no_grad():
            self.decay.copy_(decay)
        if self.gate is not None:
            self.gate.reset_parameters()

    def forward(self, input: Tensor, initial: Tensor | None = None) -> Tensor:
        check_tensor(_LAYER, "input", input)
        check_floating(_LAYER, "input", input)
        if input.dim() < 2 or input.shape[-1] != self.channels:
            raise ValueError(
                f"{_LAYER}: input must have shape (..., T, {self.channels}), got "
                f"{tuple(input.shape)}"
            )
        dtype = torch.promote_types(self.decay.dtype, input.dtype)
        compute = accumulate_dtype(dtype)
        log_a = -F.softplus(self.decay.to(compute))
        if self.gate is not None:
            log_a = log_a * torch.sigmoid(self.gate(input).to(compute))
        a = log_a.exp()
        x = (1 - a) * input.to(compute)
        if initial is None:
            initial = x.new_zeros(self.channels)
        else:
            check_tensor(_LAYER, "initial", initial)
            if initial.dtype in (dtype, input.dtype):
                initial = initial.to(compute)
        return linear_recurrence(a, x, initial, reverse=self.reverse).to(dtype)

    def extra_repr(self) -> str:
        return f"{self.channels}, gated={self.gate is not None}, reverse={self.reverse}"


def _check_type(name: str, value: Any, kind: type | tuple[type, ...], expected: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{_LAYER}: {name} must be {expected}, got {type(value).__name__}")


def _timescales(timescales: Any, gates: torch.dtype) -> tuple[float, float]:
    """The shortest and the longest memory, checked for gates exp(-1 / memory) of that dtype."""
    _check_type("timescales", timescales, (tuple, list), "(shortest, longest)")
    if len(timescales) != 2:
        raise ValueError(
            f"{_LAYER}: timescales must be (shortest, longest), got {len(timescales)} values"
        )
    for value in timescales:
        _check_type("timescales", value, (int, float), "two numbers")
    limits = torch.finfo(gates)
    least, most = -1 / math.log(limits.tiny), 1 / limits.eps
    shortest, longest = timescales
    if not least <= shortest <= longest <= most:
        raise ValueError(
            f"{_LAYER}: timescales must be (shortest, longest) with {least:.3g} <= shortest <= "
            f"longest <= {most:.3g}, got {tuple(timescales)}"
        )
    return float(shortest), float(longest)
