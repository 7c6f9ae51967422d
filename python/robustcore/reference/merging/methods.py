"""Merging methods in plain PyTorch, whole models in memory: formulas to test against.

Models are state dicts of floating-point tensors; results are float32 or float64. Random drops are
those of the kernel (:func:`.weights.random_words`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .masks import tall_mask
from .weights import random_words

__all__ = [
    "breadcrumbs",
    "consensus_vector",
    "dare",
    "della",
    "flat",
    "lines_alpha",
    "per_tensor",
    "slerp",
    "ties_global",
    "ties_lora",
    "ties_per_tensor",
    "top",
]

StateDict = Mapping[str, Tensor]


def flat(model: StateDict) -> Tensor:
    """All tensors in flat order, in float32 or float64."""
    return torch.cat([_wide(model[key]).reshape(-1) for key in sorted(model)])


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def per_tensor(
    base: StateDict,
    models: Sequence[StateDict],
    combine: Callable[[Tensor, list[Tensor]], Tensor],
) -> dict[str, Tensor]:
    """``combine(theta_0, [tau_t])`` of each tensor is what is added to the base."""
    merged = {}
    for key in base:
        start = _wide(base[key])
        merged[key] = start + combine(start, [_wide(model[key]) - start for model in models])
    return merged


def top(vector: Tensor, count: int, skip: int = 0) -> Tensor:
    """The ``count`` largest magnitudes after the first ``skip``, of equal ones the first."""
    order = vector.reshape(-1).abs().sort(descending=True, stable=True).indices
    kept = torch.zeros(vector.numel(), dtype=torch.bool)
    kept[order[skip : skip + count]] = True
    return vector.where(kept.view(vector.shape), 0)


def ties_global(vectors: Tensor, density: float, merge: str = "mean") -> Tensor:
    """TIES of flat task vectors [T, P] as the authors compute it; the merged vector [P]."""
    size = vectors.shape[1]
    smallest = size - int(size * density)
    trimmed = vectors
    if smallest >= 1:
        threshold = vectors.abs().kthvalue(smallest, dim=1, keepdim=True).values
        trimmed = vectors.where(vectors.abs() >= threshold, 0)
    sign = trimmed.sum(0).sign()
    sign = torch.where(sign == 0, sign.sum().sign(), sign)
    agreeing = trimmed.where(torch.where(sign > 0, trimmed > 0, trimmed < 0) & (sign != 0), 0)
    if merge == "sum":
        return agreeing.sum(0)
    if merge == "max":
        return agreeing.abs().max(0).values * sign
    return agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)


def ties_per_tensor(vectors: Sequence[Tensor], density: float, weights: Sequence[float]) -> Tensor:
    """TIES of one tensor, votes and divisor weighted (mergekit)."""
    kept = torch.stack([top(vector, int(density * vector.numel())) for vector in vectors])
    return _elect_weighted(kept, weights)


def _elect_weighted(kept: Tensor, weights: Sequence[float]) -> Tensor:
    factor = torch.tensor(weights, dtype=kept.dtype).view(-1, *[1] * (kept.dim() - 1))
    weighted = kept * factor
    sign = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agrees = kept.sign() == sign
    divisor = (factor * agrees).sum(0)
    return (weighted * agrees).sum(0) / divisor.where(divisor.abs() >= 1e-8, 1)


def ties_lora(vectors: Sequence[Tensor], density: float, weights: Sequence[float]) -> Tensor:
    """TIES of one tensor, votes before weights, divided by the number that agree (PEFT)."""
    kept = torch.stack([top(vector, int(density * vector.numel())) for vector in vectors])
    factor = torch.tensor(weights, dtype=kept.dtype).view(-1, *[1] * (kept.dim() - 1))
    agrees = kept.sign() == torch.where(kept.sum(0) >= 0, 1.0, -1.0)
    return (kept * factor * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def dare(vector: Tensor, density: float, seed: int, task: int, start: int) -> Tensor:
    """What a random drop leaves of a task vector whose flat index begins at ``start``."""
    words = random_words(seed, task, start, vector.numel()).view(vector.shape)
    return vector.where(words < int(density * 2**32), 0)


def della(
    vector: Tensor, density: float, epsilon: float, seed: int, task: int, start: int
) -> Tensor:
    """DELLA of one tensor, rescaled."""
    rows = vector.reshape(1, -1) if vector.dim() < 2 else vector.reshape(-1, vector.shape[-1])
    width = rows.shape[1]
    if width <= 1:
        return vector
    words = random_words(seed, task, start, vector.numel()).view(rows.shape)
    kept = torch.zeros_like(rows)
    for number, row in enumerate(rows):
        for rank, place in enumerate(row.abs().sort(stable=True).indices.tolist()):
            chance = density - epsilon + 2 * epsilon * rank / (width - 1)
            if words[number, place] < int(chance * 2**32):
                kept[number, place] = row[place] / chance
    return kept.view(vector.shape)


def breadcrumbs(vector: Tensor, density: float, gamma: float) -> Tensor:
    """One tensor without its largest and its smallest magnitudes."""
    size = vector.numel()
    count, skip = int(density * size), int(gamma * size)
    return top(vector, count, max(0, min(skip, size - count)))


def consensus_vector(
    base: Tensor, models: Sequence[Tensor], merged: Tensor, lambdas: Sequence[float], k: int
) -> Tensor:
    """The merged vector where at least k TALL-masks keep it."""
    masks = [
        tall_mask(base, model, merged, value) for model, value in zip(models, lambdas, strict=True)
    ]
    return merged.where(torch.stack(masks).sum(0) >= k, 0)


def lines_alpha(vectors: Sequence[Tensor], merged: Tensor) -> float:
    """The alpha of LiNeS from flat vectors, in float64."""
    summed = torch.stack([vector.double() for vector in vectors]).sum(0)
    return float(summed.abs().sum() / merged.double().abs().sum() / len(vectors))


def slerp(first: Tensor, second: Tensor, t: float, parallel: float = 0.9995) -> Tensor:
    """Interpolation of one tensor along an arc."""
    cosine = float(
        (first.double() * second.double()).sum() / first.double().norm() / second.double().norm()
    )
    if abs(cosine) > parallel:
        return (1 - t) * first + t * second
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle)
