"""Weights of samples from the energy of their logits in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._checks import accumulate_dtype

__all__ = ["energy_weights"]


@torch.no_grad()
def energy_weights(logits: Tensor, *, dim: int = -1) -> Tensor:
    """Reference of :func:`robustcore.losses.energy_weights`."""
    energy = -logits.to(accumulate_dtype(logits.dtype)).logsumexp(dim)
    # torch's softplus drops the exponential above 20.
    return 1 / torch.logaddexp(energy.abs(), torch.zeros_like(energy))
