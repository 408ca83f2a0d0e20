"""Attention of PVT v2 and CrossViT whose sizes come from its weights; in timm's classes they come from the input.

The classes are subclasses of timm's classes. Their forward computes the same, and parameters keep their names.
"""

from __future__ import annotations

import torch
from timm.models import crossvit, pvt_v2
from torch.nn import functional as F


def heads(x: torch.Tensor, count: int) -> torch.Tensor:
    """Splits (N, L, heads x width) into (N, heads, L, width)."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attend(attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Computes softmax attention for each head, (N, heads, L, width), and projects the result to (N, L, C)."""
    drop = attention.attn_drop.p if attention.training else 0.0
    if getattr(attention, "fused_attn", False):
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=drop)
    else:
        x = F.dropout((attention.scale * q @ k.transpose(-2, -1)).softmax(-1), drop) @ v
    return attention.proj_drop(attention.proj(x.transpose(1, 2).flatten(2)))


class PyramidAttention(pvt_v2.Attention):
    """PVT v2's attention: keys and values are computed from a feature map that a convolution or pooling reduces."""

    def forward(self, x: torch.Tensor, feat_size: list[int]) -> torch.Tensor:
        """Maps (N, L, C) tokens of a feature map of size `feat_size` to (N, L, C) tokens."""
        q = heads(self.q(x), self.num_heads)
        if self.sr is not None:
            maps = x.transpose(1, 2).unflatten(2, tuple(feat_size))
            maps = maps if self.pool is None else self.pool(maps)
            x = self.norm(self.sr(maps).flatten(2).transpose(1, 2))
            x = x if self.act is None else self.act(x)
        k, v = (heads(part, self.num_heads) for part in self.kv(x).chunk(2, -1))
        return attend(self, q, k, v)


class ClassAttention(crossvit.CrossAttention):
    """CrossViT's attention: the query is computed from the class token only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, L, C) tokens to the class token, (N, 1, C)."""
        q, k, v = (heads(part, self.num_heads) for part in (self.wq(x[:, :1]), self.wk(x), self.wv(x)))
        return attend(self, q, k, v)


ELASTIC = {
    "timm.models.pvt_v2.Attention": PyramidAttention,
    "timm.models.crossvit.CrossAttention": ClassAttention,
}
"""{class of timm's attention: the class that replaces it}."""
