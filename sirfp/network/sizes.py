"""Gives a pruned network the sizes that its own code writes for the dense one.

Code such as `x.reshape(b, n, 3, self.heads, c // self.heads)` writes sizes in two ways:

- an integer attribute of a module, or an integer in a list: the attribute is set;
- an expression: the module then gets a subclass of its class (`resized`), which runs the same forward, but replaces
  these sizes in the calls of PyTorch's functions.

A plan stores both as widths of the module, {key: number}; see `attribute_key` and `site_key`.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from .call_sites import CallSites, Place, Site, call_stack, code_mark, site_mark
from .compiled_sites import compiled_level, compiled_mark, is_rewritten
from .size_calls import MAKERS, sizes_in

_ATTRIBUTE = re.compile(r"attribute (\w+)(?: (\d+))?")
_CALL = re.compile(r"call (\d+) (\w+) (\d+)(?: of (\d+))?( in training)?")
"""Keys of older plans, which number the calls: of `MAKERS` and of the other functions apart."""
_SITE = re.compile(r"site (\d+) (\w+) (\d+)(?: of (\d+))?(?: round (\d+) of (\d+))? at ([0-9a-f]{16})( in training)?")

_RESIZED: dict[type[nn.Module], type[nn.Module]] = {}
"""{class of a module: the subclass that replaces sizes}."""

Entry = tuple[int, int, int, int]
"""(new size, dense size, round, number of rounds); a dense size of 0 replaces any size."""

Table = dict[Any, dict[int, list[Entry]]]
"""{(function, number of the call site, its mark): {position of the size: entries}}.

Entries of older plans have the number of the call as their key; those of `MAKERS` are negative: -1 for the first.
"""


def attribute_key(name: str, index: int | None = None) -> str:
    """Returns the key of an integer attribute, or of the integer at an index of a list."""
    return f"attribute {name}" if index is None else f"attribute {name} {index}"


def site_key(place: Place, position: int, dense: int | None, rounds: int = 1, *, training: bool = False) -> str:
    """Returns the key of a size in the calls of one site, such as those of a loop over images.

    Args:
        place: the place of a call.
        position: the position of the size among the sizes of the call.
        dense: the size in the dense network. If given, a multiple of it is replaced by the same multiple of the new
            size, as in `batch * heads`; else the size is replaced whatever it is.
        rounds: number of rounds after which the sizes of the site begin anew. The key is of this round.
        training: True for a call in training mode, of a module that makes other calls there than in evaluation mode.
            Without such keys a module's sizes are replaced in both modes.
    """
    key = f"site {place.site} {place.function} {position}"
    key += "" if dense is None else f" of {dense}"
    key += "" if rounds == 1 else f" round {place.round % rounds} of {rounds}"
    return f"{key} at {place.mark}" + (" in training" if training else "")


def is_call_key(key: str) -> bool:
    """Returns True for a key of sizes in calls: of `site_key`, or of an older plan."""
    return bool(_SITE.fullmatch(key) or _CALL.fullmatch(key))


def names_in_code(module: nn.Module) -> frozenset[str]:
    """Returns the names of the attributes that the methods of a module's class read, but for its construction."""
    return frozenset(
        name
        for base in type(module).__mro__
        if base.__module__.partition(".")[0] != "torch" or base is nn.Transformer  # others are cut with their sizes
        for key, method in vars(base).items()
        if key not in ("__init__", "extra_repr", "__repr__") and hasattr(method, "__code__")
        for name in method.__code__.co_names
    )


class _Resizing(TorchFunctionMode):
    """Replaces, while active, sizes in the calls that one forward makes.

    A site is known by its mark, or by its number where marks do not hold.

    Args:
        table: the sizes.
        code: the `code_mark` of the module's class.
        frame: the frame in which the forward is called; None while PyTorch's compiler follows it. It is let go of when
            the mode ends, since a frame that holds itself would keep its inputs in memory.
        level: in place of a frame, see `compiled_mark`.
    """

    def __init__(self, table: Table, code: str, frame: FrameType | None, level: int):
        super().__init__()
        self.table, self.code, self.frame, self.level = table, code, frame, level
        self.calls, self.made = 0, 0
        self.sites = CallSites()
        self.of_site: dict[Site, list[dict[int, list[Entry]]]] = {}
        self.rounds: dict[tuple[str, str], tuple[int, int]] = {}  # {(function, mark): (number, calls)}
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
                number = -self.made
            else:
                number = self.calls
                self.calls += 1
            changes = [(0, self.table[number])] if number in self.table else []
            if found.function in self.counts:
                changes += self._changes(found.function)
            for call, sizes in changes:
                found.sizes = [_replaced(n, sizes.get(i, ()), call) for i, n in enumerate(found.sizes)]
                args, kwargs = found.arguments(found.sizes)
        return func(*args, **kwargs)

    def _changes(self, function: str) -> list[tuple[int, dict[int, list[Entry]]]]:
        """Returns the changes to the sizes of a call, each with the number of the call among those of its site."""
        if self.frame is None:
            return self._compiled(function)
        site = self.sites.reached(function, call_stack(self.frame))
        if site not in self.of_site:
            code, mark = ("", "") if is_rewritten(site.stack) else (self.code, site_mark(site.stack))
            self.of_site[site] = self._of_site(function, site.number, code, mark)
        return [(site.calls - 1, sizes) for sizes in self.of_site[site]]

    def _compiled(self, function: str) -> list[tuple[int, dict[int, list[Entry]]]]:
        mark = compiled_mark(self.level) or f"?{self.counts[function]}"
        number, call = self.rounds.get((function, mark), (self.counts[function], 0))
        if not call:
            self.counts[function] += 1
        self.rounds[function, mark] = number, call + 1
        code, mark = ("", "") if mark.startswith("?") else (self.code, mark)
        return [(call, sizes) for sizes in self._of_site(function, number, code, mark)]

    def _of_site(self, function: str, number: int, code: str, mark: str) -> list[dict[int, list[Entry]]]:
        """Returns the changes of a site; `code` and `mark` are the halves of its mark, empty if unknown."""
        return [
            sizes
            for key, sizes in self.table.items()
            if isinstance(key, tuple) and key[0] == function
            if (key[2] == code + mark if code and key[2].startswith(code) else key[1] == number)
        ]


def _replaced(given: Any, entries: Sequence[Entry], call: int) -> Any:
    """Returns the size for one that the code gives in a call, by its number among those of its site."""
    for new, dense, first, rounds in entries if given != -1 else ():
        if call % rounds == first:
            if not dense:
                given = new
            elif not given % dense:
                given = given // dense * new
    return given


def _subclass(kind: type[nn.Module]) -> type[nn.Module]:
    """Returns a subclass of a module's class, under the same name, whose forward replaces sizes."""

    if kind in _RESIZED:
        return _RESIZED[kind]
    code = code_mark(kind)

    @functools.wraps(kind.forward)
    def forward(self, *args, **kwargs):
        training = self.training and "sizes_in_training" in vars(self)
        table = self.sizes_in_training if training else self.sizes_in_calls
        if torch.compiler.is_dynamo_compiling():
            mode = _Resizing(table, code, None, compiled_level())
        else:
            mode = _Resizing(table, code, sys._getframe(), 0)
        with mode:
            return kind.forward(self, *args, **kwargs)

    def reduce(self, protocol):
        return _restored, (kind,), *kind.__reduce_ex__(self, protocol)[2:]

    def setstate(self, state):
        kind.__setstate__(self, state)
        for table in (self.sizes_in_calls, vars(self).get("sizes_in_training", {})):
            for sizes in table.values():
                for position, entries in sizes.items():
                    if isinstance(entries, tuple):  # of an older version
                        sizes[position] = [(*entries, 0, 1)]

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    methods = {"forward": forward, "__reduce_ex__": reduce, "__setstate__": setstate}
    _RESIZED[kind] = type(kind.__name__, (kind,), {**names, **methods})
    return _RESIZED[kind]


def _restored(kind: type[nn.Module]) -> nn.Module:
    """Makes an empty module of a resized class, for `pickle` and `copy`."""
    resized = _subclass(kind)
    return resized.__new__(resized)


def is_resized(module: nn.Module) -> bool:
    """Returns True if sizes in a module's calls are replaced."""
    return "sizes_in_calls" in vars(module)


def is_size_key(key: str) -> bool:
    """Returns True for a key of `attribute_key` or `site_key`, or of an older plan."""
    return bool(_ATTRIBUTE.fullmatch(key)) or is_call_key(key)


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
        elif match := _SITE.fullmatch(key):
            number, function, position, dense, first, rounds, mark, training = match.groups()
            entry = size, int(dense or 0), int(first or 0), int(rounds or 1)
            _set_call(module, (function, int(number), mark), int(position), entry, bool(training))
        elif match := _CALL.fullmatch(key):
            number, function, position, dense, training = match.groups()
            call = -1 - int(number) if function in MAKERS else int(number)
            _set_call(module, call, int(position), (size, int(dense or 0), 0, 1), bool(training))


def _set_call(module: Any, call: Any, position: int, entry: Entry, training: bool) -> None:
    """Sets a size in calls; `call` is a key of `Table`."""
    if not is_resized(module):
        module.sizes_in_calls = {}
        module.__class__ = _subclass(type(module))
    table = vars(module).setdefault("sizes_in_training", {}) if training else module.sizes_in_calls
    entries = table.setdefault(call, {}).setdefault(position, [])
    size, dense, *rounds = entry
    for i, (known, first, *own) in enumerate(entries):
        if own == rounds and all(later[3] == own[1] for later in entries[i:]):
            # An earlier cut set it: what the code gives is a multiple of the size in the dense network.
            entries[i] = known * size // dense if dense and first else size, first, *own
            return
    entries.append(entry)


def _set_attribute(module: Any, attribute: str, index: int | None, size: int) -> None:
    if index is None:
        setattr(module, attribute, size)
    else:
        value = getattr(module, attribute)
        setattr(module, attribute, type(value)([*value[:index], size, *value[index + 1 :]]))
