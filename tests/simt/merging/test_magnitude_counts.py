"""The CUDA kernels that count magnitudes, in the host executor, against the reference."""

from __future__ import annotations

import pytest
import torch
from simt.harness import Executor
from torch import Tensor

from robustcore.reference import merging as reference
from robustcore.testing.merge_problems import BLOCK, MergeProblem, random_problem, task_vectors

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPES = [(F32,), (BF16, F16, F32), (F64, BF16)]
SIZES = [1, 1023, BLOCK + 1, 4 * BLOCK + 7]


def shared_arguments(problem: MergeProblem) -> dict[str, object]:
    (base,) = problem.base
    return {
        "base": base,
        **{f"task{t}": tensor for t, tensor in enumerate(problem.finetuned)},
        "tasks": problem.tasks,
        "vectors": torch.tensor(problem.vectors),
        "is_double": any(t.dtype == F64 for t in (base, *problem.finetuned)),
    }


def middle_keys(problem: MergeProblem) -> Tensor:
    """Two keys of each task that occur, [tasks, 2]."""
    rows = []
    for change in task_vectors(problem, 0):
        keys = reference.magnitude_keys(change).sort().values
        rows.append([int(keys[len(keys) // 2]), int(keys[len(keys) * 9 // 10])])
    return torch.tensor(rows)


def check_histograms(simt: Executor, problem: MergeProblem) -> None:
    lists = (problem.base, problem.finetuned, problem.vectors)
    upper_keys = (middle_keys(problem) >> 15)[:, :1]
    for keys, bins in ((None, 1 << 16), (upper_keys, 1 << 15)):
        counts = torch.randint(0, 5, (problem.tasks, bins))
        expected = counts.clone()
        upper = [] if keys is None else keys[:, 0].tolist()
        reference.magnitude_histogram_(expected, *lists, upper)
        given = None if keys is None else torch.cat([keys, keys], 1)
        simt.run("magnitude_histogram", keys=given, counts=counts, **shared_arguments(problem))
        assert torch.equal(counts, expected)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_histograms(simt: Executor, size: int, dtypes: tuple[torch.dtype, ...]) -> None:
    check_histograms(simt, random_problem([size], 2, seed=size, dtypes=dtypes))


def test_magnitudes_of_all_orders(simt: Executor) -> None:
    """Most are outside the bins that a block keeps to itself, and frozen parameters are many."""
    problem = random_problem([5000], 2, seed=1, extreme=True)
    for task in problem.finetuned:
        exponents = torch.randint(-140, 120, (5000,)).double()
        task[:] = (torch.randn(5000).double() * 2**exponents).float()
        task[::3] = problem.base[0][::3]
    check_histograms(simt, problem)


def test_lower_bits_that_differ(simt: Executor) -> None:
    problem = random_problem([3000], 1, seed=2)
    problem.base[0].zero_()
    problem.finetuned[0][:] = 1 + torch.rand(3000) / 512
    check_histograms(simt, problem)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_ties(simt: Executor, size: int, dtypes: tuple[torch.dtype, ...]) -> None:
    problem = random_problem([size], 3, seed=size, dtypes=dtypes, extreme=size == 1023)
    keys = middle_keys(problem)
    keys[2] = keys[2, 0]  # both keys are one
    windows = torch.zeros(1, 3, 4, dtype=torch.int64)
    windows[0, :, 0::2] = keys
    expected = reference.magnitude_ties(problem.base, problem.finetuned, problem.vectors, windows)
    ties = torch.empty_like(expected)
    simt.run("magnitude_ties", keys=keys, ties=ties, **shared_arguments(problem))
    assert torch.equal(ties, expected)


def test_all_parameters_tie(simt: Executor) -> None:
    problem = random_problem([BLOCK], 1)
    problem.finetuned[0][:] = problem.base[0]
    ties = torch.empty(1, 1, 2, dtype=torch.int64)
    keys = torch.zeros(1, 2, dtype=torch.int64)
    simt.run("magnitude_ties", keys=keys, ties=ties, **shared_arguments(problem))
    assert ties.tolist() == [[[BLOCK, BLOCK]]]
