"""Model merging in plain PyTorch. Arguments are documented in :mod:`robustcore.merging`.

The functions on packed masks mirror the operators: lists are models in flat order, masks are rows
of int64 words whose bit ``i`` of word ``w`` is parameter ``64 w + i``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._checks import accumulate_dtype
from ..._reference import use_reference

if TYPE_CHECKING:
    from ...merging import TallMasks
    from ...merging.state_dict import Model

__all__ = [
    "mask_apply",
    "mask_apply_",
    "mask_consensus",
    "mask_counts",
    "mask_histogram",
    "mask_multiply",
    "mask_overlap",
    "mask_select",
    "mask_switch_",
    "mask_unpack",
    "pack_bits",
    "pack_words",
    "tall_mask",
    "tall_mask_codes",
    "tall_masks",
    "tall_masks_eager",
    "unpack_words",
]


def tall_masks(
    base: Model,
    finetuned: Sequence[Model] | Mapping[str, Model],
    *,
    lambdas: Sequence[float] = (0.2, 0.3, 0.4, 0.5, 0.6),
    merged: Model | None = None,
    comparison: str = "strict",
) -> TallMasks:
    """Reference of :func:`robustcore.merging.tall_masks`."""
    from ... import merging

    with use_reference():
        return merging.tall_masks(
            base, finetuned, lambdas=lambdas, merged=merged, comparison=comparison
        )


def tall_mask(
    base: Tensor, finetuned: Tensor, merged: Tensor, lambda_: float, *, strict: bool = True
) -> Tensor:
    """The mask of one task and one λ, as the authors compute it in weight space."""
    own = (base - finetuned).abs()
    others = ((base + merged) - finetuned).abs()
    return own > others * lambda_ if strict else own >= others * lambda_


def summed_task_vectors(base: Tensor, finetuned: Sequence[Tensor]) -> Tensor:
    """((τ1 + τ2) + τ3) + ..., one task after the other."""
    total = finetuned[0] - base
    for tensor in finetuned[1:]:
        total = total + (tensor - base)
    return total


def tall_mask_codes(
    base: Sequence[Tensor],
    finetuned: Sequence[Tensor],
    merged: Sequence[Tensor],
    tasks: int,
    lambdas: Sequence[float],
    strict: bool,
) -> tuple[Tensor, Tensor]:
    """Planes of the number of λ passed, int64 [T, B, words], and how many pass each λ, [T, L]."""
    passed = []  # [T, L, size] of each tensor
    for index, start in enumerate(base):
        compute = accumulate_dtype(start.dtype)
        start = start.detach().to(compute).reshape(-1)
        rows = [row.detach().to(compute).reshape(-1) for row in finetuned[index :: len(base)]]
        total = merged[index].detach().reshape(-1) if merged else summed_task_vectors(start, rows)
        masks = [
            torch.stack([tall_mask(start, row, total, value, strict=strict) for value in lambdas])
            for row in rows
        ]
        passed.append(torch.stack(masks))
    bits = torch.cat(passed, dim=2)
    number = bits.sum(1, dtype=torch.uint8)
    planes = [(number >> bit) & 1 for bit in range(len(lambdas).bit_length())]
    return pack_words(torch.stack(planes, 1)), bits.sum(2)


def pack_bits(mask: Tensor) -> Tensor:
    """Booleans [..., P] as uint8 [..., ceil(P / 8)]: bit i of byte j is element 8 j + i."""
    padded = F.pad(mask.to(torch.uint8), (0, -mask.shape[-1] % 8))
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (padded.unflatten(-1, (-1, 8)) * weights).sum(-1, dtype=torch.uint8)


def pack_words(mask: Tensor) -> Tensor:
    """Booleans [..., P] as int64 words [..., ceil(P / 64)]."""
    shape = (*mask.shape[:-1], (mask.shape[-1] + 63) // 64)
    if 0 in shape:
        return torch.zeros(shape, dtype=torch.int64, device=mask.device)
    padded = F.pad(mask.to(torch.uint8), (0, -mask.shape[-1] % 64))
    return pack_bits(padded).view(torch.int64)


def unpack_words(words: Tensor, parameters: int) -> Tensor:
    """Words [..., W] as booleans [..., parameters]."""
    shifts = torch.arange(64, device=words.device)
    bits = (words.unsqueeze(-1) >> shifts) & 1
    return bits.flatten(-2)[..., :parameters].bool()


def mask_select(codes: Tensor, ranks: Sequence[int]) -> Tensor:
    bits = unpack_words(codes, 64 * codes.shape[2])
    weights = 1 << torch.arange(codes.shape[1], device=codes.device)
    number = (bits * weights[:, None]).sum(1)
    return pack_words(number >= torch.tensor(ranks, device=codes.device)[:, None])


def mask_unpack(mask: Tensor, parameters: int) -> Tensor:
    return unpack_words(mask, parameters)


def mask_counts(masks: Tensor, parameters: int) -> Tensor:
    return unpack_words(masks, parameters).sum(0, dtype=torch.int32)


def mask_histogram(masks: Tensor, parameters: int) -> Tensor:
    return torch.bincount(mask_counts(masks, parameters), minlength=masks.shape[0] + 1)


def mask_overlap(masks: Tensor) -> Tensor:
    kept = unpack_words(masks, 64 * masks.shape[1])
    rows = [(row & kept).sum(1) for row in kept]
    return torch.stack(rows) if rows else masks.new_zeros((0, 0))


def mask_consensus(masks: Tensor, least: int) -> Tensor:
    return pack_words(mask_counts(masks, 64 * masks.shape[1]) >= least)


def _kept_like(tensors: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
    sizes = [tensor.numel() for tensor in tensors]
    pieces = unpack_words(mask, sum(sizes)).split(sizes)
    return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def mask_apply(base: Sequence[Tensor], merged: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
    return [
        torch.where(kept, (start.to(change.dtype) + change).to(start.dtype), start)
        for start, change, kept in zip(base, merged, _kept_like(base, mask), strict=True)
    ]


def mask_apply_(base: Sequence[Tensor], merged: Sequence[Tensor], mask: Tensor) -> None:
    for start, result in zip(base, mask_apply(base, merged, mask), strict=True):
        start.copy_(result)


def mask_switch_(
    weights: Sequence[Tensor],
    base: Sequence[Tensor],
    merged: Sequence[Tensor],
    before: Tensor,
    after: Tensor,
) -> None:
    differs = _kept_like(weights, before ^ after)
    results = mask_apply(base, merged, after)
    for weight, result, rewritten in zip(weights, results, differs, strict=True):
        weight.copy_(torch.where(rewritten, result.view_as(weight), weight))


def mask_multiply(tensors: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
    return [
        torch.where(kept, tensor, torch.zeros_like(tensor))
        for tensor, kept in zip(tensors, _kept_like(tensors, mask), strict=True)
    ]


def tall_masks_eager(
    base: Tensor, finetuned: Sequence[Tensor], lambdas: Sequence[float]
) -> list[list[Tensor]]:
    """What a user writes without robustcore, the baseline of benchmarks: per task and λ one packed
    uint8 mask of flat float vectors."""
    total = summed_task_vectors(base, finetuned)
    return [
        [pack_bits(tall_mask(base, row, total, value)) for value in lambdas] for row in finetuned
    ]
