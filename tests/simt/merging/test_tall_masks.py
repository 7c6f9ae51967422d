"""The CUDA kernels of tall_masks in the host executor, bit for bit against the reference."""

from __future__ import annotations

import pytest
import torch
from simt.harness import Executor
from torch import Tensor

from robustcore.reference import merging as reference

LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Tails of the 32 parameters of a word, the 256 of a warp and the 2048 of a block; empty tensors.
SIZES = [[1], [32], [0, 33, 0], [31, 1, 65], [255, 1, 300], [5] * 9, [2049, 3], [40, 0, 2000]]


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def random_models(
    sizes: list[int], dtypes: list[torch.dtype], tasks: int, seed: int
) -> tuple[list[Tensor], list[list[Tensor]]]:
    generator = torch.Generator().manual_seed(seed)

    def noise(size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    base = [noise(size).to(dtype) for size, dtype in zip(sizes, dtypes, strict=True)]
    finetuned = [
        [(start.double() + 0.1 * noise(start.numel())).to(start.dtype) for start in base]
        for _ in range(tasks)
    ]
    return base, finetuned


def check(
    simt: Executor,
    base: list[Tensor],
    finetuned: list[list[Tensor]],
    lambdas: tuple[float, ...] = LAMBDAS,
    merged: list[Tensor] | None = None,
    strict: bool = True,
) -> None:
    tasks = len(finetuned)
    rows = [tensor for model in finetuned for tensor in model]
    expected, counts = reference.tall_mask_codes(base, rows, merged or [], tasks, lambdas, strict)
    codes = torch.empty_like(expected)
    arguments: dict[str, object] = {f"base{i}": tensor for i, tensor in enumerate(base)}
    for task, model in enumerate(finetuned):
        arguments |= {f"finetuned{task}_{i}": tensor for i, tensor in enumerate(model)}
    arguments |= {f"merged{i}": tensor for i, tensor in enumerate(merged or [])}
    simt.run(
        "tall_masks",
        **arguments,
        tensors=len(base),
        tasks=tasks,
        has_merged=merged is not None,
        strict=strict,
        lambdas=torch.tensor(lambdas, dtype=torch.float64),
        codes=codes.view(torch.int32),
    )
    assert torch.equal(codes, expected)
    counted = torch.zeros_like(counts)
    simt.run(
        "count_codes",
        codes=codes,
        counts=counted,
        words=codes.shape[2],
        tasks=tasks,
        planes=codes.shape[1],
        lambdas=len(lambdas),
    )
    assert torch.equal(counted, counts)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes(simt: Executor, sizes: list[int], dtype: torch.dtype) -> None:
    check(simt, *random_models(sizes, [dtype] * len(sizes), 3, seed=0))


@pytest.mark.parametrize("tasks", [1, 4, 5, 8, 9, 16, 17, 30])
def test_tasks(simt: Executor, tasks: int) -> None:
    check(simt, *random_models([70, 13], [torch.float32] * 2, tasks, seed=1))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 15, 16, 63])
def test_lambdas(simt: Executor, count: int) -> None:
    lambdas = tuple(0.05 * n for n in range(1, count + 1))
    check(simt, *random_models([100], [torch.float32], 6, seed=2), lambdas)


def test_runs_of_different_dtypes_share_words(simt: Executor) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.bfloat16, torch.float64, torch.float16]
    check(simt, *random_models([37, 5, 90, 3, 20], dtypes, 5, seed=3))


def test_more_tensors_than_one_launch_takes(simt: Executor) -> None:
    check(simt, *random_models([7] * 70, [torch.float32] * 70, 2, seed=4))
    check(simt, *random_models([9] * 12, [torch.float32] * 12, 60, seed=5))


@pytest.mark.parametrize("tasks", [3, 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merged_given(simt: Executor, tasks: int, dtype: torch.dtype) -> None:
    base, finetuned = random_models([300, 11], [dtype] * 2, tasks, seed=6)
    merged = [torch.randn(tensor.numel(), dtype=wide(dtype)) for tensor in base]
    check(simt, base, finetuned, merged=merged)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("tasks", [2, 6, 11, 18])
def test_extreme_values(simt: Executor, strict: bool, tasks: int) -> None:
    """Frozen parameters, ties, infinities, NaN and subnormals in every combination."""
    values = torch.tensor([0.0, -0.0, 1.0, 1.5, torch.inf, -torch.inf, torch.nan, 1e-45, 3e38])
    base = values.repeat_interleave(len(values))
    change = values.repeat(len(values))
    finetuned = [[base.clone()], [change]] + [[change.roll(n)] for n in range(1, tasks - 1)]
    check(simt, [base], finetuned, strict=strict)
