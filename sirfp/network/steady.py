"""Tells norms, dropouts and stochastic depth, whose training mode need not run when channels are followed or cut."""

from __future__ import annotations

from typing import Any

from torch import nn

_KINDS = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
_LIBRARIES = ("torch.", "timm.", "torchvision.", "detectron2.", f"{__name__.partition('.')[0]}.")
"""Beginnings of the names of Python's modules whose norms and dropouts keep the place and scale of every channel."""
_STOCHASTIC_DEPTH = {("torchvision.ops.stochastic_depth", "StochasticDepth"), ("timm.layers.drop", "DropPath")}
"""(module of Python, class), so that neither library has to be imported."""


def is_steady(module: nn.Module) -> bool:
    """True for norms, dropouts and stochastic depth whose training mode keeps the place and scale of every channel.

    These are PyTorch's norms and dropouts, their subclasses in timm, torchvision and Detectron2, and other subclasses
    that inherit the forward. Code of one's own may do anything in training, such as divide by the number of channels.
    """
    if isinstance(module, _KINDS):
        return "forward" not in vars(module) and _inherits_forward(type(module))
    return drops_paths(module)


_INHERITING: dict[type, bool] = {}


def _inherits_forward(kind: type[nn.Module]) -> bool:
    """True if only classes of the known libraries define what runs in a forward pass, also as a property."""
    if kind not in _INHERITING:
        others = [base for base in kind.__mro__ if base is not object and not base.__module__.startswith(_LIBRARIES)]
        _INHERITING[kind] = not any(_runs(name, value) for base in others for name, value in vars(base).items())
    return _INHERITING[kind]


def _runs(name: str, value: Any) -> bool:
    return name in ("forward", "__call__", "_check_input_dim", "__getattr__") or isinstance(value, property)


def drops_paths(module: nn.Module) -> bool:
    """True for torchvision's and timm's stochastic depth, which in training scales whole samples by random numbers."""
    kind = type(module)
    return (kind.__module__, kind.__qualname__) in _STOCHASTIC_DEPTH


def is_held(module: nn.Module) -> bool:
    """True for norms, dropouts and modules with a float attribute `dropout`, of any library."""
    kind = type(module).__name__
    dropout = isinstance(getattr(module, "dropout", None), float)
    return isinstance(module, _KINDS) or drops_paths(module) or "Norm" in kind or "Drop" in kind or dropout
