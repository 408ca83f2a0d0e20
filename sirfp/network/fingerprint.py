"""A fingerprint of networks, batches and other values, to tell whether a measurement was made of the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

_PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.Size, torch.device)


def fingerprint(*values: Any) -> str:
    """Returns a hash of values: equal for equal values in any process, and in practice different for all others.

    Tensors and arrays count by type, shape and every bit. Modules count by their class, the tensors of their state, and
    the plain attributes of each of their modules. Other objects count by their class and attributes, and functions by
    their name: their code is not looked at.

    Args:
        values: networks, tensors, and objects and containers of them, e.g. Detectron2's `Instances`.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=32)
    seen: dict[int, int] = {}
    kept: list[Any] = []  # so that no id is used twice

    def word(*parts: Any) -> None:
        digest.update(repr(parts).encode() + b"\0")

    def feed(value: Any) -> None:
        if isinstance(value, _PLAIN):
            word(type(value).__name__, value)
            return
        if id(value) in seen:
            word("again", seen[id(value)])
            return
        seen[id(value)] = len(seen)
        kept.append(value)
        if isinstance(value, torch.Tensor):
            _feed_tensor(value)
        elif isinstance(value, np.ndarray):
            word("array", value.dtype.str, value.shape)
            digest.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, nn.Module):
            _feed_module(value)
        elif isinstance(value, partial):
            feed((value.func, value.args, value.keywords))
        elif callable(value) and hasattr(value, "__qualname__"):
            word("function", value.__module__, value.__qualname__)
        else:
            _feed_object(value)

    def _feed_tensor(value: torch.Tensor) -> None:
        word("tensor", value.dtype, tuple(value.shape))
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")

    def _feed_module(model: nn.Module) -> None:
        for name, module in model.named_modules():
            plain = {key: x for key, x in vars(module).items() if isinstance(x, _PLAIN) or _all_plain(x)}
            word(name, type(module).__module__, type(module).__qualname__, sorted(plain.items()))
        for name, tensor in model.state_dict().items():
            word(name)
            feed(tensor)

    def _feed_object(value: Any) -> None:
        word(type(value).__module__, type(value).__qualname__)
        if isinstance(value, Mapping):
            for key, each in value.items():
                feed(key)
                feed(each)
        elif isinstance(value, (list, tuple)):
            word(len(value))
            for each in value:
                feed(each)
        elif isinstance(value, (set, frozenset)):
            word(sorted(map(repr, value)))
        slots = {name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())}
        attributes = {name: getattr(value, name) for name in sorted(slots) if hasattr(value, name)}
        for name, each in {**attributes, **getattr(value, "__dict__", {})}.items():
            if name not in ("__dict__", "__weakref__"):
                word(name)
                feed(each)

    feed(values)
    kept.clear()  # the functions call each other, so what they hold is freed only when garbage is collected
    return digest.hexdigest()


def _all_plain(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(each, _PLAIN) for each in value)
