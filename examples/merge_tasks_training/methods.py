"""Everything that is compared: each choice by validation accuracy, each report on the test images.

A method gives every task the same network, unless its :attr:`Method.by_task` says otherwise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from robustcore.demo.data import Digits
from robustcore.demo.task_vectors import TASKS
from robustcore.merging import (
    PackedMasks,
    TaskVectors,
    emr_merge,
    merge,
    search,
    select_lambdas,
    tall_masks,
)

from .tasks import Models, State

LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6)
SCALES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0)
TIES_SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5, 2.0)
BETAS = tuple({"beta": round(0.1 * k, 1)} for k in range(1, 11))
TIES_BETAS = tuple({"beta": round(0.1 * k, 1)} for k in range(1, 16))
SPARSE_SCALES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0)
SPARSE_DENSITIES = (0.2, 0.5)
BREADCRUMBS_DENSITIES = (0.5, 0.85)
SLOPES = tuple(
    {"alpha": alpha, "beta": beta}
    for alpha in (0.1, 0.15, 0.2, 0.3, 0.4)
    for beta in (-0.2, -0.1, 0.0, 0.1, 0.2, 0.4)
)


@dataclass(frozen=True)
class Method:
    """How a row of the table comes about.

    Attributes:
        title: Its name in the table.
        baseline: The row that it is meant to improve on.
        by_task: Every task has its own network.
    """

    title: str
    baseline: str | None = None
    by_task: bool = False


METHODS = {
    "base": Method("base, zero-shot"),
    "single": Method("single models", by_task=True),
    "task_arithmetic": Method("task arithmetic"),
    "ties": Method("TIES (global, sum)"),
    "ties_mean": Method("TIES (global, mean)"),
    "dare": Method("DARE"),
    "magnitude": Method("magnitude pruning"),
    "breadcrumbs": Method("breadcrumbs"),
    "consensus": Method("Consensus", baseline="task_arithmetic"),
    "consensus_ties": Method("Consensus on TIES", baseline="ties"),
    "lines": Method("LiNeS", baseline="task_arithmetic"),
    "lines_ties": Method("LiNeS on TIES", baseline="ties"),
    "lines_consensus": Method("LiNeS on Consensus", baseline="consensus"),
    "lines_consensus_ties": Method("LiNeS on Consensus on TIES", baseline="consensus_ties"),
    "lines_alpha": Method("LiNeS, α searched too", baseline="task_arithmetic"),
    "emr": Method("EMR", by_task=True),
    "tall_masks": Method("TALL-masks", by_task=True),
    "tall_masks_ties": Method("TALL-masks on TIES", by_task=True),
}


@dataclass
class Comparison:
    """One seed: its models, its images, and what has been found so far by key of ``METHODS``."""

    models: Models
    digits: Digits
    advance: Callable[[], None]
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Accuracies, choices and bytes of every method; facts about the task vectors."""
        base, finetuned = self.models.base, self.models.finetuned
        model_bytes = _file_bytes(base)
        self.single = self._by_task(finetuned.__getitem__, "validation")

        self._report("base", lambda _: base, model_bytes)
        singles = sum(_file_bytes(state) for state in finetuned.values())
        self._report("single", finetuned.__getitem__, singles)

        plain = TaskVectors(base, finetuned).scale(1.0).vector()
        trimmed = TaskVectors(base, finetuned).using("ties", merge="sum").vector()
        masks = self._masked("tall_masks", plain)
        masks_ties = self._masked("tall_masks_ties", trimmed)
        emr = emr_merge(base, finetuned)
        emr_bytes = model_bytes + self._masked_bytes(emr.masks, emr.unified)
        # A float32 per task besides: its rescaler.
        emr_bytes += 4 * len(emr.rescalers)
        self._report("emr", lambda name: emr.apply(name, base), emr_bytes)

        sums = {"scale": SCALES}
        some = {"density": SPARSE_DENSITIES, "scale": SPARSE_SCALES}
        many = some | {"density": BREADCRUMBS_DENSITIES}
        kept = {"lambdas": list(masks.lambdas or ())}
        kept_ties = {"lambdas": list(masks_ties.lambdas or ())}
        self._search("task_arithmetic", "task_arithmetic", sums)
        self._search("ties", "ties", {"scale": TIES_SCALES}, merge="sum")
        self._search("ties_mean", "ties", {"scale": TIES_SCALES}, merge="mean")
        self._search("dare", "dare", some)
        self._search("magnitude", "magnitude", some)
        self._search("breadcrumbs", "breadcrumbs", many)
        self._search("consensus", "consensus", sums, **kept)
        self._search("consensus_ties", "consensus_ties", {"scale": TIES_SCALES}, **kept_ties)
        # LiNeS takes the place of a scale, which has to be 1 then.
        self._search("lines", "task_arithmetic", {"lines": BETAS}, scale=1.0)
        self._search("lines_ties", "ties", {"lines": TIES_BETAS}, scale=1.0, merge="sum")
        self._search("lines_consensus", "consensus", {"lines": BETAS}, scale=1.0, **kept)
        self._search("lines_alpha", "task_arithmetic", {"lines": SLOPES}, scale=1.0)
        self._search(
            "lines_consensus_ties", "consensus_ties", {"lines": TIES_BETAS}, scale=1.0, **kept_ties
        )
        heads = sum(_file_bytes(head.state_dict()) for head in self.models.heads.values())
        return {
            "methods": {name: self.found[name] for name in METHODS},
            "head_bytes": heads,
            "parameters": sum(tensor.numel() for tensor in base.values()),
            "mean_cosine": _mean_cosine(base, finetuned),
            "halves": self._halves(),
            "kept_by_tasks": masks.histogram().tolist(),
            "kept_by_tasks_ties": masks_ties.histogram().tolist(),
        }

    def _by_task(self, state_of: Callable[[str], Any], split: str) -> dict[str, float]:
        images = getattr(self.digits, split)
        return {
            name: self.models.accuracies(state_of(name), images, [name])[name] for name in TASKS
        }

    def _report(
        self, key: str, state_of: Callable[[str], Any], stored: int, **choices: Any
    ) -> None:
        if METHODS[key].by_task:
            accuracies = self._by_task(state_of, "test")
        else:
            accuracies = self.models.accuracies(state_of(""), self.digits.test)
        self.found[key] = {"test_accuracy": accuracies, "bytes": stored, **choices}
        self.advance()

    def _halves(self) -> dict[str, dict[str, float]]:
        """Test accuracy by task where only half of the blocks are fine-tuned.

        The embedding counts as shallow, the last normalisation as deep.
        """
        base, finetuned = self.models.base, self.models.finetuned
        middle = len(self.models.network.blocks) // 2

        def is_deep(key: str) -> bool:
            stack, number, *_ = [*key.split("."), ""]
            return int(number) >= middle if stack == "blocks" else stack == "norm"

        def half(name: str, deep: bool) -> State:
            return {key: (finetuned[name] if is_deep(key) == deep else base)[key] for key in base}

        return {
            "shallow": self._by_task(lambda name: half(name, False), "test"),
            "deep": self._by_task(lambda name: half(name, True), "test"),
        }

    def _search(self, key: str, method: str, grid: Mapping[str, Any], **options: Any) -> None:
        base, finetuned = self.models.base, self.models.finetuned
        result = search(
            base,
            finetuned,
            lambda state: self.models.accuracies(state, self.digits.validation),
            method=method,
            grid=grid,
            reference=self.single,
            **options,
        )
        merged = merge(base, finetuned, method=method, **options, **result.options)
        assert isinstance(merged, dict)
        self._report(
            key,
            lambda _: merged,
            _file_bytes(merged),
            chosen=result.options,
            validation=result.score,
            tried=[[row["options"], row["score"]] for row in result.rows],
        )

    def _masked(self, key: str, vector: Any) -> PackedMasks:
        """TALL-masks made against ``vector``, the λ of each task by validation."""
        base, finetuned = self.models.base, self.models.finetuned
        candidates = tall_masks(base, finetuned, lambdas=LAMBDAS, merged=vector)
        masks = select_lambdas(
            candidates,
            base,
            vector,
            lambda name, state: self.models.accuracies(state, self.digits.validation, [name])[name],
        )
        stored = _file_bytes(base) + self._masked_bytes(masks, vector)
        chosen = dict(zip(masks.tasks, masks.lambdas or (), strict=True))
        self._report(key, lambda name: masks.apply(name, base, vector), stored, chosen=chosen)
        return masks

    def _masked_bytes(self, masks: PackedMasks, vector: Any) -> int:
        """Size of the files with a shared vector and with one bit per parameter and task."""
        with tempfile.TemporaryDirectory(prefix="robustcore-example-") as folder:
            path = Path(folder, "masks.safetensors")
            masks.save(path, base=self.models.base, merged=vector)
            return path.stat().st_size + _file_bytes(vector)


def _file_bytes(state: Mapping[str, Tensor]) -> int:
    with tempfile.TemporaryDirectory(prefix="robustcore-example-") as folder:
        path = Path(folder, "weights.safetensors")
        save_file(dict(state), path)
        return path.stat().st_size


def _mean_cosine(base: State, finetuned: Mapping[str, State]) -> float:
    """Mean cosine between the task vectors of two different tasks."""
    flat = [
        torch.cat([(state[key] - base[key]).double().flatten() for key in base])
        for state in finetuned.values()
    ]
    directions = torch.stack([vector / vector.norm() for vector in flat])
    products = directions @ directions.T
    count = len(flat)
    return ((products.sum() - products.trace()) / (count * (count - 1))).item()
