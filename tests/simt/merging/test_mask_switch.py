"""The CUDA kernel that goes from mask to mask, in the host executor, against the reference."""

from __future__ import annotations

import pytest
import torch
from simt.harness import Executor
from torch import Tensor

from robustcore.reference import merging as reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Tails of the 2048 parameters of a block; bits that start inside a word.
SIZES = [[1], [0, 64, 0], [3, 2047, 2], [2049, 5], [100, 4100]]


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    return torch.equal(actual.view(torch.uint8), expected.view(torch.uint8))


def run(simt: Executor, sizes: list[int], dtypes: list[torch.dtype], share: float = 0.5) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    base, merged = [], []
    for size, dtype in zip(sizes, dtypes, strict=True):
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        base.append(torch.randn(size, generator=generator).to(dtype))
        base[-1][:2] = torch.tensor([-0.0, torch.inf])[:size].to(dtype)
        merged.append(torch.randn(size, generator=generator).to(compute))
    kept = torch.rand(sum(sizes), generator=generator) < 0.5
    flipped = torch.rand(sum(sizes), generator=generator) < share
    before, after = reference.pack_words(kept), reference.pack_words(kept ^ flipped)
    weights = [torch.full_like(tensor, 7.0) for tensor in base]
    expected = [tensor.clone() for tensor in weights]
    reference.mask_switch_(expected, base, merged, before, after)
    models = {"weights": weights, "base": base, "merged": merged}
    tensors = {f"{name}{i}": t for name, model in models.items() for i, t in enumerate(model)}
    simt.run("mask_switch", **tensors, before=before, after=after, tensors=len(base))
    assert all(map(same_bits, weights, expected))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_switch(simt: Executor, sizes: list[int], dtype: torch.dtype) -> None:
    run(simt, sizes, [dtype] * len(sizes))


@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_few_and_all_bits(simt: Executor, share: float) -> None:
    run(simt, [70, 2100], [torch.float32] * 2, share)


def test_runs_of_different_dtypes(simt: Executor) -> None:
    run(simt, [70, 30, 40, 5], [torch.float32, torch.bfloat16, torch.float16, torch.float64])


def test_more_tensors_than_one_launch_takes(simt: Executor) -> None:
    run(simt, [7] * 70, [torch.float32] * 70)
