"""Window attention of torchvision's Swin Transformers whose sizes come from its weights.

In torchvision's classes the number of heads, their width and the scale come from the width of the input. The subclasses
compute the same, and parameters keep their names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import swin_transformer as swin


class PrunedWindows(swin.ShiftedWindowAttention):
    """Swin's attention. `head_dim` is the width of a dense head; a cut does not change the scale."""

    head_dim: int
    window_size: Any
    shift_size: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, H, W, C) to (N, H, W, C)."""
        images, height, width, _ = x.shape
        rows, columns = self.window_size
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        size = x.shape[1:3]
        shift = [0 if w >= n else s for w, n, s in zip(self.window_size, size, self.shift_size, strict=True)]
        if any(shift):
            x = x.roll((-shift[0], -shift[1]), (1, 2))
        x = x.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).transpose(2, 3)
        count = x.shape[1:3]  # windows in a column and in a row
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self._parts(x.flatten(3, 4).flatten(0, 2))
        )
        scores = self._scores(q, k) + self.get_relative_position_bias()
        if any(shift):
            scores = (scores.unflatten(0, (images, -1)) + self._mask(scores, size, shift)).flatten(0, 1)
        weights = F.dropout(scores.softmax(-1), self.attention_dropout, self.training)
        x = F.dropout(self.proj((weights @ v).transpose(1, 2).flatten(2)), self.dropout, self.training)
        x = x.unflatten(1, (rows, columns)).unflatten(0, (images, *count)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if any(shift):
            x = x.roll((shift[0], shift[1]), (1, 2))
        return x[:, :height, :width].contiguous()

    def _parts(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Projects tokens of windows, (windows, L, C), to queries, keys and values, (windows, L, heads x width)."""
        return self.qkv(tokens).chunk(3, -1)

    def _scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return q * self.head_dim**-0.5 @ k.transpose(-2, -1)

    def _mask(self, scores: torch.Tensor, size: torch.Size, shift: list[int]) -> torch.Tensor:
        """Returns what is added to scores between tokens that only the shift put into one window.

        Args:
            scores: a tensor of the wanted device and dtype.
            size: height and width of the padded map.
            shift: rows and columns by which the map was rolled.

        Returns:
            (windows, 1, L, L): 0 where two tokens are of the same region of the map, else -100.
        """
        regions = scores.new_zeros(())
        for n, window, moved, factor in zip(size, self.window_size, shift, (3, 1), strict=True):
            place = torch.arange(n, device=scores.device)
            region = (place >= n - window).to(scores) + (place >= n - moved).to(scores) * bool(moved)
            regions = regions[..., None] + factor * region
        windows = regions.unflatten(1, (-1, self.window_size[1])).unflatten(0, (-1, self.window_size[0]))
        flat = windows.transpose(1, 2).flatten(2).flatten(0, 1)
        return (flat[:, None] != flat[:, :, None]).to(scores)[:, None] * -100


class PrunedCosineWindows(PrunedWindows, swin.ShiftedWindowAttentionV2):
    """Swin V2's attention: cosine similarity with a scale for each head, and keys without bias."""

    def _parts(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.qkv.bias is None:
            return self.qkv(tokens).chunk(3, -1)
        q, _, v = self.qkv.bias.chunk(3)
        return F.linear(tokens, self.qkv.weight, torch.cat([q, torch.zeros_like(q), v])).chunk(3, -1)

    def _scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        scale = self.logit_scale.clamp(max=torch.log(torch.tensor(100.0))).exp()
        return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale

    def get_relative_position_bias(self) -> torch.Tensor:
        return swin.ShiftedWindowAttentionV2.get_relative_position_bias(self)


PRUNED: dict[type[nn.Module], type[nn.Module]] = {
    swin.ShiftedWindowAttention: PrunedWindows,
    swin.ShiftedWindowAttentionV2: PrunedCosineWindows,
}
"""{class of torchvision's attention: the class that replaces it}."""


def is_window_attention(module: nn.Module) -> bool:
    """Returns True for torchvision's window attention."""
    return type(module) in PRUNED or type(module) in PRUNED.values()


def note_head_width(attention: Any) -> None:
    """Notes the width of a head before the first cut, since the scale and the number of heads follow from it."""
    if "head_dim" not in vars(attention):
        attention.head_dim = attention.qkv.out_features // (3 * attention.num_heads)


def refit_windows(attention: Any) -> None:
    """Sets the sizes of window attention from its weights after a cut; leaves one that was not cut as it is."""
    rows, width = attention.qkv.weight.shape
    if type(attention) in PRUNED:
        if rows == 3 * attention.num_heads * attention.head_dim and width == rows // 3:
            return
        attention.__class__ = PRUNED[type(attention)]
    attention.num_heads = max(1, rows // (3 * attention.head_dim))
