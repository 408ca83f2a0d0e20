"""Where a module's output is seen before its activation, for modules that do both in one forward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class _Watched:
    """An activation that first shows what it is given."""

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
    """Calls `see` with what a module computes, before its activation.

    timm's norms with an activation (`BatchNormAct2d` and its kin) and Detectron2's `Conv2d` apply it in their
    own forward, so a hook on the module would see too much.

    Returns:
        A handle with `remove()`.
    """
    if isinstance(getattr(module, "drop", None), nn.Module) and isinstance(getattr(module, "act", None), nn.Module):
        return module.drop.register_forward_pre_hook(lambda _, inputs: see(inputs[0]))
    activation = getattr(module, "activation", None)
    if isinstance(module, nn.modules.conv._ConvNd) and callable(activation) and getattr(module, "norm", None) is None:
        _set_activation(module, _Watched(activation, see))
        return _Restore(module, activation)

    def hook(_, inputs, output):
        see(output[0] if isinstance(output, (tuple, list)) else output)

    return module.register_forward_hook(hook)


def _set_activation(module: nn.Module, activation: Callable) -> None:
    module._modules.pop("activation", None)
    module.__dict__.pop("activation", None)
    module.activation = activation
