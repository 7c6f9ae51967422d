"""Choosing the plain PyTorch reference instead of the compiled operators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from . import _C

__all__ = ["reference_forced", "use_reference", "wants_reference"]

# A plain global: torch.compile can guard on it, while it cannot trace a ContextVar.
_depth = 0

# Devices with compiled kernels. "meta" tensors go to the operators too: they have shape functions.
_KERNEL_DEVICES = frozenset(
    {"cpu", "meta", "cuda"} if _C.build_information()["cuda"] else {"cpu", "meta"}
)


@contextlib.contextmanager
def use_reference() -> Iterator[None]:
    """Inside this context every public function runs its plain PyTorch reference.

    For comparing results, and for telling a suspected kernel bug from a bug elsewhere. It holds for
    the whole process, all threads included, and may be nested.

    Example:
        >>> import torch, robustcore
        >>> a, x = torch.rand(2, 5, 3), torch.rand(2, 5, 3)
        >>> with robustcore.use_reference():
        ...     expected = robustcore.pcr.linear_recurrence(a, x)
        >>> torch.testing.assert_close(robustcore.pcr.linear_recurrence(a, x), expected)
    """
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def reference_forced() -> bool:
    """Whether :func:`use_reference` is active."""
    return _depth > 0


def wants_reference(tensor: torch.Tensor) -> bool:
    """Whether a call on ``tensor`` must run the reference: forced, or no kernel for its device."""
    return _depth > 0 or tensor.device.type not in _KERNEL_DEVICES
