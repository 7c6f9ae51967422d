"""A small vision transformer: what is merged is everything below the classifying head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 4
HEAD_WIDTH = 16


class Block(nn.Module):
    """Attention and a hidden layer, each on normalised inputs and added to them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.hidden_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        parts = self.query_key_value(self.attention_norm(x))
        parts = parts.view(rows, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        x = x + self.projection(attended.reshape(rows, tokens, width))
        return x + self.down(F.relu(self.up(self.hidden_norm(x))))


class VisionTransformer(nn.Module):
    """Flattened square images [N, side²] to features [N, width]: the mean over patches of 4 × 4.

    The blocks are called ``blocks.0`` ... as LiNeS expects.
    """

    def __init__(self, side: int, width: int, depth: int) -> None:
        super().__init__()
        self.side = side
        self.embedding = nn.Linear(PATCH * PATCH, width)
        self.positions = nn.Parameter(0.02 * torch.randn((side // PATCH) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = pixels.view(-1, self.side // PATCH, PATCH, self.side // PATCH, PATCH)
        patches = patches.transpose(2, 3).reshape(len(pixels), -1, PATCH * PATCH)
        return self.norm(self.blocks(self.embedding(patches) + self.positions)).mean(1)
