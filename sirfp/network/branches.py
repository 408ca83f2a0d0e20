"""Branches of a network that run only in training, such as auxiliary heads.

A module says so of itself by an attribute `training_only = True`. Its own channels stay, its inputs are cut along with
what feeds it, and neither the count of parameters nor exported files hold it.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def training_only(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that run only in training."""
    return tuple(name for name, module in model.named_modules() if getattr(module, "training_only", False))


def within(name: str, branches: Iterable[str]) -> bool:
    """Whether a tensor's name lies below one of these modules."""
    return any(name.startswith(f"{branch}.") for branch in branches)
