"""Attention of Mix Transformers (segmentation-models-pytorch) whose sizes come from its weights, not from its input."""

from __future__ import annotations

import torch
from segmentation_models_pytorch.encoders import mix_transformer

from .timm_elastic import attend, heads


class MixAttention(mix_transformer.Attention):
    """SegFormer's attention: keys and values are computed from a feature map that a convolution (`sr`) reduces."""

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Maps (N, L, C) tokens of a feature map of (height, width) to (N, L, C) tokens."""
        q = heads(self.q(x), self.num_heads)
        if self.sr_ratio > 1:
            maps = x.transpose(1, 2).unflatten(2, (height, width))
            x = self.norm(self.sr(maps).flatten(2).transpose(1, 2))
        k, v = (heads(part, self.num_heads) for part in self.kv(x).chunk(2, -1))
        return attend(self, q, k, v)
