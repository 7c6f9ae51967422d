"""Argument checks that operators share. Order: type, device, dtype, shape, range.

Messages read ``operator: argument must be <expected>, got <what came>``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = [
    "FLOATING_DTYPES",
    "accumulate_dtype",
    "autocast_enabled",
    "check_choice",
    "check_device",
    "check_dtype_of",
    "check_floating",
    "check_int64",
    "check_shape",
    "check_tensor",
    "dtype_name",
]

FLOATING_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_FLOATING = frozenset(FLOATING_DTYPES)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that tensors of ``dtype`` are computed in: float64 stays, the rest is float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def autocast_enabled(device: torch.device) -> bool:
    """Whether autocast is on for a device. For meta tensors, PyTorch refuses to say: it is off."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def check_tensor(op: str, name: str, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout is not torch.strided:
        raise TypeError(f"{op}: {name} must be a dense (strided) tensor, got {value.layout}")


def check_int64(op: str, name: str, value: Any) -> None:
    # Symbolic integers of traced programs pass as what they stand for.
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{op}: {name} must fit into 64 bits, got {value}")


def check_device(op: str, name: str, tensor: torch.Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{op}: {name} must be on {device}, got {tensor.device}")


def check_floating(op: str, name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype not in _FLOATING:
        raise TypeError(
            f"{op}: {name} must be float32, float64, bfloat16 or float16, got "
            f"{dtype_name(tensor.dtype)}"
        )


def check_dtype_of(
    op: str, name: str, tensor: torch.Tensor, other: str, dtype: torch.dtype
) -> None:
    """``tensor`` must have the ``dtype`` of the argument ``other``."""
    if tensor.dtype is not dtype:
        raise TypeError(
            f"{op}: {name} must have the dtype of {other} ({dtype_name(dtype)}), got "
            f"{dtype_name(tensor.dtype)}"
        )


def check_shape(op: str, name: str, tensor: torch.Tensor, shape: Sequence[int]) -> None:
    if tensor.shape != torch.Size(shape):
        raise ValueError(f"{op}: {name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")


def check_choice(op: str, name: str, value: Any, choices: Sequence[Any]) -> None:
    if value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{op}: {name} must be one of {allowed}, got {value!r}")
