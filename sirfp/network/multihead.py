"""PyTorch's multi-head attention (`nn.MultiheadAttention`) without some of its heads or input channels.

PyTorch's class takes the width of the heads, and the sizes of all projections, from `embed_dim`. The subclass here
takes them from the weights. It computes the same, and parameters keep their names.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class PrunedMultihead(nn.MultiheadAttention):
    """Multi-head attention whose number of heads and widths come from its weights.

    `head_dim` is the width of a dense head. A single head may be narrower; the scale stays that of the dense head.
    """

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attends; arguments and results are those of `nn.MultiheadAttention.forward`."""
        batched, swapped = query.dim() == 3, not self.batch_first
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif swapped:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._projected(query, key, value)
        added = 0
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat([x, b.expand(len(x), 1, -1)], 1) for x, b in ((k, self.bias_k), (v, self.bias_v)))
            added += 1
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
            added += 1
        mask = self._mask(attn_mask, key_padding_mask, q, added)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        drop = self.dropout if self.training else 0.0
        scale = self.head_dim**-0.5
        weights = None
        if need_weights:
            scores = q * scale @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), drop)
            x = weights @ v
        else:
            causal = is_causal and mask is None
            x = F.scaled_dot_product_attention(q, k, v, mask, drop, causal, scale=scale)
        x = self.out_proj(x.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return x.squeeze(0), None if weights is None else weights.squeeze(0)
        return (x.transpose(0, 1) if swapped else x), weights

    def _projected(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Projects queries, keys and values, each (N, L, C), to (N, L, heads x width)."""
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = tuple(getattr(self, name) for name in PROJECTIONS)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]

    def _mask(
        self, mask: torch.Tensor | None, padding: torch.Tensor | None, q: torch.Tensor, added: int
    ) -> torch.Tensor | None:
        """Joins both masks to one that is added to the scores, which broadcasts to (N, heads, L, S).

        Args:
            mask: (L, S) or (N x heads, L, S), of bool (True is masked) or float.
            padding: (N, S), of bool or float.
            q: the projected queries, (N, L, heads x width).
            added: number of positions that were appended to the keys; they are never masked.
        """
        joined: torch.Tensor | None = None
        if mask is not None:
            joined = _additive(mask, q)
            joined = joined[None, None] if joined.dim() == 2 else joined.unflatten(0, (len(q), -1))
        if padding is not None:
            padding = _additive(padding, q)[:, None, None]
            joined = padding if joined is None else joined + padding
        return joined if joined is None or not added else F.pad(joined, (0, added))


def _additive(mask: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask.to(q.dtype)
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, -torch.inf)


def is_multihead(module: nn.Module) -> bool:
    """Returns True for PyTorch's multi-head attention, and for subclasses that do not change its forward."""
    own = isinstance(module, nn.MultiheadAttention)
    return own and type(module).forward in (nn.MultiheadAttention.forward, PrunedMultihead.forward)


def follow_multihead(trace, name: str, attention: nn.MultiheadAttention) -> None:
    """Gives all channels of a head the same label; does nothing if there is a single head.

    Args:
        trace: a trace that has not run yet.
        name: the name of the attention module.
        attention: the attention module.
    """
    if attention.num_heads == 1:
        return
    heads = trace.labels.fresh(attention.num_heads)
    for leaf, dim in (("in_proj_weight", 0), ("in_proj_bias", 0), ("bias_k", 2), ("bias_v", 2)):
        _label(trace, f"{name}.{leaf}".lstrip("."), dim, heads)
    for leaf in PROJECTIONS:
        _label(trace, f"{name}.{leaf}".lstrip("."), 0, heads)


def _label(trace, name: str, dim: int, heads: np.ndarray) -> None:
    dims = trace.state_dims.get(name)
    if dims is not None and dims[dim] is not None:
        parts = 3 if "in_proj" in name else 1
        dims[dim] = np.tile(np.repeat(heads, len(dims[dim]) // (parts * len(heads))), parts)


def refit_multihead(attention: nn.MultiheadAttention) -> None:
    """Sets the sizes of an attention module from its weights after a cut; leaves one that was not cut as it is."""
    fused = attention.in_proj_weight is not None
    weights = attention.in_proj_weight.chunk(3) if fused else [getattr(attention, n) for n in PROJECTIONS]
    (rows, width), (_, keys), (_, values) = (w.shape for w in weights)
    if not isinstance(attention, PrunedMultihead):
        if (rows, width, keys, values) == (attention.embed_dim,) * 2 + (attention.kdim, attention.vdim):
            return
        attention.__class__ = PrunedMultihead
    attention.embed_dim, attention.kdim, attention.vdim = width, keys, values
    attention.num_heads = max(1, rows // attention.head_dim)
    attention._qkv_same_embed_dim = False  # PyTorch's encoder layers then do not take their fused path
