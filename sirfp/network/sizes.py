"""Gives a pruned network the sizes that its own code writes for the dense one.

Code such as `x.reshape(b, n, 3, self.heads, c // self.heads)` writes sizes in two ways:

- an integer attribute of a module, or an integer in a list: the attribute is set;
- an expression: the module then gets a subclass of its class (`resized`), which runs the same forward, but replaces
  these sizes in the calls of PyTorch's functions.

A plan stores both as widths of the module, {key: number}; see `attribute_key`, `site_key` and `call_key`.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from .call_sites import CallSites, call_stack

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
"""Functions that make a tensor of given sizes. They are counted apart from the other calls of a forward."""
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
_ATTRIBUTE = re.compile(r"attribute (\w+)(?: (\d+))?")
_CALL = re.compile(r"(call|site) (\d+) (\w+) (\d+)(?: of (\d+))?( in training)?")

_RESIZED: dict[type[nn.Module], type[nn.Module]] = {}
"""{class of a module: the subclass that replaces sizes}."""

Table = dict[int | tuple[str, int], dict[int, tuple[int, int]]]
"""{number of the call, or (function, number of the call site): {position of the size: (new size, dense size)}}; a dense
size of 0 replaces any size.

The numbers of calls of `MAKERS` are negative: -1 for the first.
"""


def attribute_key(name: str, index: int | None = None) -> str:
    """Returns the key of an integer attribute, or of the integer at an index of a list."""
    return f"attribute {name}" if index is None else f"attribute {name} {index}"


def site_key(number: int, function: str, position: int, dense: int | None = None, *, training: bool = False) -> str:
    """Returns the key of a size in all calls from one place in the code, such as those of a loop over images.

    Args:
        number: how many other places the module's forward calls this function from before (`CallSites`).
        function: name of the function: "reshape", "split" and so on.
        position: the position of the size among the sizes of the call.
        dense: the size in the dense network. If given, a multiple of it is replaced by the same multiple of the new
            size, as in `batch * heads`; else the size is replaced whatever it is.
        training: True for a call in training mode, of a module that makes other calls there than in evaluation mode.
            Without such keys a module's sizes are replaced in both modes.
    """
    return _key(f"site {number}", function, position, dense, training)


def call_key(number: int, function: str, position: int, dense: int | None = None, *, training: bool = False) -> str:
    """Returns the key of a size in a single call, from a place whose calls give different sizes.

    Args:
        number: how many calls that take sizes the module's forward makes before this one; of `MAKERS`, how many of
            those.
        function, position, dense, training: as in `site_key`.
    """
    return _key(f"call {number}", function, position, dense, training)


def _key(call: str, function: str, position: int, dense: int | None, training: bool) -> str:
    of = "" if dense is None else f" of {dense}"
    return f"{call} {function} {position}{of}" + (" in training" if training else "")


def is_call_key(key: str) -> bool:
    """Returns True for a key of `site_key` or `call_key`."""
    return bool(_CALL.fullmatch(key))


def names_in_code(module: nn.Module) -> frozenset[str]:
    """Returns the names of the attributes that the methods of a module's class read, but for its construction."""
    return frozenset(
        name
        for base in type(module).__mro__
        if base.__module__.partition(".")[0] != "torch"
        for key, method in vars(base).items()
        if key not in ("__init__", "extra_repr", "__repr__") and hasattr(method, "__code__")
        for name in method.__code__.co_names
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


class _Resizing(TorchFunctionMode):
    """Replaces, while active, sizes in the calls that one forward makes.

    PyTorch's compiler knows no call sites: there each call of a function counts as another site.

    Args:
        table: the sizes.
        frame: the frame in which the forward is called; None while PyTorch's compiler follows it. It is let go of when
            the mode ends, since a frame that holds itself would keep its inputs in memory.
    """

    def __init__(self, table: Table, frame: FrameType | None):
        super().__init__()
        self.table, self.frame, self.calls, self.made = table, frame, 0, 0
        self.sites = CallSites()
        self.counts = {key[0]: 0 for key in table if isinstance(key, tuple)}

    def __exit__(self, *exc) -> None:
        super().__exit__(*exc)
        self.frame = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = sizes_in(func, args, kwargs)
        if found is not None:
            if found.function in MAKERS:
                self.made += 1
                entries = [self.table.get(-self.made)]
            else:
                entries = [self.table.get(self.calls)]
                self.calls += 1
            if found.function in self.counts:
                entries.append(self.table.get((found.function, self._site(found.function))))
            for sizes in filter(None, entries):
                found.sizes = [_replaced(n, sizes.get(i)) for i, n in enumerate(found.sizes)]
                args, kwargs = found.arguments(found.sizes)
        return func(*args, **kwargs)

    def _site(self, function: str) -> int:
        if self.frame is not None:
            return self.sites.number(function, call_stack(self.frame))
        self.counts[function] += 1
        return self.counts[function] - 1


def _replaced(given: Any, entry: tuple[int, int] | None) -> Any:
    if entry is None or given == -1:
        return given
    new, dense = entry
    if not dense:
        return new
    return given if given % dense else given // dense * new


def _subclass(kind: type[nn.Module]) -> type[nn.Module]:
    """Returns a subclass of a module's class, under the same name, whose forward replaces sizes."""

    if kind in _RESIZED:
        return _RESIZED[kind]

    @functools.wraps(kind.forward)
    def forward(self, *args, **kwargs):
        training = self.training and "sizes_in_training" in vars(self)
        table = self.sizes_in_training if training else self.sizes_in_calls
        with _Resizing(table, None if torch.compiler.is_dynamo_compiling() else sys._getframe()):
            return kind.forward(self, *args, **kwargs)

    def reduce(self, protocol):
        return _restored, (kind,), *kind.__reduce_ex__(self, protocol)[2:]

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    _RESIZED[kind] = type(kind.__name__, (kind,), {**names, "forward": forward, "__reduce_ex__": reduce})
    return _RESIZED[kind]


def _restored(kind: type[nn.Module]) -> nn.Module:
    """Makes an empty module of a resized class, for `pickle` and `copy`."""
    resized = _subclass(kind)
    return resized.__new__(resized)


def is_resized(module: nn.Module) -> bool:
    """Returns True if sizes in a module's calls are replaced."""
    return "sizes_in_calls" in vars(module)


def is_size_key(key: str) -> bool:
    """Returns True for a key of `attribute_key`, `site_key` or `call_key`."""
    return bool(_ATTRIBUTE.fullmatch(key) or _CALL.fullmatch(key))


def check_sizes(name: str, module: nn.Module, widths: Mapping[str, int]) -> None:
    """Checks that a module has the attributes that `set_sizes` sets.

    Args:
        name: the name of the module, for the message.
        module: the module.
        widths: {key: size}.

    Raises:
        InputError: an attribute does not exist, or is not an integer of at least the new size.
    """
    for key, size in widths.items():
        if match := _ATTRIBUTE.fullmatch(key):
            old = vars(module).get(match[1])
            if match[2]:
                old = old[int(match[2])] if isinstance(old, (list, tuple)) and int(match[2]) < len(old) else None
            if type(old) is not int or not 1 <= size <= old:
                place = f"{name}.{match[1]}" + (f"[{match[2]}]" if match[2] else "")
                raise InputError(f"the plan is for another model: it sets {place} to {size}, which here is {old!r:.40}")


def set_sizes(module: Any, widths: Mapping[str, int]) -> None:
    """Sets the sizes of a module: its attributes, and those in the calls of its forward.

    Args:
        module: the module.
        widths: {key: size}; other keys than those of this module are ignored.
    """
    for key, size in widths.items():
        if match := _ATTRIBUTE.fullmatch(key):
            _set_attribute(module, match[1], int(match[2]) if match[2] else None, size)
        elif match := _CALL.fullmatch(key):
            if not is_resized(module):
                module.sizes_in_calls = {}
                module.__class__ = _subclass(type(module))
            kind, number, function, position = match[1], int(match[2]), match[3], int(match[4])
            table = module.sizes_in_calls
            if match[6]:
                table = vars(module).setdefault("sizes_in_training", {})
            call = -1 - number if function in MAKERS else number
            sizes = table.setdefault((function, number) if kind == "site" else call, {})
            known, dense = sizes.get(position), int(match[5] or 0)
            if known:  # an earlier cut set it: what its code gives is a multiple of the size in the dense network
                size, dense = known[0] * size // dense if dense and known[1] else size, known[1]
            sizes[position] = size, dense


def _set_attribute(module: Any, attribute: str, index: int | None, size: int) -> None:
    if index is None:
        setattr(module, attribute, size)
    else:
        value = getattr(module, attribute)
        setattr(module, attribute, type(value)([*value[:index], size, *value[index + 1 :]]))
