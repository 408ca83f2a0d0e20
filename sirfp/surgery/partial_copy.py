"""Copies a model for a trial cut: only the modules that the cut can change are new, the others are shared."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from ..network.module_copies import copied_modules
from ..network.strided_pointwise import is_affected

_OWN = frozenset(nn.Module().__dict__) - {"training"}
"""The tables of parameters, buffers, submodules and hooks that every module has."""
_PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def partial_copy(model: nn.Module, tensors: Collection[str], modules: Collection[str] | None = None) -> nn.Module:
    """Copies a model that is to be cut.

    Copying the modules of a deep network takes as long as running its last layers, and a cut of one group leaves most
    of them alone. Layers are shared if they hold no changed tensor, and nothing but tensors, plain values and
    parameterless layers: such a layer computes the same in the copy as in the model.

    Args:
        model: the model. It must not change while the copy is in use.
        tensors: the names of the tensors that are about to change. All others are shared.
        modules: the names of the modules whose tensors or attributes are about to change; other layers are shared, so
            that the mode of the copy must not be changed. None to copy all modules.

    Returns:
        The copy.
    """
    state = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    changed = {id(tensor) for name, tensor in state if name in tensors}
    shared: dict[int, Any] = {id(tensor): tensor for _, tensor in state if id(tensor) not in changed}
    if modules is not None:
        named = list(model.named_modules(remove_duplicate=False))
        altered = {id(module) for name, module in named if name in modules}
        layers = [module for name, module in named if name and altered.isdisjoint(map(id, module.modules()))]
        shared |= {id(layer): layer for layer in layers if _is_simple(layer, shared)}
    return copied_modules(model, shared)


def _is_simple(module: nn.Module, shared: Mapping[int, Any]) -> bool:
    """True for a layer that can be shared.

    Args:
        module: the layer.
        shared: {id: tensor} of those that do not change.
    """
    for child in module.children():
        if len(list(child.children())) or len(list(child.parameters())) or len(list(child.buffers())):
            return False
        if not _is_simple(child, shared):
            return False
    own = module.__dict__
    tensors = [*own["_parameters"].values(), *own["_buffers"].values()]
    hooks = any(value for name, value in own.items() if name.endswith("_hooks") and name in _OWN)
    rest = (value for name, value in own.items() if name not in _OWN)
    return (
        not hooks
        and all(tensor is None or id(tensor) in shared for tensor in tensors)
        and all(map(_is_plain, rest))
        and not is_affected(module)  # the cut would add hooks to it
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
