"""LoRA adapters as task vectors: the product of the factors, bit for bit whatever part is read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from robustcore.merging.checkpoints import LoraAdapter, lora, open_checkpoint

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


def save(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    named = {f"base_model.model.{key}": tensor for key, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def linear(outputs: int, inputs: int, rank: int = 4) -> dict[str, torch.Tensor]:
    return {
        "fc.lora_A.weight": torch.randn(rank, inputs),
        "fc.lora_B.weight": torch.randn(outputs, rank),
    }


def whole(adapter: Any, key: str) -> torch.Tensor:
    stored = adapter.tensors[key]
    into = torch.full((stored.numel,), math.nan)
    assert adapter.read(key, 0, stored.numel, into) is into
    return into.view(stored.shape)


def close_to(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (64, 16384), (65, 30), (200, 16500), (3, 40000)])
def test_a_linear_layer(tmp_path: Path, shape: tuple[int, int], dtype: torch.dtype) -> None:
    tensors = {key: tensor.to(dtype) for key, tensor in linear(*shape).items()}
    adapter = open_checkpoint(save(tmp_path / "a", tensors))
    assert isinstance(adapter, LoraAdapter)
    assert adapter.is_task_vector
    assert not adapter.is_resident
    assert list(adapter.tensors) == ["fc.weight"]
    a, b = (tensors[f"fc.lora_{which}.weight"].double() for which in "AB")
    close_to(whole(adapter, "fc.weight"), 2 * b @ a)


def test_scaling(tmp_path: Path) -> None:
    tensors = linear(5, 6)
    product = tensors["fc.lora_B.weight"].double() @ tensors["fc.lora_A.weight"].double()
    for config, scaling in (
        ({"lora_alpha": 3}, 3 / 4),
        ({"lora_alpha": 3, "use_rslora": True}, 3 / 2),
        ({"lora_alpha": 0.5, "alpha_pattern": {"fc": 12}}, 3),
        ({"r": 16, "rank_pattern": {"f.": 4}, "lora_alpha": 4}, 1),
        ({"alpha_pattern": {"c": 100, "other.fc": 100, "^fc": 4}}, 1),
    ):
        adapter = open_checkpoint(save(tmp_path / "a", tensors, **config))
        close_to(whole(adapter, "fc.weight"), scaling * product)


def test_transposed_weights(tmp_path: Path) -> None:
    tensors = linear(100, 6)
    product = tensors["fc.lora_B.weight"].double() @ tensors["fc.lora_A.weight"].double()
    adapter = open_checkpoint(save(tmp_path / "a", tensors, fan_in_fan_out=True))
    assert adapter.tensors["fc.weight"].shape == (6, 100)
    close_to(whole(adapter, "fc.weight"), 2 * product.T)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5), (3,)])
@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_a_convolution(tmp_path: Path, kernel: tuple[int, ...], fan_in_fan_out: bool) -> None:
    a, b = torch.randn(4, 6, *kernel), torch.randn(70, 4, *(1 for _ in kernel))
    tensors = {"conv.lora_A.weight": a, "conv.lora_B.weight": b}
    adapter = open_checkpoint(save(tmp_path / "a", tensors, fan_in_fan_out=fan_in_fan_out))
    assert adapter.tensors["conv.weight"].shape == (70, 6, *kernel)
    update = whole(adapter, "conv.weight").double()
    # What the layer adds is one convolution after the other.
    values = torch.randn(2, 6, *(8 for _ in kernel)).double()
    convolve = torch.nn.functional.conv2d if len(kernel) == 2 else torch.nn.functional.conv1d
    expected = 2 * convolve(convolve(values, a.double()), b.double())
    torch.testing.assert_close(convolve(values, update), expected, rtol=1e-5, atol=1e-4)


def test_an_embedding(tmp_path: Path) -> None:
    a, b = torch.randn(4, 300), torch.randn(7, 4)
    tensors = {"emb.lora_embedding_A": a, "emb.lora_embedding_B": b}
    adapter = open_checkpoint(save(tmp_path / "a", tensors))
    assert adapter.tensors["emb.weight"].shape == (300, 7)
    close_to(whole(adapter, "emb.weight"), 2 * (b.double() @ a.double()).T)


def test_a_bin_file_and_other_spellings(tmp_path: Path) -> None:
    tensors = {f"base_model.model.{key}": tensor for key, tensor in linear(5, 6).items()}
    torch.save(tensors, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    adapters = [open_checkpoint(tmp_path), open_checkpoint(tmp_path / "adapter_model.bin")]
    first, second = (whole(adapter, "fc.weight") for adapter in adapters)
    assert torch.equal(first, second)
    config, weights = adapters[0].files
    assert config.endswith("adapter_config.json")
    assert weights.endswith("adapter_model.bin")
    before = adapters[0].identity()
    (tmp_path / "adapter_config.json").write_text(json.dumps({**CONFIG, "lora_alpha": 4}))
    assert open_checkpoint(tmp_path).identity() != before


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, torch.Tensor]]:
    torch.manual_seed(0)
    found = {}
    for name, (outputs, inputs) in {"wide": (5, 40_001), "tall": (333, 47), "row": (1, 9)}.items():
        folder = tmp_path_factory.mktemp("lora") / name
        adapter = open_checkpoint(save(folder, linear(outputs, inputs)))
        found[name] = (adapter, whole(adapter, "fc.weight").view(-1))
    return found


@settings(max_examples=100)
@given(data=st.data())
def test_bits_do_not_depend_on_the_part(
    adapters: dict[str, tuple[Any, torch.Tensor]], data: st.DataObject
) -> None:
    adapter, expected = adapters[data.draw(st.sampled_from(sorted(adapters)))]
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    into = torch.full((stop - start,), math.nan)
    adapter.read("fc.weight", start, stop, into)
    assert torch.equal(into, expected[start:stop])


def test_bits_do_not_depend_on_threads(
    tmp_path: Path, threads: Callable[[int], AbstractContextManager[None]]
) -> None:
    tensors = linear(700, 900, rank=96)
    found = []
    for count in (1, 2, 4):
        adapter = open_checkpoint(save(tmp_path / "a", tensors, r=96))
        with threads(count):
            found.append(whole(adapter, "fc.weight"))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_many_layers_from_many_threads(tmp_path: Path) -> None:
    tensors = {
        key.replace("fc", f"fc{i}"): tensor
        for i in range(6)
        for key, tensor in linear(130, 20 + i).items()
    }
    adapter = open_checkpoint(save(tmp_path / "a", tensors))
    assert isinstance(adapter, LoraAdapter)
    expected = {key: whole(adapter, key) for key in adapter.tensors}
    with ThreadPoolExecutor(8) as pool:
        for key, found in pool.map(lambda key: (key, whole(adapter, key)), [*expected] * 10):
            assert torch.equal(found, expected[key])
    assert len(adapter._kept) == lora._KEPT_LAYERS
    assert adapter.working_memory >= 2 * 4 * 4 * (130 + 25)


def test_what_is_more_than_products_is_refused(tmp_path: Path) -> None:
    tensors = {**linear(5, 6), "head.weight": torch.ones(2, 3), "head.bias": torch.ones(2)}
    with pytest.raises(ValueError, match="must hold only lora_A and lora_B, got") as raised:
        open_checkpoint(save(tmp_path / "a", tensors, modules_to_save=["head", "score"]))
    message = str(raised.value)
    assert "modules_to_save is head, score: whole weights instead of updates" in message
    assert "  base_model.model.head.bias: (2,) torch.float32" in message
    assert "  base_model.model.head.weight: (2, 3) torch.float32" in message
    with pytest.raises(ValueError, match="lora_magnitude_vector"):
        open_checkpoint(
            save(tmp_path / "a", {**linear(5, 6), "fc.lora_magnitude_vector": torch.ones(5)})
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be 'LORA', got 'IA3'"),
        ({"use_dora": True}, "use_dora must be unset, got True: DoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "that leaves the base as it is, got 'pissa_n"),
        ({"bias": "all"}, "bias must be 'none'"),
        ({"target_parameters": ["experts"]}, "target_parameters must be unset"),
        ({"r": 0}, "r must be a number, got 0"),
        ({"r": "8"}, "r must be a number, got '8'"),
        ({"lora_alpha": None}, "lora_alpha must be a number, got None"),
        ({"lora_alpha": math.nan}, "lora_alpha must be a number, got nan"),
        ({"r": 8}, r"fc: 8, yet lora_A \(4, 6\)"),
        ({"rank_pattern": {"fc": 2}}, r"fc: 2, yet lora_A \(4, 6\)"),
        ({"rank_pattern": {"(": 2}}, r"must be a regular expression, got '\('"),
        ({"alpha_pattern": [1]}, "alpha_pattern must be numbers by pattern"),
    ],
)
def test_configurations_that_cannot_be_merged(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        open_checkpoint(save(tmp_path / "a", linear(5, 6), **config))
    assert str(raised.value).startswith(str(tmp_path / "a"))


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    tensors = linear(5, 6)
    for change, message in (
        ({"fc.lora_B.weight": torch.ones(5, 3)}, r"lora_A \(4, 6\), lora_B \(5, 3\)"),
        ({"fc.lora_B.weight": torch.ones(5, 4, 1, 1)}, r"lora_B \(5, 4, 1, 1\)"),
        ({"fc.lora_A.weight": torch.ones(6)}, "lora_A must be"),
        ({"fc.lora_A.weight": torch.ones(4, 6).int()}, "must hold only lora_A and lora_B"),
    ):
        with pytest.raises(ValueError, match=message):
            open_checkpoint(save(tmp_path / "a", {**tensors, **change}))
    with pytest.raises(ValueError, match="fc has only lora_A"):
        open_checkpoint(save(tmp_path / "a", {key: tensors[key] for key in tensors if "_A" in key}))
    (tmp_path / "a" / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError):
        open_checkpoint(tmp_path / "a")
