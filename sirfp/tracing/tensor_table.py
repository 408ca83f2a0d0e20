"""A table with tensors as keys that holds no tensor: an entry is gone once its tensor is freed."""

from __future__ import annotations

import weakref
from typing import Any

import torch


class _Key(weakref.ref):
    """A weak reference to a tensor that knows the tensor's identity."""

    __slots__ = ("identity",)

    identity: int


class TensorTable:
    """Values by the identity of tensors, as in `torch.utils.weak.WeakTensorKeyDictionary`, but faster.

    Every look-up is made with a tensor at hand, so that weak references are compared but never followed to a tensor
    that nothing else holds.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[_Key, Any]] = {}
        own = weakref.ref(self)  # the keys hold `forget`: if it held the table, nothing in it were freed at once

        def forget(key: Any) -> None:
            table = own()
            if table is not None:
                known = table._entries.get(key.identity)
                if known is not None and known[0] is key:
                    del table._entries[key.identity]

        self._forget = forget

    def get(self, tensor: torch.Tensor, default: Any = None) -> Any:
        """Returns a tensor's value, or `default` if it has none."""
        known = self._entries.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else default

    def pop(self, tensor: torch.Tensor, default: Any = None) -> Any:
        """Removes a tensor's value and returns it, or `default` if it has none."""
        if id(tensor) not in self._entries:
            return default
        value = self.get(tensor, default)
        self._entries.pop(id(tensor), None)
        return value

    def setdefault(self, tensor: torch.Tensor, default: Any) -> Any:
        """Returns a tensor's value, which becomes `default` if it has none."""
        if tensor not in self:
            self[tensor] = default
        return self.get(tensor)

    def __contains__(self, tensor: torch.Tensor) -> bool:
        known = self._entries.get(id(tensor))
        return known is not None and known[0]() is tensor

    def __setitem__(self, tensor: torch.Tensor, value: Any) -> None:
        key = _Key(tensor, self._forget)
        key.identity = id(tensor)
        self._entries[id(tensor)] = (key, value)

    def __delitem__(self, tensor: torch.Tensor) -> None:
        del self._entries[id(tensor)]

    def __len__(self) -> int:
        return len(self._entries)
