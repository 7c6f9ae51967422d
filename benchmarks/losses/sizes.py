"""Sizes of losses over rows of logits."""

from __future__ import annotations

from typing import Literal

import torch

from ..registry import Size

__all__ = ["rows_by_classes"]


def rows_by_classes(
    rows: int,
    classes: int,
    scale: Literal["small", "medium", "large"],
    *,
    quick: bool = False,
    devices: tuple[str, ...] = ("cpu", "cuda"),
    dtype: torch.dtype = torch.float32,
) -> Size:
    """``[rows, classes]`` logits of ``dtype``."""
    suffix = "" if dtype is torch.float32 else f" {str(dtype).removeprefix('torch.')}"
    dimensions = {"rows": rows, "classes": classes}
    return Size(f"[{rows}, {classes}]{suffix}", dimensions, scale, devices, quick, dtype)
