"""Counter-based random numbers: where seeds come from, and the operator that makes numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import check_int64, check_tensor
from ._library import Operator

__all__ = ["counter_normal_operator", "seed_tensor"]

# Signed 64-bit ranges overflow in traced programs; 62 bits are seed enough.
_DRAWN_SEEDS = 2**62


def seed_tensor(op: str, seed: int | Tensor | None, device: torch.device) -> Tensor:
    """The seed of an operator as an int64 tensor of one element.

    None draws one from PyTorch's default CPU generator: reproducible under
    :func:`torch.manual_seed`, without a synchronisation, and part of a traced program.
    """
    if seed is None:
        return torch.randint(_DRAWN_SEEDS, (1,))
    if isinstance(seed, Tensor):
        check_tensor(op, "seed", seed)
        if seed.device.type != "cpu" and seed.device != device:
            raise ValueError(f"{op}: seed must be on the CPU or on {device}, got {seed.device}")
        if seed.dtype is not torch.int64:
            raise TypeError(
                f"{op}: seed must be of dtype int64, got {str(seed.dtype).removeprefix('torch.')}"
            )
        if seed.numel() != 1:
            raise ValueError(f"{op}: seed must have one element, got shape {tuple(seed.shape)}")
        return seed.reshape(1)
    check_int64(op, "seed", seed)
    return torch.tensor([seed])


def _fake(first: Tensor, second: Tensor, seed: Tensor, count: int) -> Tensor:
    return first.new_empty((first.numel(), count), dtype=torch.float32)


counter_normal_operator = Operator("counter_normal", fake=_fake)
