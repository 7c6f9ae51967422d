"""Models of many tensors, as benchmarks of the merging family need them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LARGE_PARAMETERS", "random_model"]

# The size of a MiniLM encoder, whose tensors this resembles: most of them small.
LARGE_PARAMETERS = 22_700_000
_TENSORS = 100


def random_model(
    parameters: int, generator: torch.Generator, device: str, scale: float = 0.02
) -> dict[str, Tensor]:
    """A state dict of ``parameters`` random weights: every fourth tensor is large."""
    large = max(1, parameters // (_TENSORS // 4 + _TENSORS // 64))
    sizes = [large if index % 4 == 0 else large // 64 for index in range(_TENSORS)]
    sizes[0] += parameters - sum(sizes)
    return {
        f"tensor{index:03}": scale * torch.randn(size, generator=generator, device=device)
        for index, size in enumerate(sizes)
    }
