"""Choosing λ, α, β and other options by validation."""

from __future__ import annotations

import contextlib
import itertools
import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .merge import Source
from .methods import make_recipe
from .packed_masks import PackedMasks
from .pipeline import TaskVectors
from .state_dict import Model
from .tall_masks import TallMasks

__all__ = ["SearchResult", "search", "select_lambdas"]

#: From a model to a score, larger is better: a number, or one number per task.
Evaluate = Callable[[Any], float | Mapping[str, float]]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        options: The options of the best candidate; of equal ones the first.
        score: Its score.
        rows: Every candidate in the order of the grid: its options, its score, and the score of
            each task where there is one.
    """

    options: dict[str, Any]
    score: float
    rows: list[dict[str, Any]] = field(repr=False)

    def table(self) -> Any:
        """A :class:`rich.table.Table` of all candidates, the best one marked."""
        from rich.table import Table

        table = Table()
        names = list(self.rows[0]["options"])
        tasks = list(self.rows[0]["tasks"])
        for name in [*names, *tasks, "score"]:
            table.add_column(name, justify="right")
        for row in self.rows:
            cells = [f"{row['options'][name]}" for name in names]
            cells += [f"{row['tasks'][task]:.4g}" for task in tasks]
            style = "bold" if row["options"] == self.options else None
            table.add_row(*cells, f"{row['score']:.4g}", style=style)
        return table


def search(
    base: Source,
    finetuned: Sequence[Source] | Mapping[str, Source],
    evaluate: Evaluate,
    *,
    method: str = "task_arithmetic",
    grid: Mapping[str, Sequence[Any]],
    reference: Mapping[str, float] | None = None,
    progress: bool = False,
    **options: Any,
) -> SearchResult:
    r"""Merges with every combination of some options and takes the best.

    Candidates that differ only in ``scale``, or in LiNeS's ``alpha`` and ``beta``, share one merged
    vector: each of them is one pass :math:`\theta_0 + s\,\tau_M` over it.

    Args:
        base, finetuned, method, options: As for :func:`merge`.
        evaluate: Called with each merged model, a state dict (or tensor) that is overwritten by the
            next candidate. Returns a score, larger is better, or a mapping from tasks to scores,
            whose mean counts.
        grid: The values to try by option; the product of all is tried, the last option fastest.
        reference: Scores of the single-task models, above 0: those of ``evaluate`` are divided by
            them.
        progress: Show a bar on stderr.

    Raises:
        TypeError, ValueError: As :func:`merge`; ``grid`` is empty; a score is not a finite number.

    Example:
        >>> import torch
        >>> from robustcore.merging import search
        >>> base, tasks = torch.zeros(2), [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
        >>> wanted = torch.tensor([0.5, 0.5])
        >>> result = search(
        ...     base, tasks, lambda model: -float((model - wanted).norm()),
        ...     grid={"scale": [0.25, 0.5, 1.0]},
        ... )
        >>> result.options, len(result.rows)
        ({'scale': 0.5}, 3)
    """
    op = "search"
    candidates = _candidates(op, grid, options)
    vectors = TaskVectors(base, finetuned)
    for candidate in candidates:  # all options are checked before the first model is merged
        make_recipe(op, method, len(vectors), options | candidate)
    rows: list[dict[str, Any]] = []
    merger = _Merger(vectors, method, options)
    with _bar(progress, len(candidates)) as advance:
        for candidate in candidates:
            score, tasks = _score(op, evaluate(merger(candidate)), reference)
            rows.append({"options": candidate, "score": score, "tasks": tasks})
            advance()
    best = max(rows, key=lambda row: row["score"])
    return SearchResult(best["options"], best["score"], rows)


def _candidates(
    op: str, grid: Mapping[str, Sequence[Any]], options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError(f"{op}: grid must map options to the values to try, got {grid!r}")
    for name, values in grid.items():
        if name in options:
            raise ValueError(f"{op}: {name} must be an option or in the grid, got both")
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"{op}: grid[{name!r}] must be a sequence of values, got {values!r}")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


class _Merger:
    """Models of candidates; what the next one shares with the last one is kept."""

    def __init__(self, vectors: TaskVectors, method: str, options: Mapping[str, Any]) -> None:
        self._vectors = vectors
        self._method = method
        self._options = options
        self._unscaled: TaskVectors | None = None
        self._vector: Any = None
        self._alpha: float | None = None
        self._model: Any = None

    def __call__(self, candidate: Mapping[str, Any]) -> Any:
        steps = self._vectors.using(self._method, **(dict(self._options) | dict(candidate)))
        if steps.recipe.mixing is not None:
            return steps.apply()
        unscaled = steps.unscaled()
        if self._unscaled is None or self._unscaled.recipe != unscaled.recipe:
            self._unscaled, self._vector, self._alpha = unscaled, unscaled.vector(), None
        depth = steps.recipe.depth
        if depth is not None and depth.alpha is None and self._alpha is None:
            self._alpha = steps.norm_alpha()
        self._model = steps.add_vector(self._vector, self._alpha, into=self._model)
        return self._model


def _score(
    op: str, found: Any, reference: Mapping[str, float] | None
) -> tuple[float, dict[str, float]]:
    tasks = dict(found) if isinstance(found, Mapping) else {}
    if reference is not None:
        if not tasks:
            raise ValueError(
                f"{op}: evaluate must return a score for each task where reference is given, "
                f"got {found!r}"
            )
        missing = [name for name in tasks if name not in reference]
        if missing:
            raise ValueError(
                f"{op}: reference must hold every task that evaluate returns, missing {missing}"
            )
        # Of two scores below 0 the quotient of the worse one would be larger.
        for name in tasks:
            if not 0 < reference[name] < math.inf:
                raise ValueError(
                    f"{op}: reference[{name!r}] must be finite and above 0, got {reference[name]!r}"
                )
        tasks = {name: value / reference[name] for name, value in tasks.items()}
    score = sum(tasks.values()) / len(tasks) if tasks else found
    if isinstance(score, Tensor) and score.numel() == 1:
        score = score.item()
    if isinstance(score, bool) or not isinstance(score, numbers.Real) or not math.isfinite(score):
        raise ValueError(f"{op}: evaluate must return a finite number, got {score!r}")
    return float(score), tasks


def select_lambdas(
    masks: TallMasks,
    base: Model,
    merged: Model,
    evaluate: Callable[[str, Any], float],
    *,
    progress: bool = False,
) -> PackedMasks:
    r"""The λ of each task whose reconstruction :math:`\theta_0 + m_t \odot \tau_M` does best.

    Args:
        masks: Masks of all λ, from one pass of :func:`tall_masks`.
        base, merged: :math:`\theta_0` and the multi-task vector that the masks were made from.
        evaluate: Called with the task's name and the reconstructed model; larger is better.
        progress: Show a bar on stderr.

    Returns:
        The masks of the chosen λ (:attr:`PackedMasks.lambdas`); of equal ones the smallest.

    Example:
        >>> import torch
        >>> from robustcore.merging import multi_task_vector, select_lambdas, tall_masks
        >>> base, tasks = torch.zeros(2), [torch.tensor([1.0, 0.2]), torch.tensor([-0.1, 1.0])]
        >>> masks = tall_masks(base, tasks, lambdas=(0.1, 0.5))
        >>> wanted = dict(zip(masks.tasks, tasks))
        >>> chosen = select_lambdas(
        ...     masks, base, multi_task_vector(base, tasks),
        ...     lambda task, model: -float((model - wanted[task]).norm()),
        ... )
        >>> chosen.lambdas
        (0.5, 0.1)
    """
    op = "select_lambdas"
    best: dict[str, tuple[float, float]] = {}
    with _bar(progress, len(masks.tasks) * len(masks.lambdas)) as advance:
        for value in sorted(masks.lambdas):
            chosen = masks.select(value)
            for task in masks.tasks:
                score, _ = _score(op, evaluate(task, chosen.apply(task, base, merged)), None)
                if task not in best or score > best[task][0]:
                    best[task] = (score, value)
                advance()
    return masks.select({task: value for task, (_, value) in best.items()})


@contextlib.contextmanager
def _bar(shown: bool, total: int) -> Iterator[Callable[[], None]]:
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("candidates", total=total)
        yield lambda: bar.update(task, advance=1)
