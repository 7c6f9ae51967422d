"""EMR-Merging against the formulas."""

from __future__ import annotations

import pytest
import torch

from robustcore.merging import emr_merge
from robustcore.merging.packed_masks import pack_mask
from robustcore.reference.merging import pack_words


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1000])
def test_packing(size: int) -> None:
    kept = torch.rand(size, generator=torch.Generator().manual_seed(size)) < 0.5
    assert torch.equal(pack_mask(kept), pack_words(kept))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_against_the_formulas(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = {"a": (30, 7), "b": (130,), "none": (0,), "frozen": (5,)}
    base = {k: torch.randn(s, generator=generator).to(dtype) for k, s in shapes.items()}
    tasks = {}
    for name in ("x", "y", "z"):
        tasks[name] = {
            k: v + (0 if k == "frozen" else 1) * torch.randn(v.shape, generator=generator).to(dtype)
            for k, v in base.items()
        }
    base["n"] = torch.tensor(3)
    tasks = {name: model | {"n": torch.tensor(4)} for name, model in tasks.items()}
    merged = emr_merge(base, tasks)
    assert isinstance(merged.unified, dict)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    masks = {name: [] for name in tasks}
    sums = {name: [0.0, 0.0] for name in tasks}
    for key in sorted(shapes):
        vectors = {n: model[key].to(wide) - base[key].to(wide) for n, model in tasks.items()}
        stacked = torch.stack(list(vectors.values()))
        sign = torch.where(stacked.sum(0) > 0, 1.0, -1.0).to(wide)
        size = torch.where(stacked.sign() == sign, stacked.abs(), 0).max(0).values
        unified = torch.where(size > 0, sign * size, 0)
        assert torch.equal(merged.unified[key], unified)
        for name, vector in vectors.items():
            keep = vector * unified > 0
            masks[name].append(keep.reshape(-1))
            if vector.numel():
                sums[name][0] += float(vector.abs().mean(dtype=torch.float64))
                sums[name][1] += float((keep * unified).abs().mean(dtype=torch.float64))
    for name, (own, left) in sums.items():
        assert torch.equal(merged.masks.unpack(name), torch.cat(masks[name]))
        assert merged.rescalers[name] == pytest.approx(own / left, rel=1e-12)
        model = merged.apply(name, base)
        assert model["n"] == 3
        for key in shapes:
            kept = merged.masks.unpack(name)
            assert model[key].dtype == dtype
        assert kept.numel() == sum(base[key].numel() for key in shapes)


def test_a_task_alone_comes_back() -> None:
    base, tuned = torch.zeros(100), torch.randn(100)
    merged = emr_merge(base, {"only": tuned})
    assert torch.equal(merged.apply("only", base), tuned)
    assert torch.equal(merged.apply(0, base), tuned)


def test_a_task_that_changed_nothing() -> None:
    base, tuned = torch.zeros(5), torch.ones(5)
    merged = emr_merge(base, [base, tuned])
    assert merged.rescalers["0"] == 0
    assert torch.equal(merged.apply("0", base), base)
