"""What a merge does to every parameter: the options of the fused kernel, before any data is seen.

A named method is a function from its options to a :class:`Recipe`; see :mod:`.methods`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Consensus",
    "DepthScale",
    "Drop",
    "Election",
    "Mixing",
    "Recipe",
    "Reduction",
    "Rescale",
    "Undecided",
    "Window",
]


class Election(enum.IntEnum):
    """Whose sign the terms of a parameter have to agree with (``csrc/merging/merge_weights.h``)."""

    NONE = 0
    SUM = 1
    WEIGHTED_SUM = 2
    COUNT = 3


class Reduction(enum.IntEnum):
    """What becomes of the terms that take part."""

    SUM = 0
    MEAN = 1
    WEIGHTED_MEAN = 2
    LARGEST = 3


class Undecided(enum.Enum):
    """What is elected where the votes for a parameter cancel out."""

    NOBODY = 0
    POSITIVE = 1
    NEGATIVE = -1
    MAJORITY = None  # the sign that most parameters of the model elected


class Rescale(enum.Enum):
    """What makes up for the entries of a task vector that were dropped."""

    NONE = "none"
    DENSITY = "density"  # 1 / density
    L1 = "l1"  # the ratio of the tensor's L1 norms before and after


@dataclass(frozen=True)
class Window:
    """Which magnitudes of a task vector stay.

    Attributes:
        density: Share that stays.
        top: Share of the largest magnitudes that is dropped first (breadcrumbs).
        scope: ``"tensor"`` or ``"model"``: within what magnitudes are ranked.
        exact: Exactly ``int(density * n)`` stay, those of equal magnitude in flat order; otherwise
            everything from the ``int(density * n) + 1``-th largest magnitude on, with all ties.
    """

    density: float
    top: float = 0.0
    scope: str = "tensor"
    exact: bool = True


@dataclass(frozen=True)
class Drop:
    """Random drop: an entry stays with probability ``density``.

    With ``epsilon`` the probability goes by the rank of its magnitude in its row, from ``density -
    epsilon`` for the smallest to ``density + epsilon`` for the largest (DELLA).
    """

    density: float
    seed: int = 0
    epsilon: float | None = None


@dataclass(frozen=True)
class Consensus:
    """Only parameters that at least ``k`` TALL-masks keep are changed."""

    lambdas: tuple[float, ...]
    k: int = 2
    comparison: str = "strict"


@dataclass(frozen=True)
class DepthScale:
    """LiNeS: block l of L is scaled by alpha + beta l / (L - 1), all else by alpha.

    ``alpha=None`` makes the merged vector as large as the task vectors on average:
    ||sum tau_t||_1 / ||tau_M||_1 / T.
    """

    alpha: float | None
    beta: float
    blocks: str | None = None  # a pattern with one group, the block's number


@dataclass(frozen=True)
class Mixing:
    """Coefficients of a tensor that follow from products of its vectors.

    Attributes:
        name: Names the rule in journals.
        of_task_vectors: Products are of task vectors; otherwise of weights, base first.
        coefficients: From the matrix of products to the factor of the base and the tasks' weights.
    """

    name: str
    of_task_vectors: bool
    coefficients: Callable[[list[list[float]]], tuple[float, list[float]]]


@dataclass(frozen=True)
class Recipe:
    """See ``csrc/merging/merge_weights.h`` for the order of what is done.

    Attributes:
        weights: One number per task, or one for all.
        scale: Factor of the merged vector.
        undecided: What is elected where votes cancel out.
        adds_to_base: The result is a model; otherwise it is the scaled merged vector alone.
    """

    window: Window | None = None
    drop: Drop | None = None
    rescale: Rescale = Rescale.NONE
    weights: float | tuple[float, ...] = 1.0
    election: Election = Election.NONE
    undecided: Undecided = Undecided.NOBODY
    reduction: Reduction = Reduction.SUM
    consensus: Consensus | None = None
    depth: DepthScale | None = None
    mixing: Mixing | None = None
    scale: float = 1.0
    adds_to_base: bool = True

    def weights_of(self, tasks: int) -> list[float]:
        if isinstance(self.weights, tuple):
            return list(self.weights)
        return [float(self.weights)] * tasks

    def identity(self) -> dict[str, Any]:
        """Everything that decides about the result, for JSON."""
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (Mixing, enum.Enum)):
                value = value.name
            elif dataclasses.is_dataclass(value) and not isinstance(value, type):
                value = dataclasses.asdict(value)
            fields[field.name] = value
        return fields
