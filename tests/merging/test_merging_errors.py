"""Errors of the merging family: the type, and that the message says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from robustcore.merging import PackedMasks, multi_task_vector, tall_masks
from robustcore.testing.samples_merging import random_models

W = torch.zeros(3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], [W]), TypeError, "base must be a tensor or a state dict, got list"),
        ((torch.nn.Linear(1, 1), [W]), TypeError, "pass module.state_dict()"),
        (({1: W}, [{1: W}]), TypeError, "keys of base must be strings"),
        (
            (W.long(), [W]),
            TypeError,
            "float32, float64, bfloat16 or float16, got int64",
        ),
        ((W.to(torch.complex64), [W]), TypeError, "got complex64"),
        ((W, W), TypeError, "pass tensor.unbind()"),
        ((W, 3), TypeError, "finetuned must be a sequence or a mapping of models, got int"),
        ((W, {1: W}), TypeError, "names in finetuned must be strings"),
        ((W, []), ValueError, "finetuned must hold at least one model, got none"),
        ((W, {}), ValueError, "finetuned must hold at least one model, got none"),
        ((W, [{"w": W}]), TypeError, "must be a tensor like base, got dict"),
        (({"w": W}, [W]), TypeError, "must be a state dict like base, got Tensor"),
        ((W, [torch.zeros(4)]), ValueError, "must have shape (3,), got (4,)"),
        ((W, [W.double()]), ValueError, "must be float32, got float64"),
        ((W, [W.to("meta")]), ValueError, "must be on cpu, got meta"),
        ((W, [W.to_sparse()]), ValueError, "must be dense, got torch.sparse_coo"),
        (({"w": 3}, [{"w": W}]), ValueError, "base['w'] must be a tensor, got int"),
    ],
)
@pytest.mark.parametrize("function", [tall_masks, multi_task_vector])
def test_models(
    function: Callable[..., Any], arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        function(*arguments)
    assert str(raised.value).startswith(f"{function.__name__}: ")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lambdas": 0.4}, TypeError, "lambdas must be a sequence of numbers, got float"),
        ({"lambdas": ()}, ValueError, "lambdas must hold 1 to 63 values"),
        ({"lambdas": [0.01 * n for n in range(1, 65)]}, ValueError, "must hold 1 to 63 values"),
        ({"lambdas": ("a",)}, TypeError, "a lambda must be a number, got str"),
        ({"lambdas": (True,)}, TypeError, "a lambda must be a number, got bool"),
        ({"lambdas": (0.0,)}, ValueError, "must be finite and positive (in float32), got 0.0"),
        ({"lambdas": (-1.0,)}, ValueError, "finite and positive"),
        ({"lambdas": (float("nan"),)}, ValueError, "finite and positive"),
        ({"lambdas": (float("inf"),)}, ValueError, "finite and positive"),
        ({"lambdas": (1e-60,)}, ValueError, "finite and positive"),
        ({"lambdas": (1e60,)}, ValueError, "finite and positive"),
        ({"lambdas": (10**400,)}, ValueError, "(in float32), got an integer of 1329 bits"),
        ({"lambdas": (-(10**5000),)}, ValueError, "finite and positive"),
        ({"lambdas": (0.2, 0.2)}, ValueError, "lambdas must be distinct"),
        ({"comparison": ">"}, ValueError, "comparison must be one of 'strict', 'paper', got '>'"),
        ({"merged": torch.zeros(2)}, ValueError, "merged must have shape (3,), got (2,)"),
        ({"merged": {"w": W}}, TypeError, "merged must be a tensor like base"),
        ({"merged": W.half()}, ValueError, "merged must be float32, got float16"),
    ],
)
def test_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        tall_masks(W, [W], **options)
    assert str(raised.value).startswith("tall_masks: ")
    assert message in str(raised.value)


def test_one_error_lists_every_difference() -> None:
    base = {"a": torch.zeros(3), "b": torch.zeros(2), "c": torch.zeros(1), "n": torch.tensor(1)}
    first = {"a": torch.zeros(4), "b": torch.zeros(2).half(), "x": W, "n": torch.tensor(1.0)}
    second = {"a": torch.zeros(3), "b": torch.zeros(2), "c": torch.zeros(1), "n": torch.tensor([1])}
    with pytest.raises(ValueError) as raised:
        tall_masks(base, {"one": first, "two": second}, merged={"a": torch.zeros(3).double()})
    lines = str(raised.value).splitlines()
    assert lines[0] == "tall_masks: the models must match base, got 9 differences:"
    assert lines[1:] == [
        "  finetuned['one']['a'] must have shape (3,), got (4,)",
        "  finetuned['one']['b'] must be float32, got float16",
        "  finetuned['one']['c'] is missing",
        "  finetuned['one']['n'] must be int64, got float32",
        "  finetuned['one']['x'] is not in base",
        "  finetuned['two']['n'] must have shape (), got (1,)",
        "  merged['a'] must be float32, got float64",
        "  merged['b'] is missing",
        "  merged['c'] is missing",
    ]


@pytest.fixture
def masks() -> PackedMasks:
    base, finetuned = random_models((10,), 3)
    return tall_masks(base, finetuned).select(0.4)


@pytest.mark.parametrize(
    ("lambdas", "error", "message"),
    [
        (0.35, ValueError, "lambda must be one of (0.2, 0.3, 0.4, 0.5, 0.6), got 0.35"),
        (10**400, ValueError, "lambda must be one of (0.2, 0.3, 0.4, 0.5, 0.6), got an integer"),
        ((0.2, 0.3), ValueError, "must hold one value per task (3)"),
        ({"task 0": 0.2, "b": 0.2}, ValueError, "missing ['task 1', 'task 2'], unknown ['b']"),
        ("0.2", TypeError, "must be a number, a sequence or a mapping, got str"),
        ((0.2, 0.2, None), TypeError, "a lambda must be a number, got NoneType"),
    ],
)
def test_select(lambdas: Any, error: type[Exception], message: str) -> None:
    base, finetuned = random_models((10,), 3)
    with pytest.raises(error) as raised:
        tall_masks(base, finetuned).select(lambdas)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tasks": ["a", "a", "b"]}, ValueError, "tasks must have distinct names, got ['a', 'a'"),
        (
            {"words": torch.zeros(3, 2).long()},
            ValueError,
            "words must have shape (3, 1), got (3, 2)",
        ),
        (
            {"words": torch.zeros(2, 1).long()},
            ValueError,
            "words must have shape (3, 1), got (2, 1)",
        ),
        (
            {"words": torch.zeros(3, 1)},
            TypeError,
            "words must be an int64 tensor, got torch.float32",
        ),
        ({"words": None}, TypeError, "words must be an int64 tensor, got NoneType"),
    ],
)
def test_packed_masks(
    masks: PackedMasks, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        PackedMasks(**{"words": masks.words, "layout": masks.layout, "tasks": masks.tasks} | change)
    assert str(raised.value).startswith("PackedMasks: ")
    assert message in str(raised.value)


def test_words_become_contiguous(masks: PackedMasks) -> None:
    strided = torch.zeros(3, 4, dtype=torch.int64)[:, ::4]
    strided.copy_(masks.words)
    assert torch.equal(PackedMasks(strided, masks.layout, masks.tasks).packed, masks.packed)


@pytest.mark.parametrize("planes", [0, 7, 64, 65])
def test_number_of_planes(planes: int) -> None:
    codes = torch.zeros(1, planes, 1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=f"codes must have 1 to 6 planes, got {planes}"):
        torch.ops.robustcore.mask_select(codes, [1])


@pytest.mark.parametrize("tasks", [2, 2**62, 2**63 - 1])
def test_number_of_models(tasks: int) -> None:
    base = [torch.zeros(3)] * 4
    message = f"finetuned must hold {tasks} times 4 tensors, got 4"
    with pytest.raises(RuntimeError, match=message):
        torch.ops.robustcore.tall_masks(base, base, [], tasks, [0.2], True)


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (3, IndexError, "task must be from 0 to 2, got 3"),
        (-1, IndexError, "task must be from 0 to 2, got -1"),
        ("x", IndexError, "task must be one of ['task 0', 'task 1', 'task 2'], got 'x'"),
        (1.0, TypeError, "task must be an index or a name, got float"),
        (True, TypeError, "task must be an index or a name, got bool"),
    ],
)
def test_tasks(masks: PackedMasks, task: Any, error: type[Exception], message: str) -> None:
    for call in (masks.unpack, lambda t: masks.apply(t, {}, {})):
        with pytest.raises(error) as raised:
            call(task)
        assert message in str(raised.value)


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (0, ValueError, "k must be from 1 to 3, got 0"),
        (4, ValueError, "k must be from 1 to 3, got 4"),
        (1.5, TypeError, "k must be an integer, got float"),
    ],
)
def test_consensus(masks: PackedMasks, k: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        masks.consensus(k)


def test_apply(masks: PackedMasks) -> None:
    base = {"layer0": torch.zeros(10)}
    with pytest.raises(
        ValueError, match="merged\\['layer0'\\] must have shape \\(10,\\), got \\(9,\\)"
    ):
        masks.apply(0, base, {"layer0": torch.zeros(9)})
    with pytest.raises(ValueError, match="base\\['layer0'\\] is missing"):
        masks.apply(0, {}, base)
    with pytest.raises(TypeError, match="base must be a state dict like base, got Tensor"):
        masks.apply(0, torch.zeros(10), base)


def test_in_place_with_gradients(masks: PackedMasks) -> None:
    base = {"layer0": torch.zeros(10, requires_grad=True)}
    vector = {"layer0": torch.ones(10)}
    with pytest.raises(ValueError, match="inplace must be False where tensors require grad"):
        masks.apply(0, base, vector, inplace=True)
    assert base["layer0"].eq(0).all()
    with torch.no_grad():
        masks.apply(0, base, vector, inplace=True)
    assert base["layer0"].count_nonzero() == masks.unpack(0).sum()
