"""Hypothesis strategies for tensors: shapes, layouts, dtypes and values that break kernels."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Around the widths of vectors, warps and blocks.
EDGE_SIZES = (0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)

floating_dtypes = st.sampled_from(FLOATING)
edge_sizes = st.sampled_from(EDGE_SIZES)


def positive_edge_sizes() -> st.SearchStrategy[int]:
    return st.sampled_from([size for size in EDGE_SIZES if size > 0])


@st.composite
def strided(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    """The same values behind other strides: transposed, every other column, an offset."""
    layout = draw(st.sampled_from(["contiguous", "transposed", "every other", "offset"]))
    if tensor.dim() == 0 or layout == "contiguous":
        return tensor
    if layout == "transposed":
        order = list(range(tensor.dim()))[::-1]
        return tensor.permute(order).contiguous().permute(order)
    if layout == "every other":
        wide = tensor.new_zeros((*tensor.shape[:-1], 2 * tensor.shape[-1]))
        wide[..., ::2] = tensor
        return wide[..., ::2]
    flat = tensor.new_zeros(tensor.numel() + 1)
    flat[1:] = tensor.reshape(-1)
    return flat[1:].view(tensor.shape)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
