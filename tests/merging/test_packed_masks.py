"""PackedMasks: facts about masks, consensus, and applying them."""

from __future__ import annotations

from typing import Any

import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad

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


def whole(values: torch.Tensor) -> PackedMasks:
    """A mask that keeps everything of a model that is the tensor ``values``."""
    bits = torch.ones(1, values.numel(), dtype=torch.bool)
    info = TensorInfo("", tuple(values.shape), values.dtype)
    return PackedMasks(reference.pack_words(bits), FlatLayout((info,), (), True), ["task"])


def test_apply_inside_torch_func() -> None:
    bits = torch.rand(1, 130) < 0.5
    masks = masks_of(bits)
    base, merged = torch.randn(130), torch.randn(130)

    def cubed(b: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return masks.apply(0, b, m).pow(3).sum()

    result = masks.apply(0, base, merged)
    for_base, for_merged = torch.func.grad(cubed, (0, 1))(base, merged)
    torch.testing.assert_close(for_base, 3 * result**2)
    torch.testing.assert_close(for_merged, torch.where(bits[0], 3 * result**2, 0.0))
    second = torch.func.grad(lambda m: torch.func.grad(cubed, 1)(base, m).sum())(merged)
    torch.testing.assert_close(second, torch.where(bits[0], 6 * result, 0.0))
    with pytest.raises(ValueError, match=r"inplace must be False inside torch\.func"):
        torch.func.grad(lambda b: masks.apply(0, b, merged, inplace=True).sum())(base)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda b: masks.apply(0, b, merged))(base.expand(2, 130))


def test_forward_mode_is_refused() -> None:
    base, merged = torch.randn(10), torch.randn(10)
    masks = whole(base)
    with pytest.raises(NotImplementedError, match=r"PackedMasks\.apply: forward-mode"):
        torch.func.jvp(lambda m: masks.apply(0, base, m), (merged,), (merged,))
    with forward_ad.dual_level():
        assert torch.equal(masks.apply(0, base, merged), base + merged)
        dual = forward_ad.make_dual(base, merged)
        for inplace in (False, True):
            with pytest.raises(NotImplementedError, match=r"PackedMasks\.apply: forward-mode"):
                masks.apply(0, dual, merged, inplace=inplace)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_apply_compiles_whole(requires_grad: bool) -> None:
    torch._dynamo.reset()
    base = {"w": torch.randn(20).bfloat16(), "v": torch.randn(3, 5), "n": torch.tensor(3)}
    tuned = [{k: t + 1 if k != "n" else t for k, t in base.items()}] * 2
    vector = multi_task_vector(base, tuned)
    masks = tall_masks(base, tuned).select(0.2)
    vector["v"].requires_grad_(requires_grad)
    compiled = torch.compile(
        lambda b, m: masks.apply("1", b, m), fullgraph=True, backend="aot_eager"
    )
    expected, actual = masks.apply("1", base, vector), compiled(base, vector)
    assert all(torch.equal(actual[key], expected[key]) for key in base)
    if requires_grad:
        actual["v"].sum().backward()
        assert torch.equal(vector["v"].grad.flatten(), masks.unpack("1")[:15].float())


def test_in_place_raw_operator_bumps_the_version() -> None:
    words = torch.full((1,), -1)
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        base, merged = torch.randn(64), torch.randn(64)
        before = base._version
        with context():
            torch.ops.robustcore.mask_apply_([base], [merged], words)
        assert base._version > before


def refused(
    message: str, memory: torch.Tensor, base: dict[str, torch.Tensor], merged: dict[str, Any]
) -> None:
    infos = tuple(TensorInfo(k, tuple(t.shape), t.dtype) for k, t in sorted(base.items()))
    layout = FlatLayout(infos)
    bits = torch.ones(1, layout.num_parameters, dtype=torch.bool)
    masks = PackedMasks(reference.pack_words(bits), layout, ["task"])
    before = memory.clone()
    with pytest.raises(ValueError, match=message):
        masks.apply(0, base, merged, inplace=True)
    assert torch.equal(memory, before)


def test_in_place_is_refused_before_anything_is_written() -> None:
    memory = torch.randn(100)
    first, ones = memory[:10], torch.ones(10)
    both = {"a": first, "b": memory[40:50]}
    shared = "base and merged must not share memory"
    refused(shared, memory, both, {"a": ones, "b": memory[45:55]})
    refused(shared, memory, both, {"a": memory[:10], "b": ones})
    narrow = memory.bfloat16()
    refused(shared, narrow, {"a": narrow[:10]}, {"a": narrow[5:15]})
    equal = "tensors of base that share memory must have equal results"
    refused(equal, memory, {"a": first, "b": first}, {"a": ones, "b": 2 * ones})
    refused(equal, memory, {"a": first, "b": memory[9:19]}, {"a": ones, "b": 2 * ones})
    itself = "a tensor of base must not overlap itself"
    expanded = {"a": memory[60:70], "b": memory[:1].expand(10)}
    refused(itself, memory, expanded, {"a": ones, "b": ones})
    partly = {"a": memory.as_strided((2, 10), (5, 1))}
    refused(equal, memory, partly, {"a": torch.arange(20.0).view(2, 10)})
    with torch.inference_mode():
        inference = torch.randn(10)
    refused("inference tensors", memory, {"a": first, "b": inference}, {"a": ones, "b": ones})


def test_in_place_where_memory_is_shared_without_harm() -> None:
    memory = torch.randn(6, 10)
    base = {"a": memory[:, 0], "b": memory[:, 1], "c": memory[0, 4:], "d": memory[0, 4:]}
    merged = {"a": memory[:, 2], "b": torch.ones(()).expand(6), "c": torch.ones(6)}
    merged["d"] = merged["c"]
    masks = tall_masks(base, [{k: t + 1 for k, t in base.items()}], merged=merged).select(0.2)
    expected = masks.apply(0, base, merged)
    before = memory.clone()
    masks.apply(0, base, merged, inplace=True)
    assert all(torch.equal(base[key], tensor) for key, tensor in expected.items())
    before[:, :2], before[0, 4:] = memory[:, :2], memory[0, 4:]
    assert torch.equal(memory, before)


def test_in_place_on_parts_of_one_flat_buffer() -> None:
    flat = torch.randn(30)
    base = dict(zip("abc", flat.split(10), strict=True))
    merged = {key: torch.ones(10) for key in base}
    masks = tall_masks(base, [{k: t + 1 for k, t in base.items()}], merged=merged).select(0.2)
    expected = masks.apply(0, base, merged)
    before = flat._version
    masks.apply(0, base, merged, inplace=True)
    assert torch.equal(flat, torch.cat(list(expected.values())))
    assert flat._version > before


def test_in_place_without_memory() -> None:
    base = torch.randn(10, device="meta")
    masks = whole(torch.randn(10)).to("meta")
    assert masks.apply(0, base, base, inplace=True) is base


def test_in_place_compiles_whole() -> None:
    torch._dynamo.reset()
    base, merged = torch.randn(10), torch.randn(10)
    masks = whole(base)
    expected = base + merged

    def add(b: torch.Tensor) -> None:
        masks.apply(0, b, merged, inplace=True)

    torch.compile(add, fullgraph=True, backend="aot_eager")(base)
    assert torch.equal(base, expected)
