"""Descriptions of the operations of a pass, by which two passes are known to run the same code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch._ops import HigherOrderOperator


def arguments(args: tuple, kwargs: Mapping[str, Any]) -> list[Any]:
    """Returns the arguments of an ATen operation, those in lists one by one; they nest no deeper."""
    leaves: list[Any] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, (list, tuple)):
            leaves.extend(value)
        else:
            leaves.append(value)
    return leaves


class Operation(NamedTuple):
    """What an ATen operation declares.

    Attributes:
        name: its name, as in "aten::add".
        writes: True if it writes into its first argument.
        pointwise: True if PyTorch tags it as pointwise.
        arguments: the names of its arguments.
    """

    name: str
    writes: bool
    pointwise: bool
    arguments: tuple[str, ...]


@lru_cache(maxsize=4096)
def operation(func: Any) -> Operation | None:
    """Returns what an operation declares; None if it runs functions, such as `flex_attention`: it has no schema."""
    if isinstance(func, HigherOrderOperator):
        return None
    schema = func._schema
    names = tuple(argument.name for argument in schema.arguments)
    return Operation(schema.name, schema.is_mutable, torch.Tag.pointwise in func.tags, names)


def by_name(func: Any, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of an ATen operation by name; trailing ones that have defaults may be absent."""
    known = operation(func)
    return dict(zip(known.arguments if known else (), args)) | dict(kwargs)  # noqa: B905


_VALUES = frozenset([bool, int, float, str])


def described(name: str, leaves: Iterable[Any]) -> tuple:
    """Describes an operation that runs: its name, and of each argument the value, or the shape of a tensor.

    Args:
        name: name of the operation.
        leaves: its arguments. Of a number that the code makes a tensor of, the value counts.
    """
    described: list[Any] = [name]
    for value in leaves:
        if type(value) in _VALUES:
            described.append(value)
        elif isinstance(value, torch.Tensor):
            number = name == "aten::lift_fresh" and not value.dim() and not value.is_meta
            described.append(value.item() if number else value.shape)
        else:
            described.append(value if isinstance(value, (int, float, str)) else None)
    return tuple(described)
