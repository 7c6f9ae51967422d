"""The packed mask file: what is stored comes back, for the models it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from merging.mask_files import models

from robustcore.merging import PackedMasks, multi_task_vector, read_mask_file, tall_masks
from robustcore.merging.state_dict import FlatLayout, TensorInfo


def test_round_trip(saved: Path) -> None:
    base, finetuned = models()
    vector = multi_task_vector(base, finetuned)
    masks = tall_masks(base, finetuned).select((0.2, 0.4, 0.6))
    loaded = PackedMasks.load(saved, base=base, merged=vector)
    assert torch.equal(loaded.words, masks.words)
    for name in ("tasks", "layout", "lambdas", "comparison", "k", "sources"):
        assert getattr(loaded, name) == getattr(masks, name)
    file = read_mask_file(saved)
    for key in ("layer0", "layer1", "layer2"):
        assert torch.equal(file.base[key], base[key])
        assert torch.equal(file.merged[key], vector[key])
    assert file.base["layer2"].dtype == torch.bfloat16
    assert torch.equal(file.base["steps"], base["steps"])
    expected = masks.apply("task 1", base, vector)
    actual = file.masks.apply("task 1", file.base, file.merged)
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


@pytest.mark.parametrize("parameters", [0, 1, 7, 8, 9, 63, 64, 65])
def test_round_trip_of_a_tensor(tmp_path: Path, parameters: int) -> None:
    base = torch.randn(parameters)
    masks = tall_masks(base, {'ä \n"': torch.randn(parameters)}).select(0.2)
    masks.save(tmp_path / "a", base=base)
    loaded = PackedMasks.load(tmp_path / "a", base=base)
    assert loaded.tasks == masks.tasks
    assert loaded.layout.is_tensor
    assert torch.equal(loaded.words, masks.words)


def test_consensus_round_trip(tmp_path: Path) -> None:
    base, finetuned = models()
    masks = tall_masks(base, finetuned, comparison="paper").select(0.3).consensus(2)
    masks.save(tmp_path / "a")
    loaded = PackedMasks.load(tmp_path / "a")
    assert (loaded.k, loaded.sources, loaded.comparison) == (2, tuple(finetuned), "paper")
    assert loaded.lambdas == (0.3,) * 3
    assert torch.equal(loaded.words, masks.words)


def test_consensus_of_a_consensus_round_trip(tmp_path: Path) -> None:
    base, finetuned = models()
    masks = tall_masks(base, finetuned).select(0.2).consensus(2).consensus(1)
    masks.save(tmp_path / "a")
    loaded = PackedMasks.load(tmp_path / "a")
    assert (loaded.k, loaded.sources, loaded.lambdas) == (1, ("consensus",), None)
    assert torch.equal(loaded.words, masks.words)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int16", "int32", "int64", "uint16"])
def test_an_embedded_base_is_a_whole_model(tmp_path: Path, dtype: str) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    module.register_buffer("extra", torch.tensor([1, 0, 1]).to(getattr(torch, dtype)))
    base = module.state_dict()
    finetuned = [{k: t + 1 if t.is_floating_point() else t for k, t in base.items()}] * 2
    vector = multi_task_vector(base, finetuned)
    masks = tall_masks(base, finetuned).select(0.2)
    masks.save(tmp_path / "a", base=base, merged=vector, embed=True)
    file = read_mask_file(tmp_path / "a")
    assert file.base.keys() == base.keys()
    assert all(
        torch.equal(file.base[k], t) and file.base[k].dtype == t.dtype for k, t in base.items()
    )
    module.load_state_dict(file.masks.apply(0, file.base, file.merged))
    loaded = PackedMasks.load(tmp_path / "a", base=file.base, merged=file.merged)
    assert torch.equal(loaded.words, masks.words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lambdas": (0.2, 0.3)}, "lambdas has no valid value"),
        ({"lambdas": (0.2, 0.3, float("nan"))}, "lambdas has no valid value"),
        ({"comparison": ">"}, "comparison has no valid value"),
        ({"k": 2}, "k is 2, yet there are 0 sources"),
        ({"tasks": ("a", "b", "\udc80")}, "tasks must be Unicode text, got '\\udc80'"),
    ],
)
def test_what_cannot_be_loaded_is_not_saved(
    saved: Path, change: dict[str, Any], message: str
) -> None:
    masks = PackedMasks.load(saved)
    for name, value in change.items():
        setattr(masks, name, value)
    with pytest.raises(ValueError) as raised:
        masks.save(saved.parent / "a")
    assert str(raised.value).startswith("PackedMasks.save: ")
    assert message in str(raised.value)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_the_default_device_does_not_matter(saved: Path) -> None:
    expected = read_mask_file(saved)
    base, finetuned = models()
    masks = tall_masks(base, finetuned)
    with torch.device("meta"):
        file = read_mask_file(saved)
        assert torch.equal(file.masks.words, expected.masks.words)
        file.masks.save(saved, base=file.base, merged=file.merged, embed=True)
        assert masks.densities.device.type == "cpu"
        assert tall_masks({}, [{}]).select(0.2).words.device.type == "cpu"
    again = read_mask_file(saved)
    for key, tensor in expected.base.items():
        assert torch.equal(again.base[key], tensor)


def test_other_programs_can_read_it(saved: Path) -> None:
    tensors = safetensors.torch.load_file(saved)
    masks = PackedMasks.load(saved)
    for index, row in enumerate(masks.packed):
        assert torch.equal(tensors[f"masks/{index}"], row)
    bits = tensors["masks/1"].view(-1, 1) >> torch.arange(8) & 1
    assert torch.equal(bits.flatten()[:101].bool(), masks.unpack(1))


def test_size(tmp_path: Path) -> None:
    """A residual network's worth of tensors: at most 0.1251 bytes per parameter and task."""
    infos = tuple(
        TensorInfo(f"stage{i // 40}.block{i % 40:02d}.conv.weight", (130, 1090), torch.float32)
        for i in range(160)
    )
    layout = FlatLayout(infos)
    parameters, tasks = layout.num_parameters, 8
    assert 22_000_000 < parameters < 23_000_000
    words = torch.zeros((tasks, (parameters + 63) // 64), dtype=torch.int64)
    names = [f"task {index}" for index in range(tasks)]
    PackedMasks(words, layout, names, lambdas=(0.4,) * tasks).save(tmp_path / "large")
    assert (tmp_path / "large").stat().st_size <= 0.1251 * parameters * tasks
    assert torch.equal(PackedMasks.load(tmp_path / "large").words, words)


def test_masks_of_other_models(saved: Path) -> None:
    base, finetuned = models()
    base["layer0"] = base["layer0"] + 1
    with pytest.raises(ValueError, match=r"base_sha256 is .*, yet the base has"):
        PackedMasks.load(saved, base=base)
    vector = multi_task_vector(base, finetuned)
    with pytest.raises(ValueError, match="merged_sha256 is"):
        PackedMasks.load(saved, merged=vector)
    with pytest.raises(ValueError, match="merged\\['layer0'\\] is missing"):
        PackedMasks.load(saved, merged={})


def test_no_hash_to_compare_with(tmp_path: Path) -> None:
    base, finetuned = models()
    tall_masks(base, finetuned).select(0.4).save(tmp_path / "a")
    with pytest.raises(ValueError, match="holds no hash of base"):
        PackedMasks.load(tmp_path / "a", base=base)


def test_embedding_nothing(tmp_path: Path) -> None:
    base, finetuned = models()
    with pytest.raises(ValueError, match="embed must be False"):
        tall_masks(base, finetuned).select(0.4).save(tmp_path / "a", embed=True)
    assert not list(tmp_path.iterdir())
