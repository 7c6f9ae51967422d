"""Linear recurrences in plain PyTorch. Arguments are documented in :mod:`robustcore.pcr`."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import accumulate_dtype

__all__ = ["linear_recurrence"]


def linear_recurrence(
    a: Tensor,
    x: Tensor,
    initial: Tensor | None = None,
    *,
    reverse: bool = False,
    time_dim: int = -2,
) -> Tensor:
    """Reference of :func:`robustcore.pcr.linear_recurrence`: the loop over time."""
    dtype = torch.promote_types(a.dtype, x.dtype)
    a, x = torch.broadcast_tensors(a, x)
    carry = accumulate_dtype(dtype)
    a_steps = a.to(carry).unbind(time_dim)
    x_steps = x.to(carry).unbind(time_dim)
    length = len(x_steps)
    if length == 0:
        return x.to(dtype, copy=True)

    h = None if initial is None else initial.to(carry)
    states = []
    for t in reversed(range(length)) if reverse else range(length):
        h = x_steps[t] if h is None else a_steps[t] * h + x_steps[t]
        states.append(h)
    if reverse:
        states.reverse()
    return torch.stack(states, time_dim).to(dtype)
