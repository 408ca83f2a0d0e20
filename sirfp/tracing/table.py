"""The table of rules: for each ATen or torchvision operation, how it passes channel labels from inputs to outputs.

A rule is a function `(trace, func, args, kwargs, out)`. It ties or freezes labels of the inputs, sets the labels of the
outputs (`trace.set`), and counts FLOPs (`trace.count`). An operation that PyTorch tags as pointwise needs no entry. The
modules of rules fill the table; `sirfp.tracing` imports them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .registry import Registry

RULES: Registry[Callable] = Registry("rule")
HIGHER_ORDER: dict[str, Callable] = {}
"""Rules for operations that run functions and have no schema, such as `flex_attention`."""
STATISTICS: set[str] = set()
"""Operations that compute a statistic over a whole dimension."""
COUNTED: set[str] = set()
"""Operations that count in FLOPs even if no input has labels."""


def rule(*names: str, statistic: bool = False, counted: bool | Iterable[str] = False) -> Callable[[Callable], Callable]:
    """Registers a function as the rule for operations, e.g. `@rule("cat")`; a name without prefix is a name of ATen.

    Args:
        names: the operations.
        statistic: True if the operations compute a statistic over a whole dimension (`STATISTICS`).
        counted: the operations that count in FLOPs even without labels (`COUNTED`): True for all of `names`, or a list.

    Raises:
        ValueError: an operation already has a rule.
    """
    full = [_full(name) for name in names]

    def register(function: Callable) -> Callable:
        for name in full:
            RULES.add(name, function)
        if statistic:
            STATISTICS.update(full)
        if counted:
            COUNTED.update(full if counted is True else map(_full, counted))
        return function

    return register


def _full(name: str) -> str:
    return name if "::" in name else f"aten::{name}"
