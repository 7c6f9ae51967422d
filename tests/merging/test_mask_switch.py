"""mask_switch_: rewriting only what two masks differ in."""

from __future__ import annotations

from typing import Any

import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustcore.merging._operators import mask_apply, mask_switch_
from robustcore.reference import merging as reference

FLAGGED = 12345.0


def models(
    sizes: list[int], dtypes: list[torch.dtype], seed: int = 0
) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    base, merged = [], []
    for size, dtype in zip(sizes, dtypes, strict=False):
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        base.append(torch.randn(size, generator=generator).to(dtype))
        merged.append(torch.randn(size, generator=generator).to(compute))
        extremes = torch.tensor([-0.0, torch.nan, torch.inf, -torch.inf])[:size]
        base[-1][: len(extremes)] = extremes.to(dtype)
    return base, merged


def same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.view(torch.uint8), second.view(torch.uint8))


@given(
    st.lists(st.sampled_from(strategies.EDGE_SIZES), min_size=1, max_size=4),
    st.lists(strategies.floating_dtypes, min_size=4, max_size=4),
    st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    st.integers(0, 100),
)
def test_rewrites_what_differs_and_nothing_else(
    sizes: list[int], dtypes: list[torch.dtype], share: float, seed: int
) -> None:
    base, merged = models(sizes, dtypes, seed)
    generator = strategies.seeded(seed)
    kept = torch.rand(sum(sizes), generator=generator) < 0.5
    flipped = torch.rand(sum(sizes), generator=generator) < share
    before, after = reference.pack_words(kept), reference.pack_words(kept ^ flipped)
    # What must not be touched has a value that no rewriting gives.
    weights = [torch.full_like(tensor, FLAGGED) for tensor in base]
    mask_switch_(weights, base, merged, before, after)
    target = mask_apply(base, merged, after)
    for weight, result, differs in zip(weights, target, flipped.split(sizes), strict=True):
        assert same_bits(weight[differs], result[differs])
        assert (weight[~differs] == FLAGGED).all()


@given(
    st.lists(st.sampled_from(strategies.EDGE_SIZES), min_size=1, max_size=4),
    st.lists(strategies.floating_dtypes, min_size=4, max_size=4),
)
def test_a_walk_over_masks_ends_where_apply_does(
    sizes: list[int], dtypes: list[torch.dtype]
) -> None:
    base, merged = models(sizes, dtypes)
    nothing = reference.pack_words(torch.zeros(sum(sizes), dtype=torch.bool))
    weights, here = [tensor.clone() for tensor in base], nothing
    for seed in range(3):
        there = reference.pack_words(
            torch.rand(sum(sizes), generator=strategies.seeded(seed)) < 0.4
        )
        mask_switch_(weights, base, merged, here, there)
        assert all(map(same_bits, weights, mask_apply(base, merged, there)))
        here = there
    mask_switch_(weights, base, merged, here, nothing)
    assert all(map(same_bits, weights, base))


def test_equals_the_reference() -> None:
    base, merged = models([70, 130], [torch.float32, torch.bfloat16])
    before, after = (reference.pack_words(torch.rand(200) < 0.5) for _ in range(2))
    ours, theirs = ([torch.ones_like(tensor) for tensor in base] for _ in range(2))
    mask_switch_(ours, base, merged, before, after)
    reference.mask_switch_(theirs, base, merged, before, after)
    assert all(map(same_bits, ours, theirs))


def test_any_number_of_threads(threads: Any) -> None:
    base, merged = models([100_003], [torch.float32])
    before, after = (reference.pack_words(torch.rand(100_003) < 0.5) for _ in range(2))
    results = []
    for count in (1, 2):
        weights = [torch.zeros_like(base[0])]
        with threads(count):
            mask_switch_(weights, base, merged, before, after)
        results.append(weights[0])
    assert same_bits(*results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": []}, "at least one"),
        ({"weights": [torch.zeros(70, 2)[:, 0]]}, "contiguous"),
        ({"base": [torch.zeros(69)]}, "70 elements"),
        ({"base": [torch.zeros(70).double()]}, "dtype"),
        ({"merged": [torch.zeros(70).half()]}, "dtype"),
        ({"merged": []}, "must hold 1 times 1 tensors"),
        ({"before": torch.zeros(3, dtype=torch.int64)}, "parameters must fit 3 words"),
        ({"after": torch.zeros(2)}, "after has the wrong dtype"),
        ({"after": torch.zeros(1, 2, dtype=torch.int64)}, "after must have 1 dimensions"),
    ],
)
def test_the_raw_operator_refuses(change: dict[str, Any], message: str) -> None:
    words = torch.zeros(2, dtype=torch.int64)
    arguments: dict[str, Any] = {
        "weights": [torch.zeros(70)],
        "base": [torch.zeros(70)],
        "merged": [torch.zeros(70)],
        "before": words,
        "after": words,
    }
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.robustcore.mask_switch_(*(arguments | change).values())
