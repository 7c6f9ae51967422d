"""Sizes of losses."""

from __future__ import annotations

from typing import Literal

import torch

from ..registry import Size

__all__ = ["labelled", "rows_by_classes"]

Scale = Literal["small", "medium", "large"]


def labelled(
    label: str,
    scale: Scale,
    *,
    quick: bool = False,
    devices: tuple[str, ...] = ("cpu", "cuda"),
    dtype: torch.dtype = torch.float32,
    **dimensions: int,
) -> Size:
    """A size whose label names its dimensions in braces, and its type unless that is float32."""
    suffix = "" if dtype is torch.float32 else f" {str(dtype).removeprefix('torch.')}"
    return Size(label.format(**dimensions) + suffix, dimensions, scale, devices, quick, dtype)


def rows_by_classes(
    rows: int,
    classes: int,
    scale: Scale,
    *,
    quick: bool = False,
    devices: tuple[str, ...] = ("cpu", "cuda"),
    dtype: torch.dtype = torch.float32,
) -> Size:
    """``[rows, classes]`` logits of ``dtype``."""
    return labelled(
        "[{rows}, {classes}]",
        scale,
        quick=quick,
        devices=devices,
        dtype=dtype,
        rows=rows,
        classes=classes,
    )
