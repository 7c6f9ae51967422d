"""The operators that merge weights: bits of the reference, for any cut and number of threads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import strategies
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustcore.merging import _operators as operators
from robustcore.reference import merging as reference
from robustcore.testing.merge_problems import (
    BLOCK,
    MergeProblem,
    random_problem,
    same_bits,
    task_vectors,
)

Threads = Callable[[int], contextlib.AbstractContextManager[None]]

# Around the vectors, strips and blocks of the kernels.
SIZES = (0, 1, 15, 16, 17, 63, 64, 65, 511, 512, 513, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 700)
WINDOWS = ("none", "open", "ties", "one key")


@st.composite
def problems(draw: st.DrawFn) -> MergeProblem:
    return random_problem(
        draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=4)),
        draw(st.integers(1, 9)),
        seed=draw(st.integers(0, 10000)),
        dtypes=draw(st.lists(strategies.floating_dtypes, min_size=1, max_size=3)),
        windows=draw(st.sampled_from(WINDOWS)),
        drop=draw(st.booleans()),
        consensus=draw(st.booleans()),
        election=draw(st.integers(0, 3)),
        reduction=draw(st.integers(0, 3)),
        extreme=draw(st.booleans()),
        strict=draw(st.booleans()),
    )


def check_merge(problem: MergeProblem, dtypes: list[torch.dtype] | None = None) -> None:
    out, counters = problem.run(operators.merge_weights_, dtypes)
    expected, expected_counters = problem.run(reference.merge_weights_, dtypes)
    assert all(map(same_bits, out, expected))
    assert torch.equal(counters, expected_counters)


@settings(max_examples=80)
@given(problems())
def test_merge(problem: MergeProblem) -> None:
    check_merge(problem)


@pytest.mark.parametrize("dtype", strategies.FLOATING, ids=str)
@pytest.mark.parametrize("election", range(4))
@pytest.mark.parametrize("reduction", range(4))
def test_elections_and_reductions(election: int, reduction: int, dtype: torch.dtype) -> None:
    for windows in WINDOWS:
        problem = random_problem(
            [600, 5],
            5,
            seed=4 * election + reduction,
            dtypes=[dtype],
            windows=windows,
            election=election,
            reduction=reduction,
        )
        check_merge(problem)


@given(problems(), st.lists(strategies.floating_dtypes, min_size=4, max_size=4))
@settings(max_examples=30)
def test_results_of_another_dtype(problem: MergeProblem, dtypes: list[torch.dtype]) -> None:
    check_merge(problem, dtypes[: len(problem.base)])


@given(problems(), st.integers(1, 2))
@settings(max_examples=40)
def test_slices_give_the_bits_of_whole_tensors(problem: MergeProblem, blocks: int) -> None:
    whole, whole_counters = problem.run(operators.merge_weights_)
    cut = problem.cut(blocks)
    parts, counters = cut.run(operators.merge_weights_)
    assert same_bits(torch.cat([p.double() for p in parts]), torch.cat([w.double() for w in whole]))
    assert torch.equal(counters.sum(0), whole_counters.sum(0))
    if problem.windows is not None:
        ties = operators.magnitude_ties
        whole_ties = ties(problem.base, problem.finetuned, problem.vectors, problem.windows)
        assert torch.equal(ties(cut.base, cut.finetuned, cut.vectors, cut.windows), whole_ties)
    first, second = problem.base, problem.finetuned[: len(problem.base)]
    sums = operators.compare_weights(first, second)
    cut_sums = operators.compare_weights(cut.base, cut.finetuned[: len(cut.base)])
    assert same_bits(cut_sums, sums)


def test_results_in_place() -> None:
    problem = random_problem([5000, 70], 3, windows="ties", drop=True, consensus=True, election=1)
    expected, expected_counters = problem.run(operators.merge_weights_)
    counters = operators.merge_weights_(problem.base, *problem.arguments())
    assert all(map(same_bits, problem.base, expected))
    assert torch.equal(counters, expected_counters)


@pytest.mark.parametrize("windows", WINDOWS)
def test_threads_do_not_matter(threads: Threads, windows: str) -> None:
    problem = random_problem(
        [50 * BLOCK + 77, 300], 3, windows=windows, drop=True, election=1, dtypes=(torch.float16,)
    )
    lists = (problem.base, problem.finetuned, problem.vectors)
    results = []
    for count in (1, 2):
        with threads(count):
            out, counters = problem.run(operators.merge_weights_)
            histogram = torch.zeros(3, 1 << 16, dtype=torch.int64)
            operators.magnitude_histogram_(histogram, *lists, [])
            sums = operators.compare_weights(problem.base, problem.base)
            results.append([*out, counters, histogram, sums])
    assert all(map(same_bits, *results))


def test_frozen_parameters_keep_every_bit() -> None:
    base = torch.tensor([-0.0, 0.0, 1e-45, torch.inf, -torch.inf, 3e38]).repeat(100)
    problem = replace(
        random_problem([600], 2, reduction=1),
        base=[base],
        finetuned=[base.clone(), base.clone()],
        vectors=[0, 0],
        scales=torch.tensor([[1.0, 0.7]], dtype=torch.float64),
    )
    out, counters = problem.run(operators.merge_weights_)
    finite = base.isfinite()
    assert same_bits(out[0][finite], base[finite])
    assert counters[0, :3].tolist() == [200, 400, 200]


def test_nonfinite_weights_stay_where_they_are() -> None:
    problem = random_problem([5000], 4, election=2, reduction=2, windows="open")
    expected, _ = problem.run(operators.merge_weights_)
    problem.finetuned[1][77] = torch.nan
    problem.finetuned[2][4097] = torch.inf
    out, counters = problem.run(operators.merge_weights_)
    same = out[0] == expected[0]
    same[[77, 4097]] = True
    assert same.all()
    assert counters[0, 1] == 2


# Histograms, ties, sums.


@given(problems())
@settings(max_examples=40)
def test_histograms(problem: MergeProblem) -> None:
    lists = (problem.base, problem.finetuned, problem.vectors)
    keys = [
        torch.cat([reference.magnitude_keys(change) for change in changes])
        for changes in zip(
            *(task_vectors(problem, i) for i in range(len(problem.base))), strict=True
        )
    ]
    middle = [int(row.sort().values[len(row) // 2]) >> 15 if len(row) else 0 for row in keys]
    for upper, bins in (([], 1 << 16), (middle, 1 << 15)):
        counts = torch.randint(0, 9, (problem.tasks, bins))
        expected = counts.clone()
        operators.magnitude_histogram_(counts, *lists, upper)
        reference.magnitude_histogram_(expected, *lists, upper)
        assert torch.equal(counts, expected)


@given(problems())
@settings(max_examples=30)
def test_two_histograms_find_any_rank(problem: MergeProblem) -> None:
    lists = (problem.base, problem.finetuned, problem.vectors)
    upper = torch.zeros(problem.tasks, 1 << 16, dtype=torch.int64)
    operators.magnitude_histogram_(upper, *lists, [])
    lower = torch.zeros(problem.tasks, 1 << 15, dtype=torch.int64)
    parameters = int(upper[0].sum())
    assert parameters == sum(tensor.numel() for tensor in problem.base)
    rank = parameters // 3  # from the smallest
    if not parameters:
        return
    bins = (upper.cumsum(1) > rank).int().argmax(1)
    operators.magnitude_histogram_(lower, *lists, bins.tolist())
    for task in range(problem.tasks):
        changes = [task_vectors(problem, i)[task] for i in range(len(problem.base))]
        keys = torch.cat([reference.magnitude_keys(change) for change in changes]).sort().values
        below = int(upper[task, : bins[task]].sum())
        inner = int((lower[task].cumsum(0) > rank - below).int().argmax())
        assert (int(bins[task]) << 15) + inner == keys[rank]


@given(problems())
@settings(max_examples=40)
def test_ties(problem: MergeProblem) -> None:
    windows = problem.windows
    if windows is None:
        windows = torch.zeros(len(problem.base), problem.tasks, 4, dtype=torch.int64)
    arguments = (problem.base, problem.finetuned, problem.vectors, windows)
    actual = operators.magnitude_ties(*arguments)
    assert torch.equal(actual, reference.magnitude_ties(*arguments))


@given(problems())
@settings(max_examples=60)
def test_sums(problem: MergeProblem) -> None:
    count = len(problem.base)
    for second in (problem.finetuned[:count], []):
        actual = operators.compare_weights(problem.base, second)
        assert same_bits(actual, reference.compare_weights(problem.base, second))


def test_sums_mean_what_they_say() -> None:
    a, b = torch.randn(10000).double(), torch.randn(10000).double()
    d = a - b
    sums = operators.compare_weights([a], [b])
    assert sums.shape == (3, 10)
    total, largest = sums.sum(0), sums[:, 6].max()
    expected = [
        d.abs().sum(),
        d @ d,
        a @ a,
        b @ b,
        a @ b,
        10000,
        None,
        0,
        a.abs().sum(),
        b.abs().sum(),
    ]
    for column, value in enumerate(expected):
        if value is not None:
            assert float(total[column]) == pytest.approx(float(value), rel=1e-12, abs=1e-10)
    assert largest == d.abs().max()


def test_nans_have_one_key() -> None:
    bits = torch.tensor([0x7FC00000, 0x7F800001, -0x400000, 0x7FFFFFFF], dtype=torch.int32)
    nans = bits.view(torch.float32)
    counts = torch.zeros(1, 1 << 16, dtype=torch.int64)
    operators.magnitude_histogram_(counts, [torch.zeros(4)], [nans], [1], [])
    assert counts[0].nonzero().tolist() == [[0x7F800001 >> 15]]
    assert counts.sum() == 4


def test_random_drops_keep_about_their_share() -> None:
    size = 200_000
    problem = replace(
        random_problem([size], 3),
        base=[torch.zeros(size)],
        finetuned=[torch.ones(size)] * 3,
        vectors=[1, 1, 1],
        densities=[0.1, 0.5, 1.0],
        rescale=torch.ones(1, 3, dtype=torch.float64),
        weights=torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64),
        scales=torch.tensor([[0.0, 1.0]], dtype=torch.float64),
    )
    kept = problem.run(operators.merge_weights_)[0][0].int()
    for task, density in enumerate((0.1, 0.5, 1.0)):
        share = ((kept >> task) & 1).double().mean()
        assert share == pytest.approx(density, abs=5 * (0.25 / size) ** 0.5)
    both = (kept & 3 == 3).double().mean()
    assert both == pytest.approx(0.05, abs=5 * (0.25 / size) ** 0.5)


# What autograd is told.


def test_tensors_that_require_grad_are_refused() -> None:
    problem = random_problem([70], 2)
    out = [torch.empty(70)]
    leaf = problem.finetuned[0].requires_grad_()
    with pytest.raises(RuntimeError, match="merge_weights_: tensors must not require grad"):
        operators.merge_weights_(out, *problem.arguments())
    with pytest.raises(RuntimeError, match="compare_weights: tensors must not require grad"):
        operators.compare_weights([leaf], [])
    with torch.no_grad():
        operators.merge_weights_(out, *problem.arguments())
        operators.compare_weights([leaf], [])
    counts = torch.zeros(2, 1 << 16, dtype=torch.int64)
    operators.magnitude_histogram_(counts, problem.base, problem.finetuned, problem.vectors, [])
    assert counts.sum() == 140


def test_versions_count_what_is_overwritten() -> None:
    problem = random_problem([70], 2)
    out, counts = torch.empty(70), torch.zeros(2, 1 << 16, dtype=torch.int64)
    before = out._version, counts._version
    operators.merge_weights_([out], *problem.arguments())
    operators.magnitude_histogram_(counts, problem.base, problem.finetuned, problem.vectors, [])
    assert (out._version, counts._version) == (before[0] + 1, before[1] + 1)
    with torch.inference_mode():
        operators.merge_weights_([torch.empty(70)], *problem.arguments())


# Errors. The functions are not public: what a caller may do wrong is checked before, what would
# read past the end of a table is checked here.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": []}, "there must be at least one task"),
        ({"finetuned": [torch.zeros(70)] * 3}, "finetuned must hold 2 times 1 tensors, got 3"),
        ({"finetuned": [torch.zeros(69)] * 2}, "finetuned must have 70 elements, got 69"),
        ({"finetuned": [torch.zeros(70).long()] * 2}, "finetuned must be float32, float64"),
        ({"finetuned": [torch.zeros(140)[::2]] * 2}, "finetuned must be contiguous"),
        ({"rescale": torch.ones(2)}, "rescale has the wrong dtype"),
        ({"rescale": torch.ones(3).double()}, "rescale must have 2 elements, got 3"),
        ({"weights": torch.ones(1).double()}, "weights must have 2 elements, got 1"),
        ({"scales": torch.ones(4).double()[::2]}, "scales must be contiguous and on the CPU"),
        ({"windows": torch.zeros(4).long()}, "windows must have 8 elements, got 4"),
        ({"windows": torch.ones(8).long()}, "ties_before must be given where windows count ties"),
        ({"ties_before": torch.zeros(1, 2).long()}, "ties_before must have 4 elements, got 2"),
        ({"densities": [0.5]}, "densities must be empty or hold one number per task"),
        ({"densities": [0.5, 1.5]}, "densities must be from 0 to 1"),
        ({"densities": [0.5, float("nan")]}, "densities must be from 0 to 1"),
        ({"flat_starts": []}, "flat_starts must hold one index per tensor"),
        ({"election": 4}, "election and reduction must be from 0 to 3"),
        ({"reduction": -1}, "election and reduction must be from 0 to 3"),
        ({"lambdas": [0.1]}, "lambdas must be empty or hold one number per task"),
    ],
)
def test_bad_arguments_of_merge(changes: dict[str, Any], message: str) -> None:
    problem = replace(random_problem([70], 2), **changes)
    with pytest.raises(RuntimeError, match=f"merge_weights_: {message}"):
        operators.merge_weights_([torch.empty(70)], *problem.arguments())


@pytest.mark.parametrize(
    "out", [[], [torch.empty(71)], [torch.empty(140)[::2]], [torch.empty(70, dtype=torch.int32)]]
)
def test_bad_results_of_merge(out: list[Tensor]) -> None:
    with pytest.raises(RuntimeError, match="merge_weights_: out must"):
        operators.merge_weights_(out, *random_problem([70], 2).arguments())


def test_bad_arguments_of_counts_and_sums() -> None:
    lists = ([torch.zeros(70)], [torch.zeros(70)], [0])
    for counts, upper, message in (
        (torch.zeros(100).long(), [], "counts must have 65536 elements, got 100"),
        (torch.zeros(1 << 16), [], "counts has the wrong dtype"),
        (torch.zeros(1 << 17).long()[::2], [], "counts must be contiguous"),
        (torch.zeros(1 << 15).long(), [1, 2], "upper must be empty or hold one number per task"),
    ):
        with pytest.raises(RuntimeError, match=f"magnitude_histogram_: {message}"):
            operators.magnitude_histogram_(counts, *lists, upper)
    with pytest.raises(RuntimeError, match="magnitude_ties: windows must have 4 elements, got 3"):
        operators.magnitude_ties(*lists, torch.zeros(3).long())
    with pytest.raises(RuntimeError, match="compare_weights: second must have 70 elements, got 1"):
        operators.compare_weights(lists[0], [torch.zeros(1)])


def test_no_pieces() -> None:
    problem = random_problem([], 2)
    out, counters = problem.run(operators.merge_weights_)
    assert out == []
    assert counters.shape == (0, 6)
    counts = torch.zeros(2, 1 << 16, dtype=torch.int64)
    operators.magnitude_histogram_(counts, [], [], [0, 0], [])
    assert counts.sum() == 0
