"""A small vision transformer for small pictures.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words" (arXiv 2010.11929), pre-normalised, with
the mean over the tokens in place of a class token. No pretrained weights come with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsprig.models.attention import SelfAttention


class TransformerBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim)
        self.attention = SelfAttention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.expand = nn.Linear(embed_dim, mlp_dim)
        self.project = nn.Linear(mlp_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``[n, t, e]`` to ``[n, t, e]``."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.project(F.gelu(self.expand(self.norm2(x))))
        return out


class SprigViT(nn.Module):
    """Patches of 4x4 pixels, 6 blocks of 192 features in 6 heads: 1.8 million parameters."""

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int = 32,
        patch: int = 4,
        embed_dim: int = 192,
        depth: int = 6,
        num_heads: int = 6,
        mlp_dim: int = 384,
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise ValueError(f"{image_size} pixels do not divide into patches of {patch}")
        self.patches = nn.Conv2d(3, embed_dim, patch, patch)
        self.position = nn.Parameter(torch.empty(1, (image_size // patch) ** 2, embed_dim))
        self.blocks = nn.ModuleList(
            TransformerBlock(embed_dim, num_heads, mlp_dim) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures ``[n, 3, image_size, image_size]`` to logits ``[n, num_classes]``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(self.norm(tokens).mean(1))
        return logits
