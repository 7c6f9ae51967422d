"""The CUDA kernel that merges weights, in the host executor, bit for bit against the reference."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from simt.harness import Executor
from torch import Tensor

from robustcore.reference import merging as reference
from robustcore.testing.merge_problems import BLOCK, MergeProblem, random_problem, same_bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
WINDOWS = ("none", "open", "ties", "one key")


def run(
    simt: Executor,
    problem: MergeProblem,
    *,
    aligned: bool = False,
    in_place: bool = False,
    out_dtype: torch.dtype | None = None,
) -> None:
    """The single piece of a problem."""
    (base,) = problem.base
    dtype = out_dtype or base.dtype
    expected, expected_counters = problem.run(reference.merge_weights_, [dtype])
    out = base.clone() if in_place else torch.empty(base.shape, dtype=dtype)
    counters = torch.zeros(6, dtype=torch.int64)
    arguments: dict[str, Any] = {} if in_place else {"base": base}
    arguments |= {f"task{t}": tensor for t, tensor in enumerate(problem.finetuned)}

    def table(values: list[float]) -> Tensor | None:
        return torch.tensor(values, dtype=torch.float64) if values else None

    simt.run(
        "merge_weights",
        **arguments,
        out=out,
        tasks=problem.tasks,
        aligned=aligned,
        in_place=in_place,
        is_double=any(t.dtype == F64 for t in (base, *problem.finetuned)),
        rescale=problem.rescale[0],
        weights=problem.weights[0],
        vectors=torch.tensor(problem.vectors),
        windows=None if problem.windows is None else problem.windows[0].contiguous(),
        ties_before=problem.ties_before,
        densities=table(problem.densities),
        lambdas=table(problem.lambdas),
        base_factor=float(problem.scales[0, 0]),
        scale=float(problem.scales[0, 1]),
        flat_start=problem.flat_starts[0],
        election=problem.election,
        reduction=problem.reduction,
        zero_sign=problem.zero_sign,
        seed=problem.seed,
        least=problem.least,
        strict=problem.strict,
        counters=counters,
    )
    assert same_bits(out, expected[0])
    assert counters.tolist() == expected_counters[0].tolist()


@pytest.mark.parametrize(
    ("election", "reduction"), list(itertools.product(range(4), range(4))), ids=str
)
def test_elections_and_reductions(simt: Executor, election: int, reduction: int) -> None:
    index = 4 * election + reduction
    problem = random_problem(
        [1027],
        3,
        seed=index,
        windows=("none", "open")[index % 2],
        election=election,
        reduction=reduction,
        extreme=reduction == 3,
    )
    run(simt, problem, aligned=True)
    dtypes = (F64, F32) if index % 3 == 0 else (BF16, F16, F32)
    problem = random_problem(
        [517], 2, seed=index, dtypes=dtypes, election=election, reduction=reduction
    )
    run(simt, problem)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("size", [1, 4, 1023, BLOCK, BLOCK + 1])
def test_sizes_of_one_dtype(simt: Executor, size: int, dtype: torch.dtype) -> None:
    problem = random_problem([size], 5, seed=size, dtypes=[dtype], election=1, reduction=1)
    run(simt, problem, aligned=True)
    run(simt, problem, aligned=False)


@pytest.mark.parametrize("windows", ["ties", "one key"])
@pytest.mark.parametrize("dtypes", [(F32,), (BF16,), (F64, F16)], ids=str)
@pytest.mark.parametrize("size", [3, 130, BLOCK, 2 * BLOCK + 5])
def test_ties(simt: Executor, size: int, dtypes: tuple[torch.dtype, ...], windows: str) -> None:
    problem = random_problem([size], 3, seed=size, dtypes=dtypes, windows=windows, election=2)
    run(simt, problem)


def test_windows_of_which_some_count_ties(simt: Executor) -> None:
    problem = random_problem([3000], 4, seed=2, windows="ties", reduction=2)
    assert problem.windows is not None
    problem.windows[0, 1] = torch.tensor([0, 2**63 - 1, 2**32 - 1, 0])
    problem.windows[0, 2, 1:] = torch.tensor([0, 2**32 - 1, 0])
    run(simt, problem)


@pytest.mark.parametrize("flat", range(4))
@pytest.mark.parametrize("election", [0, 1])
def test_random_drops(simt: Executor, flat: int, election: int) -> None:
    problem = random_problem([1100], 4, seed=4 + flat, drop=True, election=election)
    problem.flat_starts[0] = 2**34 - 4 + flat
    run(simt, problem, aligned=True)
    problem = random_problem([300], 2, seed=flat, dtypes=[F64, F32], drop=True, windows="ties")
    run(simt, problem)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("windows", ["none", "ties"])
def test_consensus(simt: Executor, windows: str, strict: bool) -> None:
    for dtypes in ((F32,), (F64, F32)):
        problem = random_problem(
            [700], 4, seed=6, dtypes=dtypes, windows=windows, consensus=True, strict=strict
        )
        run(simt, problem, aligned=windows == "none")


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("tasks", [1, 16, 17, 40])
def test_numbers_of_tasks(simt: Executor, tasks: int, windows: str) -> None:
    dtypes = (F64,) if windows in ("open", "one key") else (F32,)
    problem = random_problem(
        [70], tasks, seed=tasks, dtypes=dtypes, windows=windows, election=3, reduction=1
    )
    run(simt, problem, aligned=True)


@pytest.mark.parametrize("dtypes", [(F32,), (F16,), (F64, BF16)], ids=str)
def test_extreme_values(simt: Executor, dtypes: tuple[torch.dtype, ...]) -> None:
    for index, windows in enumerate(WINDOWS):
        problem = random_problem(
            [999],
            3,
            seed=index,
            dtypes=dtypes,
            windows=windows,
            extreme=True,
            election=index,
            reduction=index,
            consensus=index % 2 == 0,
        )
        run(simt, problem, aligned=True)


@pytest.mark.parametrize("windows", ["none", "ties"])
def test_in_place(simt: Executor, windows: str) -> None:
    problem = random_problem([1500], 3, seed=1, windows=windows, election=1, consensus=True)
    run(simt, problem, in_place=True, aligned=True)
    run(simt, problem, in_place=True)


@pytest.mark.parametrize("out_dtype", [F32, F64, BF16, F16], ids=str)
def test_results_of_another_dtype(simt: Executor, out_dtype: torch.dtype) -> None:
    for dtypes in ((F32,), (BF16, F64)):
        problem = random_problem([259], 2, seed=3, dtypes=dtypes, extreme=True)
        run(simt, problem, out_dtype=out_dtype)
