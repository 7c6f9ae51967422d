"""Wrong arguments of linear_recurrence: what is raised, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from robustcore.pcr import linear_recurrence

A, X = torch.rand(2, 5, 3), torch.randn(2, 5, 3)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: linear_recurrence(0.5, X), TypeError, "a must be a torch.Tensor, got float"),
        (lambda: linear_recurrence(A, [1.0]), TypeError, "x must be a torch.Tensor, got list"),
        (
            lambda: linear_recurrence(A, X, 0.0),
            TypeError,
            "initial must be a torch.Tensor, got float",
        ),
        (
            lambda: linear_recurrence(A, X, time_dim=1.0),
            TypeError,
            "time_dim must be an int, got float",
        ),
        (
            lambda: linear_recurrence(A, X, time_dim=True),
            TypeError,
            "time_dim must be an int, got bool",
        ),
        (
            lambda: linear_recurrence(A, X.to("meta")),
            ValueError,
            "x must be on cpu, got meta",
        ),
        (
            lambda: linear_recurrence(A, X, torch.empty(3, device="meta")),
            ValueError,
            "initial must be on cpu, got meta",
        ),
        (
            lambda: linear_recurrence(A.long(), X),
            TypeError,
            "a must be float32, float64, bfloat16 or float16, got int64",
        ),
        (
            lambda: linear_recurrence(A, X.to(torch.complex64)),
            TypeError,
            "x must be float32, float64, bfloat16 or float16, got complex64",
        ),
        (
            lambda: linear_recurrence(A, X, torch.zeros(3, dtype=torch.int32)),
            TypeError,
            "initial must be float32, float64, bfloat16 or float16, got int32",
        ),
        (
            lambda: linear_recurrence(A.half(), X),
            TypeError,
            "x must have the dtype of a (float16), got float32",
        ),
        (
            lambda: linear_recurrence(A, X, torch.zeros(3, dtype=torch.float64)),
            TypeError,
            "initial must be float32 for x of float32, got float64",
        ),
        (
            lambda: linear_recurrence(A, X, torch.zeros(3, dtype=torch.bfloat16)),
            TypeError,
            "initial must be float32 for x of float32, got bfloat16",
        ),
        (
            lambda: linear_recurrence(A.half(), X.half(), torch.zeros(3, dtype=torch.bfloat16)),
            TypeError,
            "initial must be float16 or float32 for x of float16, got bfloat16",
        ),
        (
            lambda: linear_recurrence(A.double(), X.double(), torch.zeros(3)),
            TypeError,
            "initial must be float64 for x of float64, got float32",
        ),
        (
            lambda: linear_recurrence(A.to("meta"), X.half().to("meta")),
            TypeError,
            "x must have the dtype of a (float32), got float16",
        ),
        (
            lambda: linear_recurrence(A, X, reverse="no"),
            TypeError,
            "reverse must be a bool, got str",
        ),
        (
            lambda: linear_recurrence(A, X, reverse=1),
            TypeError,
            "reverse must be a bool, got int",
        ),
        (
            lambda: linear_recurrence(A.to_sparse(), X),
            TypeError,
            "a must be a dense (strided) tensor, got torch.sparse_coo",
        ),
        (
            lambda: linear_recurrence(A, X.to_sparse()),
            TypeError,
            "x must be a dense (strided) tensor, got torch.sparse_coo",
        ),
        (
            lambda: linear_recurrence(A, X, A[:, 0].to_sparse()),
            TypeError,
            "initial must be a dense (strided) tensor, got torch.sparse_coo",
        ),
        (
            lambda: linear_recurrence(torch.nested.nested_tensor(list(A), layout=torch.jagged), X),
            TypeError,
            "a must be a dense (strided) tensor, got torch.jagged",
        ),
        (
            lambda: linear_recurrence(A, X[:, :4]),
            ValueError,
            "a must have a shape that broadcasts with x (2, 4, 3), got (2, 5, 3)",
        ),
        (
            lambda: linear_recurrence(A, X, torch.zeros(5)),
            ValueError,
            "initial must have a shape that broadcasts to (2, 3), got (5,)",
        ),
        (
            lambda: linear_recurrence(A, X, torch.zeros(1, 2, 3)),
            ValueError,
            "initial must have a shape that broadcasts to (2, 3), got (1, 2, 3)",
        ),
        (
            lambda: linear_recurrence(A, X, time_dim=3),
            ValueError,
            "time_dim must be in [-3, 3) for states of shape (2, 5, 3), got 3",
        ),
        (
            lambda: linear_recurrence(A, X, time_dim=-4),
            ValueError,
            "time_dim must be in [-3, 3) for states of shape (2, 5, 3), got -4",
        ),
        (
            lambda: linear_recurrence(A[0, 0], X[0, 0]),
            ValueError,
            "time_dim must be in [-1, 1) for states of shape (3,), got -2",
        ),
        (
            lambda: linear_recurrence(torch.tensor(0.5), torch.tensor(1.0), time_dim=-1),
            ValueError,
            "time_dim must be in [0, 0) for states of shape (), got -1",
        ),
    ],
)
def test_message(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == f"linear_recurrence: {message}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((A[:1], X, None, -2, False), "a must have size 2 at dimension 0, got 1"),
        ((A.double(), X, None, -2, False), "a has the wrong dtype"),
        ((A, X, torch.zeros(2), -2, False), "initial must have 2 dimensions, got 1"),
        ((A, X, torch.zeros(3, 2), -2, False), "initial must have size 2 at dimension 0, got 3"),
        ((A, X, torch.zeros(2, 3), -1, False), "initial must have size 5 at dimension 1, got 3"),
        ((A, X, torch.zeros(2, 3).double(), -2, False), "initial has the wrong dtype"),
        ((A, X, None, 1, False), "time_dim must be in [-3, -1], got 1"),
    ],
)
def test_raw_operators_check_what_they_are_given(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.ops.robustcore.linear_recurrence(*arguments)
    assert message in str(caught.value)


def test_raw_operators_refuse_to_mix_meta_tensors_with_others() -> None:
    forward = torch.ops.robustcore.linear_recurrence
    backward = torch.ops.robustcore.linear_recurrence_backward
    state = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="linear_recurrence: a must be on cpu, got meta"):
        forward(A.to("meta"), X, None, -2, False)
    with pytest.raises(ValueError, match="linear_recurrence: a must be on meta, got cpu"):
        forward(A, X.to("meta"), None, -2, False)
    with pytest.raises(ValueError, match="initial must be on cpu, got meta"):
        forward(A, X, state.to("meta"), -2, False)
    needs = (True, True, True)
    with pytest.raises(ValueError, match="linear_recurrence_backward: a must be on cpu, got meta"):
        backward(X, A.to("meta"), X, state, -2, False, *needs)
    with pytest.raises(ValueError, match="states must be on cpu, got meta"):
        backward(X, A, X.to("meta"), state, -2, False, *needs)
    with pytest.raises(ValueError, match="initial must be on cpu, got meta"):
        backward(X, A, X, state.to("meta"), -2, False, *needs)
