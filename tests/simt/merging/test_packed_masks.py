"""The CUDA kernels on packed masks in the host executor, against the reference."""

from __future__ import annotations

import pytest
import torch
from simt.harness import Executor
from torch import Tensor

from robustcore.reference import merging as reference

# Tails of a word and of a block of 256 parameters or words.
PARAMETERS = [1, 63, 64, 65, 257, 64 * 256 + 1]
TASKS = [1, 3, 15, 16, 40]


def random_masks(tasks: int, parameters: int) -> Tensor:
    generator = torch.Generator().manual_seed(tasks * 100003 + parameters)
    kept = torch.rand(tasks, parameters, generator=generator) < 0.4
    return reference.pack_words(kept)


def shape(masks: Tensor, parameters: int) -> dict[str, int]:
    return {"tasks": masks.shape[0], "words": masks.shape[1], "parameters": parameters}


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_unpack(simt: Executor, parameters: int) -> None:
    masks = random_masks(1, parameters)
    values = torch.empty(parameters, dtype=torch.uint8)
    simt.run("mask_unpack", masks=masks, values=values, **shape(masks, parameters))
    assert torch.equal(values.bool(), reference.mask_unpack(masks[0], parameters))


@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("parameters", PARAMETERS[:-1])
def test_counts_histogram_overlap_consensus(simt: Executor, tasks: int, parameters: int) -> None:
    masks = random_masks(tasks, parameters)
    sizes = shape(masks, parameters)
    counts = torch.empty(parameters, dtype=torch.int32)
    simt.run("mask_counts", masks=masks, values=counts, **sizes)
    assert torch.equal(counts, reference.mask_counts(masks, parameters))
    histogram = torch.zeros(tasks + 1, dtype=torch.int64)
    simt.run("mask_histogram", masks=masks, histogram=histogram, **sizes)
    assert torch.equal(histogram, reference.mask_histogram(masks, parameters))
    overlap = torch.zeros(tasks, tasks, dtype=torch.int64)
    simt.run("mask_overlap", masks=masks, overlap=overlap, tasks=tasks, words=masks.shape[1])
    assert torch.equal(overlap, reference.mask_overlap(masks))
    for least in {1, (tasks + 1) // 2, tasks}:
        mask = torch.empty(masks.shape[1], dtype=torch.int64)
        simt.run("mask_consensus", masks=masks, mask=mask, least=least, **sizes)
        assert torch.equal(mask, reference.mask_consensus(masks, least))


def test_rows_of_more_than_one_block(simt: Executor) -> None:
    parameters = PARAMETERS[-1]
    masks = random_masks(2, parameters)
    histogram = torch.zeros(3, dtype=torch.int64)
    simt.run("mask_histogram", masks=masks, histogram=histogram, **shape(masks, parameters))
    assert torch.equal(histogram, reference.mask_histogram(masks, parameters))


def test_overlap_of_more_than_one_slice(simt: Executor) -> None:
    words = 256 * 16 + 5
    masks = torch.randint(-(2**63), 2**63 - 1, (2, words))
    overlap = torch.zeros(2, 2, dtype=torch.int64)
    simt.run("mask_overlap", masks=masks, overlap=overlap, tasks=2, words=words)
    assert torch.equal(overlap, reference.mask_overlap(masks))


@pytest.mark.parametrize("planes", [1, 2, 3, 6])
def test_select(simt: Executor, planes: int) -> None:
    tasks, words = 5, 300
    codes = torch.randint(-(2**63), 2**63 - 1, (tasks, planes, words))
    ranks = torch.randint(1, 2**planes, (tasks,))
    masks = torch.empty(tasks, words, dtype=torch.int64)
    simt.run(
        "mask_select",
        codes=codes,
        masks=masks,
        ranks=ranks,
        tasks=tasks,
        planes=planes,
        words=words,
    )
    assert torch.equal(masks, reference.mask_select(codes, ranks.tolist()))
