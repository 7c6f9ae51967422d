"""What autograd is told about operators that have no derivative."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["register_without_gradient"]


def _tensors(arguments: Iterable[Any]) -> Iterable[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from (item for item in argument if isinstance(item, Tensor))


def register_without_gradient(name: str, *, counts: bool, overwrites: bool) -> None:
    """Registers ``robustcore::name`` for autograd.

    Args:
        counts: Results are constants whatever the inputs are; otherwise the operator refuses inputs
            that require grad while gradients are recorded, rather than lose them.
        overwrites: The first argument is overwritten: its version goes up.
    """
    operator = getattr(torch.ops.robustcore, name).default

    def with_autograd(*arguments: Any) -> Any:
        needs_grad = any(tensor.requires_grad for tensor in _tensors(arguments))
        if not counts and needs_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{name}: tensors must not require grad while gradients are recorded"
            )
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    def with_versions(*arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            result = operator(*arguments)
        torch.autograd.graph.increment_version(
            [tensor for tensor in _tensors(arguments[:1]) if not tensor.is_inference()]
        )
        return result

    _library.impl(name, with_autograd, "Autograd")
    if overwrites:
        _library.impl(name, with_versions, "ADInplaceOrView")


# Kept: registrations end with the object that made them.
_library = torch.library.Library("robustcore", "IMPL")
