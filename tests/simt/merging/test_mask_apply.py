"""The CUDA kernel that applies a mask, in the host executor, bit for bit against the reference."""

from __future__ import annotations

import pytest
import torch
from simt.harness import Executor
from torch import Tensor

from robustcore.reference import merging as reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Tails of the 2048 parameters of a block; bits that start inside a word.
SIZES = [[1], [0, 64, 0], [3, 2047, 2], [2049, 5], [100, 4100]]


def given(sizes: list[int], dtypes: list[torch.dtype]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    base = [
        torch.randn(size, generator=generator).to(dtype)
        for size, dtype in zip(sizes, dtypes, strict=True)
    ]
    for tensor in base:
        tensor[:3] = torch.tensor([-0.0, torch.nan, torch.inf])[: tensor.numel()].to(tensor.dtype)
    merged = [
        torch.randn(tensor.numel(), generator=generator).to(
            torch.float64 if tensor.dtype == torch.float64 else torch.float32
        )
        for tensor in base
    ]
    kept = torch.rand(sum(sizes), generator=generator) < 0.5
    return base, merged, reference.pack_words(kept)


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    number = {2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
    same = actual.view(number) == expected.view(number)
    return bool((same | (actual.isnan() & expected.isnan())).all())


def run(simt: Executor, sizes: list[int], dtypes: list[torch.dtype], in_place: bool) -> None:
    base, merged, mask = given(sizes, dtypes)
    expected = reference.mask_apply(base, merged, mask)
    arguments: dict[str, object] = {f"base{i}": tensor for i, tensor in enumerate(base)}
    arguments |= {f"merged{i}": tensor for i, tensor in enumerate(merged)}
    results = base if in_place else [torch.empty_like(tensor) for tensor in base]
    if not in_place:
        arguments |= {f"result{i}": tensor for i, tensor in enumerate(results)}
    simt.run("mask_apply", **arguments, mask=mask, tensors=len(base), in_place=in_place)
    assert all(map(same_bits, results, expected))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_apply(simt: Executor, sizes: list[int], dtype: torch.dtype, in_place: bool) -> None:
    run(simt, sizes, [dtype] * len(sizes), in_place)


def test_runs_of_different_dtypes(simt: Executor) -> None:
    run(simt, [70, 30, 40, 5], [torch.float32, torch.bfloat16, torch.float16, torch.float64], False)


def test_more_tensors_than_one_launch_takes(simt: Executor) -> None:
    run(simt, [7] * 70, [torch.float32] * 70, False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_multiply(simt: Executor, dtype: torch.dtype) -> None:
    tensors, _, mask = given([70, 2050], [dtype] * 2)
    results = [torch.empty_like(tensor) for tensor in tensors]
    simt.run(
        "mask_multiply",
        **{f"base{i}": tensor for i, tensor in enumerate(tensors)},
        **{f"result{i}": tensor for i, tensor in enumerate(results)},
        mask=mask,
        tensors=2,
        in_place=False,
    )
    assert all(map(same_bits, results, reference.mask_multiply(tensors, mask)))
