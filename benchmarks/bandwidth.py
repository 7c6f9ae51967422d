"""The bandwidths of this machine, measured in the same rounds as the contestants.

The copy writes a fresh buffer, as the operators' outputs are fresh; on Linux it is advised to use
huge pages, as the library does for its outputs. The read is a sum over all elements.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["advised_empty_like", "copy_call", "probe_source", "read_call"]

_HUGE_PAGE = 2 << 20
_MADV_HUGEPAGE = 14


def probe_source(device: str) -> torch.Tensor:
    """What the probes read: far larger than any cache."""
    numel = (32 << 20) if device == "cpu" else (256 << 20)
    return torch.ones(numel, dtype=torch.float32, device=device)


def advised_empty_like(source: torch.Tensor) -> torch.Tensor:
    """``torch.empty_like``, under the page advice that large outputs of the library get."""
    fresh = torch.empty_like(source)
    madvise = _madvise()
    if madvise is not None and fresh.device.type == "cpu":
        begin = (fresh.data_ptr() + _HUGE_PAGE - 1) & ~(_HUGE_PAGE - 1)
        end = (fresh.data_ptr() + fresh.nbytes) & ~(_HUGE_PAGE - 1)
        if end > begin:
            madvise(begin, end - begin, _MADV_HUGEPAGE)
    return fresh


def copy_call(source: torch.Tensor) -> Callable[..., Any]:
    """One copy: ``2 * source.nbytes`` bytes."""
    return lambda *_: advised_empty_like(source).copy_(source)


def read_call(source: torch.Tensor) -> Callable[..., Any]:
    """One reduction over everything: ``source.nbytes`` bytes."""
    return lambda *_: source.sum()


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_int
    return function
