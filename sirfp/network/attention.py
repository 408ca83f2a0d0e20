"""Attention of PyTorch and torchvision: pruned by whole heads, like that of timm (`sirfp.network.timm_attention`).

While a model is traced, and after a cut, these modules have a class whose sizes come from the weights.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from .multihead import PrunedMultihead, follow_multihead, is_multihead, refit_multihead
from .walk import walk, walk_modules


def _windows(module: nn.Module) -> bool:
    if "torchvision.models.swin_transformer" not in sys.modules:  # torchvision imports that of videos with it
        return False
    from .window_attention import is_window_attention

    return is_window_attention(module)


@contextmanager
def sized_by_weights(model: nn.Module) -> Iterator[None]:
    """Lets attention take its sizes from the weights while active, as it does once it is cut."""
    before = []
    for module in walk_modules(model):
        if is_multihead(module):
            before.append((module, type(module)))
            module.__class__ = PrunedMultihead
        elif _windows(module):
            from .window_attention import PRUNED, note_head_width

            note_head_width(module)
            before.append((module, type(module)))
            module.__class__ = PRUNED.get(type(module), type(module))
    try:
        yield
    finally:
        for module, kind in before:
            module.__class__ = kind


@contextmanager
def followed_heads(model: nn.Module, trace: Any) -> Iterator[None]:
    """Labels heads, and lets attention take its sizes from the weights, while active.

    Args:
        model: the model.
        trace: a trace that has not run yet.
    """
    with sized_by_weights(model):
        for name, module in walk(model):
            if is_multihead(module):
                follow_multihead(trace, name, module)
            elif _windows(module):
                _follow_windows(trace, name, module)
        yield


def _follow_windows(trace: Any, name: str, attention: Any) -> None:
    if attention.num_heads == 1:
        return
    heads = trace.labels.fresh(attention.num_heads)
    for leaf in ("weight", "bias"):
        dims = trace.state_dims.get(f"{name}.qkv.{leaf}".lstrip("."))
        if dims is not None:
            dims[0] = np.tile(np.repeat(heads, attention.head_dim), 3)


def note_heads(model: nn.Module) -> None:
    """Notes the width of heads before a cut, where it cannot be known from the weights afterwards."""
    for module in walk_modules(model):
        if _windows(module):
            from .window_attention import note_head_width

            note_head_width(module)


def refit_attention(model: nn.Module) -> None:
    """Sets the sizes of attention modules from their weights after a cut."""
    for module in walk_modules(model):
        if isinstance(module, nn.MultiheadAttention) and is_multihead(module):
            refit_multihead(module)
        elif _windows(module):
            from .window_attention import refit_windows

            refit_windows(module)
