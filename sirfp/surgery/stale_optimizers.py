"""Notices optimizers whose steps change no weight of the model: they step other parameters, or replaced ones."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..errors import InputError

REPLACED = "_sirfp_replaced"
"""Attribute of a parameter that a cut has replaced by a smaller one."""

logger = logging.getLogger(__name__)
_checked: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
"""Optimizers that were looked at since the last cut."""
_watching: list[Any] = []
"""The handle of the hook of all optimizers; empty before the first cut."""


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Raises InputError if an optimizer is none, or trains other parameters than those of the model.

    Args:
        model: the plain model that will be cut.
        optimizer: the optimizer that will be cut with it, or None.
    """
    if optimizer is None:
        return
    if not hasattr(optimizer, "param_groups"):
        raise InputError(f"optimizer must be an optimizer of PyTorch, got {type(optimizer).__name__}")
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = {id(parameter) for parameter in model.parameters()}
    if trained and not any(id(parameter) in own for parameter in trained):
        raise InputError(
            f"the optimizer ({type(optimizer).__name__}) trains no parameter of the model: make it of the parameters "
            "of the model that is pruned"
        )


def mark_replaced(parameter: nn.Parameter) -> None:
    """Notes that a cut has replaced a parameter, and begins to watch the steps of optimizers."""
    setattr(parameter, REPLACED, True)
    _checked.clear()
    if not _watching:
        _watching.append(register_optimizer_step_pre_hook(_check))


def _check(optimizer: torch.optim.Optimizer, *given: Any) -> None:
    """Warns of an optimizer that steps a replaced parameter, at its first step after a cut."""
    if optimizer in _checked:
        return
    _checked.add(optimizer)
    stale = sum(hasattr(p, REPLACED) for group in optimizer.param_groups for p in group["params"])
    if stale:
        logger.warning(
            "%s steps %d parameters that the model no longer has since it was cut, so that its layers do not learn: "
            "make the optimizer after the cut, or give it to the cut as optimizer=",
            type(optimizer).__name__, stale,
        )  # fmt: skip
