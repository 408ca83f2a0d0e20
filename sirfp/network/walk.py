"""Lists the modules, parameters and buffers of a model as PyTorch's methods do, in a fraction of their time.

`nn.Module.named_modules` is a generator that passes each module through one generator for each level above it. To plan
a pruning and to try it on copies takes dozens of passes over all modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn


def walk(model: nn.Module) -> list[tuple[str, Any]]:
    """Returns what `model.named_modules()` yields: the name of each module and the module, each module once."""
    usual = nn.Module.named_modules
    found: list[tuple[str, Any]] = []
    seen: set[nn.Module] = set()
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if module in seen:
            continue
        if type(module).named_modules is not usual:  # it has other parts than it seems
            return list(model.named_modules())
        seen.add(module)
        found.append((name, module))
        children = module._modules
        if children:  # most modules have none
            prefix = f"{name}." if name else ""
            waiting += [(prefix + key, child) for key, child in reversed(children.items()) if child is not None]
    return found


def walk_modules(model: nn.Module) -> list[nn.Module]:
    """Returns what `model.modules()` yields: each module once."""
    return [module for _, module in walk(model)]


def walk_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Returns what `model.named_parameters()` yields: the name of each parameter and the parameter, each once."""
    if type(model).named_parameters is not nn.Module.named_parameters:
        return list(model.named_parameters())
    return _members((name, module._parameters) for name, module in walk(model))


def walk_buffers(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Returns what `model.named_buffers()` yields: the name of each buffer and the buffer, each once."""
    if type(model).named_buffers is not nn.Module.named_buffers:
        return list(model.named_buffers())
    return _members((name, module._buffers) for name, module in walk(model))


def walk_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the parameters and then the buffers of a model by name."""
    return {**dict(walk_parameters(model)), **dict(walk_buffers(model))}


def _members(tables: Iterable[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, Any]]:
    known: dict[int, tuple[str, Any]] = {}
    for name, table in tables:
        for key, tensor in table.items():
            if tensor is not None and id(tensor) not in known:
                known[id(tensor)] = (f"{name}.{key}" if name else key, tensor)
    return list(known.values())
