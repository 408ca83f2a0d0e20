"""Reads and changes the sizes that calls of PyTorch's functions take, such as `x.view(b, n, heads, width)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

_FIRST = {
    "view": 1, "reshape": 1, "expand": 1, "split": 1, "tensor_split": 1, "layer_norm": 1, "unflatten": 2, "narrow": 2,
    "groups": 6, "zeros": 0, "new_zeros": 1,
}  # fmt: skip
"""{function: the position of its sizes among its arguments}."""
_FUNCTIONS: dict[Any, str] = {
    torch.Tensor.view: "view",
    torch.Tensor.reshape: "reshape",
    torch.reshape: "reshape",
    torch.Tensor.expand: "expand",
    torch.broadcast_to: "expand",
    torch.Tensor.broadcast_to: "expand",
    torch.Tensor.unflatten: "unflatten",
    torch.unflatten: "unflatten",
    torch.Tensor.split: "split",
    torch.split: "split",
    torch.Tensor.split_with_sizes: "split",
    torch.split_with_sizes: "split",
    torch.functional.split: "split",
    torch.Tensor.tensor_split: "tensor_split",
    torch.tensor_split: "tensor_split",
    torch.Tensor.narrow: "narrow",
    torch.narrow: "narrow",
    **{function: "groups" for function in (F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)},
    F.layer_norm: "layer_norm",
    torch.layer_norm: "layer_norm",
    **{function: "zeros" for function in (torch.zeros, torch.ones, torch.full, torch.empty, torch.rand, torch.randn)},
    **{getattr(torch.Tensor, f"new_{name}"): "new_zeros" for name in ("zeros", "ones", "full", "empty")},
}
MAKERS = ("zeros", "new_zeros")
"""Functions that make a tensor of given sizes. Older plans count their calls apart from the others of a forward."""
_SEVERAL = ("view", "reshape", "expand", "narrow", *MAKERS)
"""Functions that take several sizes as arguments of their own."""
_KEYWORDS = (
    "shape",
    "size",
    "sizes",
    "split_size_or_sections",
    "split_size",
    "split_sizes",
    "normalized_shape",
    "groups",
)


class SizesIn:
    """The sizes that a call of one of PyTorch's functions takes.

    Attributes:
        function: name of the function: "view", "split" and so on.
        sizes: the sizes, as the code gives them; -1 for one that PyTorch infers.
        axes: for slices the dimension of the tensor that each size is a bound of; else empty.
    """

    def __init__(
        self,
        function: str,
        sizes: Sequence[Any],
        put: Callable[[list], tuple[tuple, dict]],
        axes: Sequence[int] = (),
    ):
        self.function, self.sizes, self._put, self.axes = function, list(sizes), put, tuple(axes)

    def arguments(self, sizes: list) -> tuple[tuple, dict]:
        """Returns the arguments of the call with other sizes."""
        return self._put(sizes)


def sizes_in(func: Any, args: tuple, kwargs: dict) -> SizesIn | None:
    """Returns the sizes in a call of a function, or None if it takes none."""
    if func is torch.Tensor.__getitem__:
        return _bounds(*args)
    name = _FUNCTIONS.get(func)
    if name is None:
        return None
    first = _FIRST[name]
    key = next((k for k in _KEYWORDS if k in kwargs), None)
    if key is not None:
        value = kwargs[key]
    elif len(args) > first:
        value = args[first]
    else:
        return None
    several = isinstance(value, (list, tuple))
    if not several and key is None and name in _SEVERAL:
        value = args[first:]

        def put(sizes: list) -> tuple[tuple, dict]:
            return (*args[:first], *sizes), kwargs
    else:

        def put(sizes: list) -> tuple[tuple, dict]:
            new = sizes if several else sizes[0]
            if key is not None:
                return args, {**kwargs, key: new}
            return (*args[:first], new, *args[first + 1 :]), kwargs

    given = list(value) if isinstance(value, (list, tuple)) else [value]
    if not given or not all(_is_size(n) for n in given) or (name == "tensor_split" and not several):
        return None
    return SizesIn(name, given, put)


def _is_size(value: Any) -> bool:
    """Returns True for an integer; exporters give symbols or tensors of one value instead."""
    if isinstance(value, torch.Tensor):
        return value.dim() == 0
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def _bounds(x: torch.Tensor, index: Any) -> SizesIn | None:
    """Returns the bounds of slices such as `x[:, :16]`, or None if there are none. A missing bound is -1."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if not all(isinstance(p, slice) or p is None or p is Ellipsis or _is_size(p) for p in parts):
        return None
    sizes: list[Any] = []
    axes, places, axis = [], [], 0
    for place, part in enumerate(parts):
        if part is Ellipsis:
            axis = x.dim() - sum(p is not None for p in parts[place + 1 :])
            continue
        if isinstance(part, slice):
            bounds = [-1 if b is None else b for b in (part.start, part.stop)]
            if bounds != [-1, -1] and part.step in (None, 1) and all(_is_size(b) for b in bounds):
                sizes += bounds
                axes += [axis, axis]
                places.append(place)
        axis += part is not None

    def put(new: list) -> tuple[tuple, dict]:
        result = list(parts)
        for i, place in enumerate(places):
            start, stop = new[2 * i : 2 * i + 2]
            part = parts[place]
            result[place] = slice(part.start if start == -1 else start, part.stop if stop == -1 else stop, part.step)
        return (x, tuple(result) if isinstance(index, tuple) else result[0]), {}

    return SizesIn("getitem", sizes, put, axes) if sizes else None
