"""Copies the modules of a model as `copy.deepcopy` does, in a fraction of its time.

`copy.deepcopy` looks at every value of every module by a dozen calls of Python. Most values are numbers, texts, and
tables of hooks without entries, whose copies are known beforehand.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import nn

from .walk import walk_modules

_ATOMS = frozenset([int, float, bool, complex, str, bytes, type(None), type, FunctionType, BuiltinFunctionType])
"""Types whose values are their own copies."""
_TABLES = frozenset([dict, OrderedDict, set])


def copied_modules(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copies a model.

    Args:
        model: the model.
        memo: the copies made so far by the identity of their originals, as in `copy.deepcopy`; it is filled.

    Raises:
        Exception: of any class, if `copy.deepcopy` cannot copy a value.
    """
    made = []
    ordinary: dict[type, bool] = {}
    for module in walk_modules(model):
        if type(module) not in ordinary:
            ordinary[type(module)] = _is_ordinary(type(module))
        if id(module) not in memo and ordinary[type(module)]:
            memo[id(module)] = new = type(module).__new__(type(module))
            made.append((module, new))
    for module, new in reversed(made):  # the parts before the whole
        new.__setstate__(_copied_table(module.__getstate__(), {}, memo))
    return copy.deepcopy(model, memo)


def _is_ordinary(kind: type[nn.Module]) -> bool:
    """True for a class whose objects `copy.deepcopy` copies by what `nn.Module.__getstate__` returns."""
    methods = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__", "__new__")
    bases = kind.__mro__[:-1]  # all but `object`
    own = any(name in vars(base) for base in bases for name in methods)
    slots = any(vars(base).get("__slots__") for base in bases)
    return not own and not slots and kind.__getstate__ is nn.Module.__getstate__


def _copied_table(table: dict[str, Any], new: dict[str, Any], memo: dict[int, Any]) -> dict[str, Any]:
    """Puts copies of the values of a table into a new one, and returns it."""
    for name, value in table.items():
        kind = type(value)
        if kind in _ATOMS:
            new[name] = value
        elif id(value) in memo:
            new[name] = memo[id(value)]
        elif kind in _TABLES and not value:  # most are hooks
            new[name] = memo[id(value)] = kind()
        else:
            new[name] = _copied(value, kind, memo)
    return new


def _copied(value: Any, kind: type, memo: dict[int, Any]) -> Any:
    if kind is tuple and all(type(part) in _ATOMS for part in value):
        return value
    if kind in (dict, OrderedDict) and all(type(key) is str for key in value):
        table = memo[id(value)] = kind()
        return _copied_table(value, table, memo)
    return copy.deepcopy(value, memo)
