"""A linear recurrent layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear_recurrence import linear_recurrence

__all__ = ["LinearRecurrence"]


class LinearRecurrence(nn.Module):
    r"""A layer whose every channel is a leaky average with a learned memory.

    .. math::
        h_t = a_t \odot h_{t-1} + (1 - a_t) \odot x_t, \qquad
        a_t = \exp(-\mathrm{softplus}(d) \odot r_t)

    with a learned decay :math:`d` for each channel, so that gates stay between 0 and 1. Without
    gating :math:`r_t = 1`; with it :math:`r_t = \sigma(W x_t + b)`, and the layer chooses at each
    step what to keep. States never leave the range of the inputs (and of the initial state).

    Args:
        channels: Number of channels C.
        gated: Whether the gates depend on the input; adds a linear map of C × C weights.
        timescales: The shortest and the longest memory in steps at the start of training, both
            positive; the channels are spread evenly between their logarithms. The memory of a
            channel is the number of steps in which an ungated state falls to 1/e.
        reverse: Run from the last step to the first. Two layers, one of them reversed, make a
            bidirectional one.
        device: Where the parameters are made.
        dtype: Of the parameters.

    Shape:
        - input ``(..., T, C)``, initial ``(..., C)`` or None (zeros)
        - output ``(..., T, C)``: all states; the last one, ``output[..., -1, :]`` (``0`` where
          reversed), is the ``initial`` that continues the sequence

    Raises:
        ValueError: ``channels`` or ``timescales`` are not positive, or the last dimension of the
            input is not C.

    Numerics: :math:`1 - a_t` is formed without cancellation, as ``-expm1(log a_t)``. The recurrence
    is :func:`robustcore.pcr.linear_recurrence`: same bits in every run, NaN stays in its sequence
    and channel (with gating it reaches the other channels of its sequence through ``W``).

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
        if channels < 1:
            raise ValueError(f"LinearRecurrence: channels must be positive, got {channels}")
        shortest, longest = timescales
        if not 0 < shortest <= longest:
            raise ValueError(
                "LinearRecurrence: timescales must be (shortest, longest) with 0 < shortest <= "
                f"longest, got {timescales}"
            )
        self.channels = channels
        self.timescales = (shortest, longest)
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
        if input.dim() < 2 or input.shape[-1] != self.channels:
            raise ValueError(
                f"LinearRecurrence: input must have shape (..., T, {self.channels}), got "
                f"{tuple(input.shape)}"
            )
        log_a = -F.softplus(self.decay)
        if self.gate is not None:
            log_a = log_a * torch.sigmoid(self.gate(input))
        x = -torch.expm1(log_a) * input
        if initial is None:
            initial = x.new_zeros(self.channels)
        return linear_recurrence(log_a.exp(), x, initial, reverse=self.reverse)

    def extra_repr(self) -> str:
        return f"{self.channels}, gated={self.gate is not None}, reverse={self.reverse}"
