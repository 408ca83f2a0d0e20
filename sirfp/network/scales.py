"""Tells whether a module's code may compute a scale from a width that a cut changes."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator, Mapping
from functools import cached_property
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

from .sizes import is_size_key

NAMES = frozenset(("sqrt", "rsqrt", "pow", "div", "true_divide", "reciprocal"))


def may_scale(module: nn.Module, widths: Mapping[str, object]) -> bool:
    """Returns True if a cut sets sizes in a module whose code takes a power, a root or a quotient.

    Args:
        module: the module.
        widths: {key: size} of a plan (`sirfp.network.sizes`).
    """
    return any(map(is_size_key, widths)) and _divides(type(module))


_KNOWN: dict[type, bool] = {}


def _divides(kind: type[nn.Module]) -> bool:
    if kind not in _KNOWN:
        _KNOWN[kind] = any(
            not NAMES.isdisjoint(code.co_names) or any(map(_is_division, dis.get_instructions(code)))
            for code in _code(kind)
        )
    return _KNOWN[kind]


def _is_division(instruction: dis.Instruction) -> bool:
    if instruction.opname == "BINARY_OP":  # since Python 3.11
        return instruction.argrepr.rstrip("=") in ("**", "/")
    return instruction.opname.endswith(("_POWER", "_TRUE_DIVIDE"))


def _code(kind: type[nn.Module]) -> Iterator[CodeType]:
    """Yields the code of a class's methods and properties but for its construction, and of functions they name."""
    for base in kind.__mro__:
        if _is_torch(base.__module__):
            continue
        for key, value in vars(base).items():
            method = _function(value)
            if key in ("__init__", "extra_repr", "__repr__") or method is None:
                continue
            for code in _nested(method.__code__):
                yield code
                for function in _named(code, method.__globals__):
                    yield from _nested(function.__code__)


def _function(value: Any) -> FunctionType | None:
    """Returns the function in a method, property, static method or decorated method; None if there is none."""
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    elif isinstance(value, cached_property):
        value = value.func
    value = inspect.unwrap(value) if callable(value) else None
    return value if isinstance(value, FunctionType) else None


def _nested(code: CodeType) -> Iterator[CodeType]:
    """Yields a function's code and that of the comprehensions and functions inside it."""
    yield code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _nested(part)


def _named(code: CodeType, known: Mapping[str, Any]) -> Iterator[FunctionType]:
    """Yields the functions that code names, alone or behind the name of their file, as in `ops.attend(q, k)`."""
    values = [known.get(name) for name in code.co_names]
    files = [value for value in values if isinstance(value, ModuleType) and not _is_torch(value.__name__)]
    values += [vars(file).get(name) for file in files for name in code.co_names]
    yield from filter(None, map(_function, values))


def _is_torch(name: str) -> bool:
    return name.partition(".")[0] == "torch"
