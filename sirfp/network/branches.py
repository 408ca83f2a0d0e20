"""Branches of a network that run only in training, such as auxiliary heads.

Such a module has an attribute `training_only = True`. Its own channels are never cut. Its input channels are removed if
the layers before it lose them. Its parameters are not counted and not written to exported files.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from .walk import walk


def training_only(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of the modules that run only in training."""
    return tuple(name for name, module in walk(model) if getattr(module, "training_only", False))


def within(name: str, branches: Iterable[str]) -> bool:
    """Returns True if a tensor of this name belongs to one of these modules."""
    return any(name.startswith(f"{branch}.") for branch in branches)
