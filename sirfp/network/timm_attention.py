"""Prunes attention in timm's transformers and in SegFormer by removing whole heads.

Query, key and value of a head are removed together, so a group's candidates are the heads of a block. Heads and the
channels inside a head share one dimension of the weights, so only one of the two can be pruned. Heads are pruned:
removing a head makes every part of attention smaller, keeps the scale and the fused kernels, and removes the head's
column of Swin's position bias. In a block with a single head, channels inside the head are removed instead.
"""

from __future__ import annotations

from functools import lru_cache
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
"""{class of attention: {linear layer: number of its parts}}; the parts are query, key and value, or some of them.

The outputs of a layer are ordered (parts, heads, width)."""


def attention_kind(module: nn.Module) -> str:
    """Returns the key of `LAYERS` for an attention module, "" for other modules."""
    kind: Any = type(module)
    return _kind_of(kind)


@lru_cache(maxsize=4096)
def _kind_of(kind: type) -> str:
    names = (f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__)
    return next((name for name in names if name in LAYERS), "")


def follow_heads(trace: Any, name: str, attention: Any) -> None:
    """Gives all channels of a head the same label; does nothing if there is a single head.

    Args:
        trace: a trace that has not run yet.
        name: the name of the attention module.
        attention: the attention module.
    """
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
    """Replaces, in place, a forward whose sizes come from the input by one whose sizes come from the weights."""
    kind = attention_kind(attention)
    if kind.startswith(("timm.models.pvt_v2", "timm.models.crossvit")):
        from .timm_elastic import ELASTIC

        attention.__class__ = ELASTIC[kind]
    elif kind.startswith("segmentation_models_pytorch"):
        from .mit_attention import MixAttention

        attention.__class__ = MixAttention


def refit_heads(attention: Any) -> None:
    """Sets the number of heads, or the width of a single head, from the weights after a cut."""
    elastic(attention)
    layer, parts = next(iter(LAYERS[attention_kind(attention)].items()))
    rows = getattr(attention, layer).out_features // parts
    width = round(attention.scale**-2)  # width of a dense head: a cut does not change the scale, width ** -0.5
    attention.num_heads = max(1, rows // width)
    if hasattr(attention, "head_dim"):
        attention.head_dim = min(rows, width)
    if hasattr(attention, "attn_dim"):
        attention.attn_dim = rows
    if rows < width and hasattr(attention, "fused_attn"):
        attention.fused_attn = False
