"""The table of rules: for each ATen or torchvision operation, what becomes of channel labels.

A rule is `rule(trace, func, args, kwargs, out)`: it ties or freezes labels of the inputs, gives the
outputs theirs (`trace.set`), and logs what counts in FLOPs (`trace.count`). An operation that PyTorch
tags as pointwise needs no entry.
"""

from __future__ import annotations

from collections.abc import Callable

RULES: dict[str, Callable] = {}


def rule(*names: str) -> Callable[[Callable], Callable]:
    """Registers a function as the rule for operations, e.g. `@rule("aten::cat")`; no prefix means aten."""

    def register(function: Callable) -> Callable:
        for name in names:
            name = name if "::" in name else f"aten::{name}"
            if name in RULES:
                raise ValueError(f"{name} has a rule already: {RULES[name].__name__}")
            RULES[name] = function
        return function

    return register


from . import deformable, parts, pointwise, products, reductions, shapes  # noqa: E402,F401  (they fill the table)
