"""Hashes of the operations of a pass, by which two passes are known to run the same code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

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


def is_higher_order(func: Any) -> bool:
    """True for an operation that runs functions, such as `flex_attention`: it has no schema."""
    return isinstance(func, HigherOrderOperator)


def fingerprint(code: int, name: str, leaves: Iterable[Any]) -> int:
    """Returns a hash of the operations so far.

    Args:
        code: the hash of the earlier operations.
        name: name of the operation.
        leaves: its arguments; of tensors the shape counts.
    """
    described = (
        tuple(value.shape)
        if isinstance(value, torch.Tensor)
        else value
        if isinstance(value, (bool, int, float, str))
        else None
        for value in leaves
    )
    return hash((code, name, *described))
