"""Comparisons of models against sums in float64, and masks of models in files against memory."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustcore.merging import compare, tall_masks, tall_masks_from_files
from robustcore.merging import compare as compare_function
from robustcore.merging.checkpoints import open_checkpoint

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def models(dtype: torch.dtype = torch.float32) -> tuple[dict, dict]:
    generator = torch.Generator().manual_seed(0)
    shapes = {f"encoder.layer.{i}.w": (90, 101) for i in (0, 1, 2, 10)}
    shapes |= {"head.weight": (7, 3), "head.bias": (3,), "empty": (0, 4), "one": ()}
    first = {k: torch.randn(s, generator=generator).to(dtype) for k, s in shapes.items()}
    change = {k: torch.randn(s, generator=generator) / 8 for k, s in shapes.items()}
    second = {
        k: torch.where(change[k] > 0, v.double() + change[k], v.double()).to(dtype)
        for k, v in first.items()
    }
    return first, second


def flat(model: dict, keys: list[str]) -> torch.Tensor:
    return torch.cat([model[key].double().flatten() for key in keys])


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_numbers_against_float64(dtype: torch.dtype) -> None:
    first, second = models(dtype)
    found = compare(first, second)
    assert [entry.name for entry in found.tensors] == sorted(first)
    groups = {entry.name: ([entry.name], entry) for entry in found.tensors}
    groups |= {
        layer.name: ([k for k in sorted(first) if f"{k}.".startswith(f"{layer.name}.")], layer)
        for layer in found.layers
    }
    groups["total"] = (sorted(first), found.total)
    for keys, entry in groups.values():
        a, b = flat(first, keys), flat(second, keys)
        d = b - a
        assert entry.parameters == a.numel()
        assert entry.changed == int((d != 0).sum())
        assert entry.largest == (float(d.abs().max()) if d.numel() else 0)
        for value, expected in (
            (entry.norm, d.norm()),
            (entry.first_norm, a.norm()),
            (entry.second_norm, b.norm()),
            (entry.mean, d.abs().mean() if d.numel() else 0.0),
            (entry.product, a @ b),
        ):
            assert value == pytest.approx(float(expected), rel=1e-12, abs=1e-12)
        if entry.changed:
            cosine = torch.nn.functional.cosine_similarity(a, b, 0)
            assert entry.cosine == pytest.approx(float(cosine), rel=1e-12)
            assert entry.relative_norm == pytest.approx(float(d.norm() / a.norm()), rel=1e-12)


def test_layers_are_in_the_order_of_their_numbers() -> None:
    first, second = models()
    names = [layer.name for layer in compare(first, second).layers]
    blocks = [f"encoder.layer.{i}" for i in (0, 1, 2, 10)]
    assert [name for name in names if name.startswith("encoder")] == blocks
    assert set(names) == {*blocks, "head", "empty", "one"}
    stages = [f"layer{i}.{j}" for i in (1, 2) for j in (0, 1)]
    model = {f"{stage}.conv": torch.ones(2) for stage in stages}
    assert [layer.name for layer in compare(model, model).layers] == stages


@pytest.mark.parametrize("count", [1, 2])
def test_every_chunk_size_and_thread_count_gives_the_same_bits(monkeypatch, threads, count) -> None:
    import sys

    first, second = models()
    whole = compare(first, second)
    module = sys.modules[compare_function.__module__]
    monkeypatch.setattr(module, "parameters_per_chunk", lambda *_: 4096)
    with threads(count):
        assert compare(first, second) == whole


def test_what_can_be_different() -> None:
    first, second = models()
    first |= {"gone": torch.ones(2), "shape": torch.ones(3), "n": torch.arange(9)}
    second |= {"new": torch.ones(2), "shape": torch.ones(4), "n": torch.arange(9) // 2}
    second["one"] = second["one"].bfloat16()
    found = compare(first, second)
    assert (found.missing, found.extra) == (("gone",), ("new",))
    assert found.mismatches == (
        "one: float32 and bfloat16",
        "shape: float32 (3,) and float32 (4,)",
    )
    assert "one" in [entry.name for entry in found.tensors]
    assert "shape" not in [entry.name for entry in found.tensors]
    (buffer,) = found.buffers
    assert (buffer.name, buffer.elements, buffer.changed) == ("n", 9, 8)
    assert not found.is_equal


def test_a_model_is_equal_to_itself_but_not_where_it_is_nan() -> None:
    first, _ = models()
    found = compare(first, first)
    assert found.is_equal
    assert (found.total.norm, found.total.cosine, found.total.density) == (0, 1, 0)
    first["one"] = torch.tensor(math.nan)
    found = compare(first, first)
    assert not found.is_equal
    assert (found.total.changed, found.total.nonfinite) == (1, 1)
    assert math.isnan(found.total.norm)
    first["one"] = torch.tensor(math.inf)
    minus = first | {"one": torch.tensor(-math.inf), "head.bias": torch.full((3,), math.inf)}
    json.dumps(compare(first, minus).as_json(), allow_nan=False)


def test_zeros_and_nothing() -> None:
    zero, one = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    found = compare(zero, one).total
    assert (found.relative_norm, found.norm) == (math.inf, math.sqrt(2))
    assert math.isnan(found.cosine)
    assert compare({}, {}).total.parameters == 0
    assert compare(torch.ones(3), torch.ones(3)).is_equal


def test_files_of_every_kind(tmp_path: Path) -> None:
    first, second = models(torch.bfloat16)
    save_file(first, tmp_path / "a.safetensors")
    torch.save(second, tmp_path / "b.pt")
    steps: list[tuple[str, int, int]] = []
    found = compare(
        tmp_path / "a.safetensors", tmp_path / "b.pt", progress=lambda *step: steps.append(step)
    )
    assert found == compare(first, second)
    assert steps[-1] == ("comparing", found.total.parameters, found.total.parameters)


def adapter(folder: Path, shapes: dict[str, tuple[int, int]]) -> Path:
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    factors = {}
    for key, (rows, columns) in shapes.items():
        layer = f"base_model.model.{key.removesuffix('.weight')}"
        factors[f"{layer}.lora_A.weight"] = torch.randn(2, columns, generator=generator)
        factors[f"{layer}.lora_B.weight"] = torch.randn(rows, 2, generator=generator)
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["x"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def with_adapter(base: dict, folder: Path) -> dict:
    lora = open_checkpoint(folder)
    added = dict(base)
    for key, info in lora.tensors.items():
        update = lora.read(key, 0, info.numel, torch.empty(info.numel)).view(info.shape)
        added[key] = base[key] + update
    return added


def test_an_adapter_is_added_to_the_first_model(tmp_path: Path) -> None:
    base = {"x.weight": torch.randn(70, 80), "y.weight": torch.randn(5, 6), "z": torch.randn(4)}
    folder = adapter(tmp_path / "lora", {"x.weight": (70, 80)})
    added = with_adapter(base, folder)
    assert compare(base, folder) == compare(base, added)
    assert compare(folder, folder).is_equal
    with pytest.raises(ValueError, match="a must be a model where b is one, got a LoRA adapter"):
        compare(folder, base)


@pytest.mark.parametrize("step", [64, 128, 4096, 1 << 20])
def test_masks_from_files_are_those_in_memory(tmp_path: Path, monkeypatch, step: int) -> None:
    base = models()[0] | {"half": torch.randn(77).bfloat16(), "n": torch.arange(3)}
    base |= {"wide": torch.randn(5).double()}
    tasks = {
        name: {
            k: v + torch.randn(v.shape).to(v.dtype) / 8 if v.is_floating_point() else v
            for k, v in base.items()
        }
        for name in ("a", "b")
    }
    paths = {}
    for name, model in {"base": base, **tasks}.items():
        paths[name] = tmp_path / f"{name}.pt"
        torch.save(model, paths[name])
    monkeypatch.setattr("robustcore.merging.mask_stream._whole_words", lambda _: step)
    found = tall_masks_from_files(paths.pop("base"), paths)
    expected = tall_masks(base, tasks)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.densities, expected.densities)
    assert (found.layout, found.tasks) == (expected.layout, expected.tasks)


def test_masks_of_adapters(tmp_path: Path) -> None:
    base = {"x.weight": torch.randn(70, 80), "y.weight": torch.randn(5, 6)}
    first = adapter(tmp_path / "first", {"x.weight": (70, 80)})
    tasks = {"first": with_adapter(base, first), "plain": {k: v + 1 for k, v in base.items()}}
    found = tall_masks_from_files(base, {"first": first, "plain": tasks["plain"]})
    assert torch.equal(found.codes, tall_masks(base, tasks).codes)
    with pytest.raises(ValueError, match=r"\['x.weight'\] must have shape"):
        tall_masks_from_files({"x.weight": torch.ones(3, 3)}, [first])
    with pytest.raises(ValueError, match=r"finetuned\['0'\]\['y.weight'\] is missing"):
        tall_masks_from_files(base, [{"x.weight": base["x.weight"]}])


def test_a_difference_is_a_record() -> None:
    found = compare(*models())
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.total.norm = 0.0  # type: ignore[misc]
