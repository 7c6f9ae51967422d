"""Single steps on task vectors, and the steps put together against a named method."""

from __future__ import annotations

import pytest
import torch

from robustcore.merging import (
    elect_sign,
    merge,
    multi_task_vector,
    scale_by_depth,
    task_vector,
    trim,
)
from robustcore.reference.merging import methods as reference


def vectors(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(count)
    shapes = {"layers.0.w": (30, 41), "layers.1.w": (30, 41), "bias": (17,)}
    return [
        {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        for _ in range(count)
    ]


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_trim(density: float) -> None:
    (vector,) = vectors(1)
    trimmed = trim(vector, density)
    for key, value in vector.items():
        assert torch.equal(trimmed[key], reference.top(value, int(density * value.numel())))
    alone = trim(vector["bias"].bfloat16(), density)
    assert alone.dtype == torch.float32


def test_trim_over_the_model() -> None:
    (vector,) = vectors(1)
    trimmed = trim(vector, 0.25, scope="model")
    flat = reference.flat(vector)
    expected = reference.top(flat, int(0.25 * flat.numel()))
    assert torch.equal(reference.flat(trimmed), expected)


def test_steps_make_ties() -> None:
    base, *changes = vectors(4)
    finetuned = [{k: base[k] + change[k] for k in base} for change in changes]
    kept = [trim(task_vector(base, model), 0.4) for model in finetuned]
    sign = elect_sign(kept)
    merged = {}
    for key in base:
        agreeing = torch.stack([v[key].where(v[key] * sign[key] > 0, 0) for v in kept])
        mean = agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)
        merged[key] = base[key] + mean
    expected = merge(base, finetuned, method="ties", mode="lora", density=0.4)
    for key in base:
        torch.testing.assert_close(merged[key], expected[key])


def test_steps_make_lines() -> None:
    base, *changes = vectors(3)
    finetuned = [{k: base[k] + change[k] for k in base} for change in changes]
    scaled = scale_by_depth(multi_task_vector(base, finetuned), 0.3, 0.5)
    expected = merge(base, finetuned, method="lines", alpha=0.3, beta=0.5)
    for key in base:
        torch.testing.assert_close(base[key] + scaled[key], expected[key])


def test_votes() -> None:
    one, two, three = torch.tensor([3.0, -1.0]), torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, 0])
    assert elect_sign([one, two, three]).tolist() == [1, 0]
    assert elect_sign([one, two, three], votes="count").tolist() == [-1, 0]
    weights = [0.1, 1.0, 1.0]
    assert elect_sign([one, two, three], votes="weighted", weights=weights).tolist() == [-1, 1]


def test_errors() -> None:
    (vector,) = vectors(1)
    with pytest.raises(ValueError, match="density must be from 0 to 1"):
        trim(vector, 2.0)
    with pytest.raises(TypeError, match="must be a tensor or a state dict"):
        trim([1.0], 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must have the names"):
        elect_sign([vector, {"other": torch.zeros(1)}])
    with pytest.raises(ValueError, match="votes must be"):
        elect_sign([vector], votes="majority")
    with pytest.raises(TypeError, match="sequence of task vectors"):
        elect_sign(torch.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="state dict"):
        scale_by_depth(vector["bias"], 1.0, 1.0)  # type: ignore[arg-type]
