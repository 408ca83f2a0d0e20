"""Reads the output of a module before its activation, also if the module applies the activation in its own forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class _Watched:
    """An activation that first passes its input to `see`."""

    def __init__(self, activation: Callable, see: Callable[[torch.Tensor], None]):
        self.activation, self.see = activation, see

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.see(x)
        return self.activation(x)


class _Restore:
    def __init__(self, module: nn.Module, activation: Callable):
        self.module, self.activation = module, activation

    def remove(self) -> None:
        _set_activation(self.module, self.activation)


def watch(module: nn.Module, see: Callable[[torch.Tensor], None]):
    """Calls `see` with each output of a module, before the activation is applied.

    timm's norms with an activation (such as `BatchNormAct2d`) and Detectron2's `Conv2d` apply the activation in their
    own forward. A forward hook on the module would get the output after the activation.

    Args:
        module: the module.
        see: a function, called with the output, or with the first tensor if the module returns several.

    Returns:
        A handle with `remove()`.
    """
    drop = getattr(module, "drop", None)
    if isinstance(drop, nn.Module) and isinstance(getattr(module, "act", None), nn.Module):
        return drop.register_forward_pre_hook(lambda _, inputs: see(inputs[0]))
    activation = getattr(module, "activation", None)
    if isinstance(module, nn.modules.conv._ConvNd) and callable(activation) and getattr(module, "norm", None) is None:
        _set_activation(module, _Watched(activation, see))
        return _Restore(module, activation)

    def hook(_, inputs, output):
        see(output[0] if isinstance(output, (tuple, list)) else output)

    return module.register_forward_hook(hook)


def _set_activation(module: Any, activation: Callable) -> None:
    module._modules.pop("activation", None)
    module.__dict__.pop("activation", None)
    module.activation = activation
