"""Scaling of ready-made gradients, in place and without looking at the factor from the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _library

__all__ = ["scale_"]

_raw = torch.ops.robustcore.scale_.default
torch.library.register_fake("robustcore::scale_", lambda tensors, factor: None)


def scale_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiplies each tensor by the scalar ``factor``; where that is one, nothing is touched."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, factor)):
        raise RuntimeError("scale_: tensors and factor must not require grad: it has no derivative")
    with _library.below_autograd():
        _raw(tensors, factor)
    for tensor in tensors:
        torch.autograd.graph.increment_version(tensor)


# A raw call takes the same way. Kept: registrations end with the object that made them.
_registration = torch.library.Library("robustcore", "IMPL")
_registration.impl("scale_", scale_, "Autograd")
