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

from ._without_gradient import register_without_gradient

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


register_without_gradient("merge_weights_", counts=False, overwrites=True)
register_without_gradient("magnitude_histogram_", counts=True, overwrites=True)
register_without_gradient("magnitude_ties", counts=True, overwrites=False)
register_without_gradient("compare_weights", counts=False, overwrites=False)
