"""Tells whether a module's code may compute a scale from a width that a cut changes."""

from __future__ import annotations

import dis
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType

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
    """Yields the code of a class's methods but for its construction, and of the functions that these name."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] == "torch":
            continue
        for key, method in vars(base).items():
            if key in ("__init__", "extra_repr", "__repr__") or not isinstance(method, FunctionType):
                continue
            yield method.__code__
            for name in method.__code__.co_names:
                function = method.__globals__.get(name)
                if isinstance(function, FunctionType):
                    yield function.__code__
