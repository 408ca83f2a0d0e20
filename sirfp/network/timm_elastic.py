"""Attention of PVT v2 and CrossViT with sizes from its weights, where timm's takes them from its input.

Subclasses with a forward of their own, which computes the same; parameters and files are timm's.
"""

from __future__ import annotations

import torch
from timm.models import crossvit, pvt_v2
from torch.nn import functional as F


def heads(x: torch.Tensor, count: int) -> torch.Tensor:
    """(N, L, heads x width) -> (N, heads, L, width)."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attend(attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention by heads and its projection, (N, L, C)."""
    drop = attention.attn_drop.p if attention.training else 0.0
    if getattr(attention, "fused_attn", False):
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=drop)
    else:
        x = F.dropout((attention.scale * q @ k.transpose(-2, -1)).softmax(-1), drop) @ v
    return attention.proj_drop(attention.proj(x.transpose(1, 2).flatten(2)))


class PyramidAttention(pvt_v2.Attention):
    """PVT v2's: keys and values see a map that is reduced by a convolution (sr) or pooled."""

    def forward(self, x: torch.Tensor, feat_size: list[int]) -> torch.Tensor:
        """(N, L, C) tokens of a map of feat_size to the same."""
        q = heads(self.q(x), self.num_heads)
        if self.sr is not None:
            maps = x.transpose(1, 2).unflatten(2, tuple(feat_size))
            maps = maps if self.pool is None else self.pool(maps)
            x = self.norm(self.sr(maps).flatten(2).transpose(1, 2))
            x = x if self.act is None else self.act(x)
        k, v = (heads(part, self.num_heads) for part in self.kv(x).chunk(2, -1))
        return attend(self, q, k, v)


class ClassAttention(crossvit.CrossAttention):
    """CrossViT's: the class token alone asks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, L, C) tokens to (N, 1, C)."""
        q, k, v = (heads(part, self.num_heads) for part in (self.wq(x[:, :1]), self.wk(x), self.wv(x)))
        return attend(self, q, k, v)


ELASTIC = {
    "timm.models.pvt_v2.Attention": PyramidAttention,
    "timm.models.crossvit.CrossAttention": ClassAttention,
}
"""By the kind that each replaces."""
