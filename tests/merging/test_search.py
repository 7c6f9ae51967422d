"""Searching options: every candidate is the model that merge() makes, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from robustcore.merging import (
    TaskVectors,
    merge,
    multi_task_vector,
    search,
    select_lambdas,
    tall_masks,
)


def models(tasks: int = 3) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    base = {f"blocks.{i}.w": torch.randn(30, 20, generator=generator) for i in range(3)}
    base["head"] = torch.randn(70, generator=generator).bfloat16()
    finetuned = [
        {
            k: v + (torch.randn(v.shape, generator=generator) / 9).to(v.dtype)
            for k, v in base.items()
        }
        for _ in range(tasks)
    ]
    return base, [model | {"n": torch.tensor(1)} for model in finetuned]


GRIDS: list[tuple[str, dict[str, Any]]] = [
    ("task_arithmetic", {"scale": [0.1, 0.5, -1.0]}),
    ("ties", {"density": [0.2, 0.5], "scale": [0.3, 1.0]}),
    ("consensus", {"k": [1, 2], "lambdas": [0.2, 0.4], "scale": [0.5, 1.0]}),
    ("lines", {"beta": [0.1, 0.9]}),
    ("lines", {"alpha": [0.0, 0.2], "beta": [0.5]}),
    ("ties", {"lines": [None, {"beta": 0.5}, {"alpha": 0.1}]}),
    ("rws", {"scale": [0.5, 1.0]}),
]


@pytest.mark.parametrize(("method", "grid"), GRIDS, ids=str)
def test_candidates_are_merged_models(method: str, grid: dict[str, Any]) -> None:
    base, finetuned = models(2 if method == "rws" else 3)
    base["n"] = torch.tensor(7)
    seen: list[dict[str, Tensor]] = []

    def evaluate(model: dict[str, Tensor]) -> float:
        seen.append({key: value.clone() for key, value in model.items()})
        return -float(len(seen) == 2)

    result = search(base, finetuned, evaluate, method=method, grid=grid)
    assert len(seen) == len(result.rows)
    assert result.options == result.rows[0]["options"]
    for row, model in zip(result.rows, seen, strict=True):
        expected = merge(base, finetuned, method=method, **row["options"])
        assert model.keys() == expected.keys()
        assert all(torch.equal(model[key], expected[key]) for key in expected)


def test_scores_of_tasks_are_normalised() -> None:
    base, finetuned = models()
    base["n"] = torch.tensor(7)
    scores = iter([{"a": 0.5, "b": 0.5}, {"a": 0.9, "b": 0.25}, {"a": 0.9, "b": 0.25}])
    result = search(
        base,
        finetuned,
        lambda _: next(scores),
        grid={"scale": [0.1, 0.2, 0.3]},
        reference={"a": 0.5, "b": 1.0},
    )
    assert result.options == {"scale": 0.2}
    assert result.score == pytest.approx((1.8 + 0.25) / 2)
    assert result.table().row_count == 3


def test_errors() -> None:
    base, finetuned = models()
    base["n"] = torch.tensor(7)

    def never(_: Any) -> float:
        raise AssertionError("merged before all options were checked")

    with pytest.raises(TypeError, match="has the options"):
        search(base, finetuned, never, grid={"scal": [1.0]})
    with pytest.raises(ValueError, match="density must be from 0 to 1"):
        search(base, finetuned, never, method="ties", grid={"density": [0.1, 2.0]})
    with pytest.raises(ValueError, match="got both"):
        search(base, finetuned, never, grid={"scale": [1.0]}, scale=2.0)
    with pytest.raises(ValueError, match="grid must map"):
        search(base, finetuned, never, grid={})
    with pytest.raises(ValueError, match="must return a finite number"):
        search(base, finetuned, lambda _: float("nan"), grid={"scale": [1.0]})


@pytest.mark.parametrize("value", [0.0, -0.5, float("inf"), float("nan")])
def test_references_that_cannot_be_divided_by_are_refused(value: float) -> None:
    base, finetuned = models()
    base["n"] = torch.tensor(7)
    with pytest.raises(ValueError, match=r"search: reference\['b'\] must be finite and above 0"):
        search(
            base,
            finetuned,
            lambda _: {"a": 0.5, "b": 0.5},
            grid={"scale": [0.1]},
            reference={"a": 1.0, "b": value},
        )


def test_a_reference_needs_scores_of_tasks() -> None:
    base, finetuned = models()
    base["n"] = torch.tensor(7)
    with pytest.raises(ValueError, match="evaluate must return a score for each task"):
        search(base, finetuned, lambda _: 0.5, grid={"scale": [0.1]}, reference={"a": 1.0})
    with pytest.raises(ValueError, match=r"missing \['b'\]"):
        search(base, finetuned, lambda _: {"b": 1}, grid={"scale": [0.1]}, reference={"a": 1.0})


def test_select_lambdas_takes_the_best_and_of_equal_ones_the_smallest() -> None:
    base, finetuned = models()
    finetuned = [{k: v for k, v in model.items() if k != "n"} for model in finetuned]
    masks = tall_masks(base, finetuned, lambdas=(0.6, 0.2, 0.4))
    merged = multi_task_vector(base, finetuned)
    wanted = {"0": 0.4, "1": 0.2, "2": 0.6}

    def evaluate(task: str, model: dict[str, Tensor]) -> float:
        if task == "1":
            return 1.0
        expected = masks.select(wanted[task]).apply(task, base, merged)
        return float(all(torch.equal(model[key], expected[key]) for key in expected))

    assert select_lambdas(masks, base, merged, evaluate).lambdas == (0.4, 0.2, 0.6)


def test_pipeline_steps_are_those_of_methods() -> None:
    base, finetuned = models()
    base["n"] = torch.tensor(7)
    vectors = TaskVectors(base, finetuned)
    built = (
        vectors.trim(0.2, scope="model", exact=False)
        .elect("sum", undecided="majority")
        .reduce("mean")
        .scale(0.5)
    )
    assert built.recipe == vectors.using("ties", density=0.2, scale=0.5).recipe
    expected = merge(base, finetuned, method="ties", density=0.2, scale=0.5)
    assert all(torch.equal(built.apply()[key], expected[key]) for key in expected)
    assert vectors.recipe == TaskVectors(base, finetuned).recipe  # steps change nothing in place
    assert "density" in repr(built)


def test_vector_is_what_is_added() -> None:
    base, finetuned = models()
    base["n"] = torch.tensor(7)
    vector = TaskVectors(base, finetuned).scale(0.5).vector()
    assert "n" not in vector
    changes = multi_task_vector(
        {k: v for k, v in base.items() if k != "n"},
        [{k: v for k, v in model.items() if k != "n"} for model in finetuned],
    )
    for key, change in changes.items():
        assert vector[key].dtype == torch.float32
        assert torch.equal(vector[key], 0.5 * change)
