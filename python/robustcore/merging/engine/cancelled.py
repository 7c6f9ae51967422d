"""Parameters whose votes cancel out, where the majority of the whole model decides.

What they become is found for each outcome while their weights are in memory, and written when the
outcome is known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..recipe import Recipe
from .chunks import Slice
from .pieces import Pieces, TensorFacts

__all__ = ["MARK", "Undecided", "can_mark", "resolve"]

#: kMarkCancelled of ``csrc/merging/merge_weights.h``.
MARK = 2

# More than this in one chunk are not remembered: the chunk is merged again.
_MOST = 1 << 16


@dataclass(frozen=True)
class Undecided:
    """Some parameters of a tensor, and what they are if the majority is -1 or 1."""

    key: str
    places: list[int]
    negative: list[float]
    positive: list[float]

    def as_json(self) -> list[Any]:
        return [self.key, self.places, self.negative, self.positive]


def can_mark(recipe: Recipe, facts: Sequence[TensorFacts]) -> bool:
    """Whether a parameter's result depends on nothing but its own weights."""
    counts = any(0 < low < 2**63 - 1 or high for e in facts for _, low, _, high in e.windows)
    return recipe.drop is None and not counts


def resolve(
    pieces: Pieces, recipe: Recipe, facts: Sequence[TensorFacts], out: Sequence[Tensor]
) -> list[Undecided] | None:
    """Replaces the marks in ``out`` by what they are if nobody is elected.

    Returns:
        What is still to be decided; None if that is too much to remember.
    """
    found = []
    for index, values in enumerate(out):
        places = values.isnan().nonzero().squeeze(1)
        if not places.numel():
            continue
        if places.numel() > _MOST:
            return None
        few = _gathered(pieces.select([index]), places)
        results = {}
        for sign in (-1, 0, 1):
            result = values.new_empty(places.numel())
            few.merge(recipe, [dataclasses.replace(facts[index])], [result], zero_sign=sign)
            results[sign] = result
        values[places] = results[0]
        start, key = pieces.slices[index].start, pieces.slices[index].tensor.key
        found.append(
            Undecided(
                key,
                (places + start).tolist(),
                results[-1].double().tolist(),
                results[1].double().tolist(),
            )
        )
    return found


def _gathered(pieces: Pieces, places: Tensor) -> Pieces:
    """A piece of only some parameters, wherever they are."""
    (piece,) = pieces.slices
    return Pieces(
        (Slice(piece.tensor, 0, places.numel()),),
        [values[places] for values in pieces.base],
        [values[places] for values in pieces.tasks],
        pieces.vectors,
    )
