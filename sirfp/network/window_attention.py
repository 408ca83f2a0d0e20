"""Window attention of torchvision's Swin Transformers, of images and videos, whose sizes come from its weights.

In torchvision's classes the number of heads, their width and the scale come from the width of the input. The subclasses
compute the same, and parameters keep their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import swin_transformer as swin
from torchvision.models.video import swin_transformer as video


class _FromWeights(nn.Module):
    """Attention in windows of maps of any number of dimensions.

    `head_dim` is the width of a dense head; a cut does not change the scale.
    """

    head_dim: int
    num_heads: int
    attention_dropout: float
    dropout: float
    window_size: Any
    shift_size: Any
    qkv: Any
    proj: Any
    get_relative_position_bias: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, H, W, C) to (N, H, W, C); of videos (N, T, H, W, C)."""
        sizes, axes = x.shape[1:-1], tuple(range(1, x.dim() - 1))
        window = self._window(sizes)
        padding = [n for size, w in zip(reversed(sizes), reversed(window), strict=True) for n in (0, -size % w)]
        x = F.pad(x, (0, 0, *padding))
        padded = x.shape[1:-1]
        shift = [0 if w >= n else s for w, n, s in zip(window, padded, self.shift_size, strict=True)]
        if any(shift):
            x = x.roll([-n for n in shift], axes)
        parts = _in_windows(x, window)
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self._parts(parts.flatten(x.dim() - 1, -2).flatten(0, len(axes)))
        )
        scores = self._scores(q, k) + self._bias(window)
        if any(shift):
            scores = (scores.unflatten(0, (len(x), -1)) + self._mask(scores, padded, window, shift)).flatten(0, 1)
        weights = F.dropout(scores.softmax(-1), self.attention_dropout, self.training)
        x = F.dropout(self.proj((weights @ v).transpose(1, 2).flatten(2)), self.dropout, self.training)
        x = _joined(x.unflatten(1, window).unflatten(0, parts.shape[: len(axes) + 1]))
        if any(shift):
            x = x.roll(shift, axes)
        for axis, size in zip(axes, sizes, strict=True):
            x = x.narrow(axis, 0, size)
        return x.contiguous()

    def _window(self, sizes: Sequence[int]) -> list[int]:
        """Returns the size of windows for a map of given sizes."""
        return list(self.window_size)

    def _bias(self, window: list[int]) -> torch.Tensor:
        """Returns what the relative positions of tokens add to scores, (1, heads, L, L)."""
        return self.get_relative_position_bias()

    def _parts(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Projects tokens of windows, (windows, L, C), to queries, keys and values, (windows, L, heads x width)."""
        return self.qkv(tokens).chunk(3, -1)

    def _scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return q * self.head_dim**-0.5 @ k.transpose(-2, -1)

    def _mask(self, scores: torch.Tensor, sizes: Sequence[int], window: list[int], shift: list[int]) -> torch.Tensor:
        """Returns what is added to scores between tokens that only the shift put into one window.

        Args:
            scores: a tensor of the wanted device and dtype.
            sizes: those of the padded map.
            window: the size of a window.
            shift: the steps by which the map was rolled.

        Returns:
            (windows, 1, L, L): 0 where two tokens are of the same region of the map, else -100.
        """
        regions = scores.new_zeros(())
        for n, w, moved in zip(sizes, window, shift, strict=True):
            place = torch.arange(n, device=scores.device)
            region = (place >= n - w).to(scores) + (place >= n - moved).to(scores) * bool(moved)
            regions = 3 * regions[..., None] + region
        flat = _in_windows(regions[None, ..., None], window).flatten(len(window) + 1).flatten(0, len(window))
        return (flat[:, None] != flat[:, :, None]).to(scores)[:, None] * -100


class PrunedWindows(_FromWeights, swin.ShiftedWindowAttention):
    """Swin's attention."""


class PrunedCosineWindows(_FromWeights, swin.ShiftedWindowAttentionV2):
    """Swin V2's attention: cosine similarity with a scale for each head, and keys without bias."""

    logit_scale: nn.Parameter

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


class PrunedVideoWindows(_FromWeights, video.ShiftedWindowAttention3d):
    """Attention of Swin for videos: windows are no larger than the video, and its maps have three dimensions."""

    def _window(self, sizes: Sequence[int]) -> list[int]:
        return [min(n, w) for n, w in zip(sizes, self.window_size, strict=True)]

    def _bias(self, window: list[int]) -> torch.Tensor:
        return video.ShiftedWindowAttention3d.get_relative_position_bias(self, window)


def _in_windows(x: torch.Tensor, window: Sequence[int]) -> torch.Tensor:
    """Divides maps (N, *sizes, C) into windows: (N, *numbers of windows, *window, C)."""
    count = len(window)
    for axis in reversed(range(count)):
        x = x.unflatten(axis + 1, (-1, window[axis]))
    return x.permute(0, *range(1, 2 * count, 2), *range(2, 2 * count + 1, 2), 2 * count + 1)


def _joined(x: torch.Tensor) -> torch.Tensor:
    """Joins windows (N, *numbers of windows, *window, C) to maps (N, *sizes, C)."""
    count = x.dim() // 2 - 1
    x = x.permute(0, *(axis for i in range(1, count + 1) for axis in (i, i + count)), 2 * count + 1)
    for axis in range(1, count + 1):
        x = x.flatten(axis, axis + 1)
    return x


PRUNED: dict[type[nn.Module], type[nn.Module]] = {
    swin.ShiftedWindowAttention: PrunedWindows,
    swin.ShiftedWindowAttentionV2: PrunedCosineWindows,
    video.ShiftedWindowAttention3d: PrunedVideoWindows,
}
"""{class of torchvision's attention: the class that replaces it}."""
_KINDS = frozenset([*PRUNED, *PRUNED.values()])


def is_window_attention(module: nn.Module) -> bool:
    """Returns True for torchvision's window attention."""
    return type(module) in _KINDS


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
