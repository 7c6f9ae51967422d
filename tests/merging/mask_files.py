"""Mask files for tests: small models, and a file taken apart and put together again."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import torch

from robustcore.merging import multi_task_vector, tall_masks
from robustcore.testing.samples_merging import random_models

__all__ = ["Contents", "models", "read_parts", "save_example", "write_parts"]

Contents = tuple[dict[str, Any], bytearray]


def models() -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    base, finetuned = random_models((70, 1, 30), 3)
    base["layer2"] = base["layer2"].bfloat16().view(5, 6)
    base["steps"] = torch.tensor(4)
    for model in finetuned.values():
        model["layer2"] = model["layer2"].bfloat16().view(5, 6)
        model["steps"] = torch.tensor(5)
    return base, finetuned


def save_example(path: Path) -> None:
    base, finetuned = models()
    masks = tall_masks(base, finetuned).select((0.2, 0.4, 0.6))
    masks.save(path, base=base, merged=multi_task_vector(base, finetuned), embed=True)


def read_parts(path: Path) -> Contents:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])


def write_parts(path: Path, contents: Contents, *, sign: bool = True) -> None:
    """With ``sign`` the hash of the metadata is made to fit: what remains is a lie inside it."""
    header, data = contents
    metadata = header["__metadata__"]
    if sign and "metadata_sha256" in metadata:
        rest = sorted(item for item in metadata.items() if item[0] != "metadata_sha256")
        text = json.dumps([list(item) for item in rest], ensure_ascii=False, separators=(",", ":"))
        metadata["metadata_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
