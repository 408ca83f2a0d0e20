"""Attention of timm's transformers, and of SegFormer's, loses whole heads; the last one of a block, some of its width.

A head's query, key and value are one atom, so the heads of a block compete. Either heads or their width can be
offered, as channels of both lie in one dimension. Heads it is: a head less shortens every part of attention, the scale
and the fused kernels stay, and the position biases of Swin, one column a head, go along.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

LAYERS = {
    "timm.layers.attention.Attention": {"qkv": 3},
    "timm.models.swin_transformer.WindowAttention": {"qkv": 3},
    "timm.models.pvt_v2.Attention": {"q": 1, "kv": 2},
    "timm.models.crossvit.CrossAttention": {"wq": 1, "wk": 1, "wv": 1},
    "segmentation_models_pytorch.encoders.mix_transformer.Attention": {"q": 1, "kv": 2},
}
"""Kinds of attention: their linear layers, and how many of query, key and value each makes, (parts, heads, width)."""


def attention_kind(module: nn.Module) -> str:
    """The kind of attention that a module is, or ""."""
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__)
    return next((name for name in names if name in LAYERS), "")


def follow_heads(trace: Any, name: str, attention: nn.Module) -> None:
    """Labels each head as one channel, in a trace that has not begun; a single head's width is left as it is."""
    count = attention.num_heads
    if count == 1:
        return
    heads = trace.labels.fresh(count)
    for layer, parts in LAYERS[attention_kind(attention)].items():
        for leaf in ("weight", "bias"):
            dims = trace.state_dims.get(f"{name}.{layer}.{leaf}".lstrip("."))
            if dims is not None:
                dims[0] = np.tile(np.repeat(heads, len(dims[0]) // (parts * count)), parts)


def elastic(attention: nn.Module) -> None:
    """Gives attention whose own forward takes its width from its input one that takes it from its weights."""
    kind = attention_kind(attention)
    if kind.startswith(("timm.models.pvt_v2", "timm.models.crossvit")):
        from .timm_elastic import ELASTIC

        attention.__class__ = ELASTIC[kind]
    elif kind.startswith("segmentation_models_pytorch"):
        from .mit_attention import MixAttention

        attention.__class__ = MixAttention


def refit_heads(attention: nn.Module) -> None:
    """Sets the number of heads, or the width of the only one, from the weights as they are now."""
    elastic(attention)
    layer, parts = next(iter(LAYERS[attention_kind(attention)].items()))
    rows = getattr(attention, layer).out_features // parts
    width = round(attention.scale**-2)  # the scale remains that of the dense heads
    attention.num_heads = max(1, rows // width)
    if hasattr(attention, "head_dim"):
        attention.head_dim = min(rows, width)
    if hasattr(attention, "attn_dim"):
        attention.attn_dim = rows
    if rows < width and hasattr(attention, "fused_attn"):
        attention.fused_attn = False
