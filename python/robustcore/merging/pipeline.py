"""Task vectors as something to build methods of one's own from, step by step."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import check_choice
from .checkpoints import StateDictCheckpoint
from .engine.execute import Execution, MergeReport, execute, merged_alpha
from .engine.plan import MergePlan, make_plan
from .merge import Progress, Source, StateDictSink, open_tasks, write_merged
from .methods import make_recipe
from .methods._options import choice, count, depth_scale, fraction, number, task_weights
from .recipe import Consensus, Drop, Election, Recipe, Reduction, Rescale, Undecided, Window

__all__ = ["TaskVectors"]

_VOTES = {"sum": Election.SUM, "weighted": Election.WEIGHTED_SUM, "count": Election.COUNT}
_REDUCTIONS = {
    "sum": Reduction.SUM,
    "mean": Reduction.MEAN,
    "weighted_mean": Reduction.WEIGHTED_MEAN,
    "max": Reduction.LARGEST,
}
_UNDECIDED = {rule.name.lower(): rule for rule in Undecided}


class TaskVectors:
    r"""The task vectors of several models, and what is to be done with them.

    Every step returns a new object and computes nothing; :meth:`apply` and :meth:`vector` run all
    steps in one fused pass per chunk of parameters, in the order in which they stand here:

    1. :meth:`trim`, :meth:`drop`: which entries stay, and :meth:`rescale`
    2. :meth:`weight`: :math:`w_t`
    3. :meth:`elect`, :meth:`reduce`: who has a say, and what the terms come to
    4. :meth:`consensus`
    5. :meth:`scale`, :meth:`scale_by_depth`

    whatever the order of the calls; a step that is called again replaces the earlier one.

    Args:
        base: The model that the others were fine-tuned from: tensor, state dict or path.
        finetuned: A sequence of models or a mapping from task names to models.
        mismatch: As in :func:`merge`.

    Attributes:
        plan: Which tensors are merged and which are carried from the base.
        recipe: The steps so far.

    Example:
        >>> import torch
        >>> from robustcore.merging import TaskVectors
        >>> base = {"w": torch.zeros(4)}
        >>> tasks = [{"w": torch.tensor([3.0, 1, 0, 0])}, {"w": torch.tensor([-1.0, 2, 0, 1])}]
        >>> vectors = TaskVectors(base, tasks)
        >>> vectors.trim(0.5).elect().reduce("mean").scale(0.5).apply()["w"]
        tensor([1.5000, 0.7500, 0.0000, 0.0000])
        >>> vectors.scale(-1).vector()["w"]
        tensor([-2., -3., -0., -1.])
    """

    def __init__(
        self,
        base: Source,
        finetuned: Sequence[Source] | Mapping[str, Source],
        *,
        mismatch: str = "error",
    ) -> None:
        op = "TaskVectors"
        first, tasks = open_tasks(op, base, finetuned)
        self.plan: MergePlan = make_plan(op, first, tasks, mismatch=mismatch)
        self.recipe = Recipe()
        self._is_tensor = isinstance(base, Tensor)

    def __len__(self) -> int:
        return len(self.plan.tasks)

    def __repr__(self) -> str:
        steps = {
            field.name: value
            for field in dataclasses.fields(Recipe)
            if (value := getattr(self.recipe, field.name)) != field.default
        }
        described = ", ".join(f"{name}={value}" for name, value in steps.items()) or "plain sum"
        return f"TaskVectors({list(self.plan.tasks)}: {described})"

    def _with(self, **steps: Any) -> TaskVectors:
        other = object.__new__(TaskVectors)
        other.plan, other._is_tensor = self.plan, self._is_tensor
        other.recipe = dataclasses.replace(self.recipe, **steps)
        return other

    def using(self, method: str, **options: Any) -> TaskVectors:
        """All steps of a named method (:data:`METHODS`), to go on from."""
        return self._with(**vars(make_recipe("TaskVectors.using", method, len(self), options)))

    # --- steps

    def trim(
        self, density: float, *, top: float = 0.0, scope: str = "tensor", exact: bool = True
    ) -> TaskVectors:
        """Keep the largest magnitudes of each task vector.

        Args:
            density: Share that stays.
            top: Share of the very largest that is dropped first.
            scope: ``"tensor"`` or ``"model"``: where magnitudes are ranked.
            exact: int(density n) stay, of equal magnitudes the first in flat order. Otherwise the
                ``int(density n) + 1``-th largest is the threshold, and all that reach it stay.
        """
        rule = Window(
            fraction("density", density),
            fraction("top", top),
            choice("scope", scope, ("tensor", "model")),
            bool(exact),
        )
        if rule.top and not exact:
            raise ValueError("TaskVectors.trim: exact must be True where top is not 0, got False")
        return self._with(window=rule)

    def drop(self, density: float, *, seed: int = 0, epsilon: float | None = None) -> TaskVectors:
        """Keep entries at random, each with the chance ``density``; see :func:`.methods.della` for
        ``epsilon``."""
        kept = fraction("density", density)
        if epsilon is not None and not 0 < kept - epsilon <= kept + epsilon <= 1:
            raise ValueError(
                "TaskVectors.drop: density - epsilon must be above 0 and density + epsilon at most "
                f"1, got {density!r} and {epsilon!r}"
            )
        return self._with(drop=Drop(kept, count("seed", seed, 0, 2**63 - 1), epsilon))

    def rescale(self, how: str) -> TaskVectors:
        """Make up for dropped entries: ``"density"`` divides by the share that stays, ``"l1"``
        restores each tensor's L1 norm, ``"none"`` does nothing."""
        rules = {rule.value: rule for rule in Rescale}
        return self._with(rescale=rules[choice("how", how, tuple(rules))])

    def weight(self, weights: float | Sequence[float]) -> TaskVectors:
        """Factors of the task vectors, one for all or one per task."""
        return self._with(weights=task_weights("weights", weights, len(self)))

    def elect(self, votes: str = "sum", *, undecided: str = "positive") -> TaskVectors:
        """Only entries of the elected sign have a say.

        Args:
            votes: The sign is that of the ``"sum"`` of entries, of their ``"weighted"`` sum, or of
                the ``"count"`` of signs.
            undecided: What is elected where votes cancel out: ``"nobody"``, ``"positive"``,
                ``"negative"``, or the ``"majority"`` of the whole model.
        """
        return self._with(
            election=_VOTES[choice("votes", votes, tuple(_VOTES))],
            undecided=_UNDECIDED[choice("undecided", undecided, tuple(_UNDECIDED))],
        )

    def reduce(self, how: str) -> TaskVectors:
        """What the weighted entries that have a say come to: their ``"sum"``, ``"mean"``,
        ``"weighted_mean"``, or the ``"max"`` of magnitude."""
        return self._with(reduction=_REDUCTIONS[choice("how", how, tuple(_REDUCTIONS))])

    def consensus(
        self, lambdas: float | Sequence[float] = 0.4, *, k: int = 2, comparison: str = "strict"
    ) -> TaskVectors:
        """Only parameters that at least k TALL-masks keep are changed."""
        given = task_weights("lambdas", lambdas, len(self))
        values = given if isinstance(given, tuple) else (given,)
        check_choice("TaskVectors.consensus", "comparison", comparison, ("strict", "paper"))
        return self._with(consensus=Consensus(values, count("k", k, 0, len(self)), comparison))

    def scale(self, factor: float) -> TaskVectors:
        """Factor of the merged vector."""
        return self._with(scale=number("factor", factor))

    def scale_by_depth(
        self, alpha: float | None = None, beta: float = 1.0, *, blocks: str | None = None
    ) -> TaskVectors:
        """LiNeS: alpha + beta l / (L - 1) in block l; alpha from norms unless given."""
        fields = {"alpha": alpha, "beta": beta, "blocks": blocks}
        return self._with(depth=depth_scale(fields, len(self)))

    # --- results

    def apply(
        self,
        *,
        output: str | os.PathLike[str] | None = None,
        max_memory: int = 1 << 30,
        device: torch.device | str = "cpu",
        allow_nonfinite: bool = False,
        progress: Progress | None = None,
        **writing: Any,
    ) -> Any:
        """The merged model; arguments and result as for :func:`merge`."""
        how = Execution(max_memory, torch.device(device), allow_nonfinite, progress)
        op = "TaskVectors.apply"
        if output is not None:
            return write_merged(op, self.plan, self.recipe, output, how, **writing)
        if writing:
            raise TypeError(f"{op}: {next(iter(writing))} is for an output")
        return self._run(op, self.plan, self.recipe, how)[0]

    def vector(self, *, max_memory: int = 1 << 30, device: torch.device | str = "cpu") -> Any:
        """The scaled merged vector, a task vector in float32 (float64 for float64)."""
        mixing = self.recipe.mixing
        if mixing is not None and not mixing.of_task_vectors:
            raise ValueError("TaskVectors.vector: the method gives weights and no task vector")
        tensors = tuple(
            dataclasses.replace(t, dtype=torch.promote_types(t.dtype, torch.float32))
            for t in self.plan.tensors
        )
        plan = dataclasses.replace(self.plan, tensors=tensors, carried=())
        recipe = dataclasses.replace(self.recipe, adds_to_base=False)
        how = Execution(max_memory, torch.device(device))
        return self._run("TaskVectors.vector", plan, recipe, how)[0]

    def unscaled(self) -> TaskVectors:
        """Without the steps that only scale the merged vector."""
        return self._with(scale=1.0, depth=None)

    def norm_alpha(self) -> float | None:
        """What LiNeS takes for alpha where none is given."""
        return merged_alpha("TaskVectors", self.plan, self.recipe)

    def add_vector(self, vector: Any, alpha: float | None = None, *, into: Any = None) -> Any:
        """The base plus ``vector``, what :meth:`vector` gives unscaled, scaled by these steps.

        Args:
            alpha: For :meth:`scale_by_depth` without one: :meth:`norm_alpha`.
            into: A model that this returned before, to be overwritten.
        """
        values = {"": vector} if isinstance(vector, Tensor) else vector
        checkpoint = StateDictCheckpoint("vector", values, is_task_vector=True)
        plan = make_plan("TaskVectors.add_vector", self.plan.base, {"vector": checkpoint})
        depth = self.recipe.depth
        if depth is not None and depth.alpha is None:
            depth = dataclasses.replace(depth, alpha=alpha)
        recipe = Recipe(scale=self.recipe.scale, depth=depth)
        how = Execution(device=next(iter(values.values())).device)
        return self._run("TaskVectors.add_vector", plan, recipe, how, into)[0]

    def _run(
        self, op: str, plan: MergePlan, recipe: Recipe, how: Execution, into: Any = None
    ) -> tuple[Any, MergeReport]:
        given = {"": into} if isinstance(into, Tensor) else into
        sink = StateDictSink(plan, how.device, given)
        report = execute(op, plan, recipe, sink, how=how)
        merged = sink.model()
        return (merged[""] if self._is_tensor else merged), report
