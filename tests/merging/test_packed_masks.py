"""PackedMasks: facts about masks, consensus, and applying them."""

from __future__ import annotations

import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

import robustcore
from robustcore.merging import PackedMasks, multi_task_vector, tall_masks
from robustcore.merging.state_dict import FlatLayout, TensorInfo
from robustcore.reference import merging as reference
from robustcore.testing.samples_merging import random_models


def masks_of(bits: torch.Tensor) -> PackedMasks:
    info = TensorInfo("", (bits.shape[1],), torch.float32)
    tasks = [f"task {index}" for index in range(bits.shape[0])]
    return PackedMasks(reference.pack_words(bits), FlatLayout((info,), (), True), tasks)


@given(st.integers(1, 70), strategies.edge_sizes, st.floats(0, 1), st.integers(0, 100))
def test_facts_follow_from_the_bits(tasks: int, size: int, share: float, seed: int) -> None:
    bits = torch.rand(tasks, size, generator=strategies.seeded(seed)) < share
    masks = masks_of(bits)
    number = bits.sum(0)
    for task in (0, tasks - 1):
        assert torch.equal(masks.unpack(task), bits[task])
    counts = masks.counts()
    assert counts.dtype == torch.int32
    assert torch.equal(counts, number.int())
    assert torch.equal(masks.histogram(), torch.bincount(number, minlength=tasks + 1))
    expected = bits.double() @ bits.double().T
    assert torch.equal(masks.overlap(), expected.long())
    for k in {1, (tasks + 1) // 2, tasks}:
        consensus = masks.consensus(k)
        assert torch.equal(consensus.unpack(0), number >= k)
        assert consensus.k == k
        assert consensus.sources == masks.tasks


def test_packed_bit_order() -> None:
    bits = torch.zeros(1, 20, dtype=torch.bool)
    bits[0, [0, 9, 19]] = True
    masks = masks_of(bits)
    assert masks.packed.tolist() == [[0b1, 0b10, 0b1000]]
    assert masks.nbytes == 8


@given(
    st.lists(st.sampled_from(strategies.EDGE_SIZES), min_size=1, max_size=5),
    st.lists(strategies.floating_dtypes, min_size=5, max_size=5),
    st.booleans(),
)
def test_apply_equals_the_reference(
    sizes: list[int], dtypes: list[torch.dtype], inplace: bool
) -> None:
    base, finetuned = random_models(tuple(sizes), 3)
    base = {key: tensor.to(dtype) for (key, tensor), dtype in zip(base.items(), dtypes)}
    finetuned = {
        name: {key: tensor.to(base[key].dtype) for key, tensor in model.items()}
        for name, model in finetuned.items()
    }
    vector = multi_task_vector(base, finetuned)
    masks = tall_masks(base, finetuned).select(0.4)
    for task in masks.tasks:
        with robustcore.use_reference():
            expected = masks.apply(task, base, vector)
        target = {key: tensor.clone() for key, tensor in base.items()}
        actual = masks.apply(task, target, vector, inplace=inplace)
        assert (actual is target) == inplace
        for key, tensor in expected.items():
            assert actual[key].dtype == base[key].dtype
            assert torch.equal(actual[key], tensor)
            start, kept = base[key], actual[key] == base[key]
            assert torch.equal(actual[key][kept], start[kept])


def test_apply_by_definition() -> None:
    base = torch.randn(3, 50)
    tuned = [torch.randn(3, 50), torch.randn(3, 50)]
    vector = multi_task_vector(base, tuned)
    masks = tall_masks(base, tuned).select(0.3)
    bits = masks.unpack("1").view(3, 50)
    assert torch.equal(masks.apply(1, base, vector), torch.where(bits, base + vector, base))


def test_dropped_parameters_keep_their_bits() -> None:
    base = torch.tensor([-0.0, torch.nan, torch.inf, 1e-45])
    base.view(torch.int32)[1] |= 0x1234  # a NaN with a payload
    masks = masks_of(torch.zeros(1, 4, dtype=torch.bool))
    result = masks.apply(0, base, torch.ones(4))
    assert torch.equal(result.view(torch.int32), base.view(torch.int32))


def test_state_dicts_keep_order_and_buffers() -> None:
    base = {"z": torch.randn(5), "n": torch.tensor(7), "a": torch.randn(2, 3)}
    tuned = [{**base, "z": torch.randn(5), "n": torch.tensor(8)} for _ in range(2)]
    masks = tall_masks(base, tuned).select(0.4)
    result = masks.apply(0, base, multi_task_vector(base, tuned))
    assert list(result) == ["z", "n", "a"]
    assert result["n"] == 7
    assert result["n"] is not base["n"]


def test_in_place_on_tied_and_strided_tensors() -> None:
    shared = torch.randn(6, 4)
    base = {"a": shared, "b": shared, "c": torch.randn(5, 8).t()}
    tuned = [{key: torch.randn_like(tensor) for key, tensor in base.items()} for _ in range(2)]
    for model in tuned:
        model["b"] = model["a"]
    vector = multi_task_vector(base, tuned)
    masks = tall_masks(base, tuned).select(0.4)
    expected = masks.apply(0, base, vector)
    memory = {key: tensor.data_ptr() for key, tensor in base.items()}
    result = masks.apply(0, base, vector, inplace=True)
    for key, tensor in expected.items():
        assert torch.equal(result[key], tensor)
        assert result[key].data_ptr() == memory[key]


def test_in_place_bumps_the_version() -> None:
    base = torch.randn(10)
    masks = masks_of(torch.ones(1, 10, dtype=torch.bool))
    before = base._version
    masks.apply(0, base, torch.ones(10), inplace=True)
    assert base._version > before


def test_apply_is_differentiable() -> None:
    bits = torch.rand(1, 130) < 0.5
    masks = masks_of(bits)
    layout = FlatLayout((TensorInfo("", (130,), torch.float64),), (), True)
    masks = PackedMasks(masks.words, layout, masks.tasks)
    base = torch.randn(130, dtype=torch.float64, requires_grad=True)
    merged = torch.randn(130, dtype=torch.float64, requires_grad=True)

    def function(b: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return masks.apply(0, b, m)

    assert torch.autograd.gradcheck(function, (base, merged))
    assert torch.autograd.gradgradcheck(function, (base, merged))
    masks.apply(0, base, merged).sum().backward()
    assert torch.equal(base.grad, torch.ones(130, dtype=torch.float64))
    assert torch.equal(merged.grad, bits[0].double())


@pytest.mark.parametrize("needs", ["base", "merged"])
def test_one_of_them_requires_grad(needs: str) -> None:
    base = {"w": torch.randn(9).bfloat16(), "v": torch.randn(3)}
    tuned = [{key: tensor + 1 for key, tensor in base.items()}]
    vector = multi_task_vector(base, tuned)
    masks = tall_masks(base, tuned, comparison="paper").select(0.2)
    (base if needs == "base" else vector)["w"].requires_grad_()
    result = masks.apply(0, base, vector)
    assert result["w"].requires_grad
    result["w"].float().sum().backward()
    assert (base if needs == "base" else vector)["w"].grad.eq(1).all()


def test_to_another_device_keeps_everything() -> None:
    masks = masks_of(torch.ones(2, 5, dtype=torch.bool)).consensus(2).to("cpu")
    assert (masks.k, masks.sources, masks.tasks) == (2, ("task 0", "task 1"), ("consensus",))
