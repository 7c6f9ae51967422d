"""The raw operators: schemas, shape functions, derivatives, torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from robustcore.testing import map_tensors
from robustcore.testing.samples_merging import operator_inputs

INPUTS = [
    pytest.param(name, args, id=f"{name} {index}")
    for index, (name, args) in enumerate(operator_inputs())
]


def operator(name: str) -> Any:
    return getattr(torch.ops.robustcore, name).default


@pytest.mark.parametrize(("name", "args"), INPUTS)
def test_opcheck(name: str, args: tuple[Any, ...]) -> None:
    torch.library.opcheck(operator(name), args)


DIFFERENTIABLE = ("mask_apply", "mask_multiply", "combine_task_vectors", "task_vector_products")


@pytest.mark.parametrize(("name", "args"), [p for p in INPUTS if p.values[0] in DIFFERENTIABLE])
def test_opcheck_with_gradients(name: str, args: tuple[Any, ...]) -> None:
    leaves = map_tensors(
        lambda t: t.detach().requires_grad_() if t.is_floating_point() else t, list(args)
    )
    torch.library.opcheck(operator(name), tuple(leaves))


@pytest.mark.parametrize(("name", "args"), [p for p in INPUTS if not p.values[0].endswith("_")])
def test_compile(name: str, args: tuple[Any, ...]) -> None:
    torch._dynamo.reset()
    function = operator(name)
    compiled = torch.compile(lambda *a: function(*a), fullgraph=True, backend="aot_eager")
    expected, actual = function(*args), compiled(*args)
    as_list = lambda value: [value] if isinstance(value, torch.Tensor) else list(value)  # noqa: E731
    assert all(map(torch.equal, as_list(actual), as_list(expected)))


def test_codes_are_constants_for_autograd() -> None:
    name, args = next(operator_inputs())
    leaves = map_tensors(lambda t: t.clone().requires_grad_(), list(args[0]))
    codes, counts = operator(name)(leaves, *args[1:])
    assert not codes.requires_grad
    assert not counts.requires_grad


def test_in_place_never_drops_a_gradient() -> None:
    base = [torch.randn(70, requires_grad=True)]
    merged = [torch.randn(70)]
    none = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="mask_apply_"):
        operator("mask_apply_")(base, merged, none)
    with pytest.raises(RuntimeError, match="mask_switch_"):
        operator("mask_switch_")(base, merged, merged, none, none)
    with pytest.raises(RuntimeError, match="mask_switch_"):
        operator("mask_switch_")(merged, merged, base, none, none)
