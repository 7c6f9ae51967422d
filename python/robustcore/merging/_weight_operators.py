"""Shape functions of the operators that merge weights, and what autograd is told about them.

They overwrite what they are given or answer with sums, and have no derivative: called with tensors
that require grad they refuse while gradients are recorded, rather than lose them. Counts are
constants for autograd.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_BLOCK = 4096
_COUNTERS = 6
_SUMS = 10


def _blocks(tensors: Iterable[Tensor]) -> int:
    return sum((tensor.numel() + _BLOCK - 1) // _BLOCK for tensor in tensors)


@torch.library.register_fake("robustcore::merge_weights_")
def _(out: Any, base: Any, finetuned: Any, rescale: Any, *tables_and_options: Any) -> Any:
    like = base[0] if base else rescale
    return like.new_empty((len(base), _COUNTERS), dtype=torch.int64)


@torch.library.register_fake("robustcore::magnitude_histogram_")
def _(counts: Any, base: Any, finetuned: Any, vectors: Any, upper: Any) -> None:
    return None


@torch.library.register_fake("robustcore::magnitude_ties")
def _(base: Any, finetuned: Any, vectors: Any, windows: Any) -> Any:
    return base[0].new_empty((_blocks(base), len(vectors), 2), dtype=torch.int64)


@torch.library.register_fake("robustcore::compare_weights")
def _(first: Any, second: Any) -> Any:
    return first[0].new_empty((_blocks(first), _SUMS), dtype=torch.float64)


def _tensors(arguments: Iterable[Any]) -> Iterable[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from (item for item in argument if isinstance(item, Tensor))


def _register(name: str, *, counts: bool, overwrites: bool) -> None:
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
_register("merge_weights_", counts=False, overwrites=True)
_register("magnitude_histogram_", counts=True, overwrites=True)
_register("magnitude_ties", counts=True, overwrites=False)
_register("compare_weights", counts=False, overwrites=False)
