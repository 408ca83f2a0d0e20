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
    found = _walk(model, set())
    return list(model.named_modules()) if found is None else found


def _walk(model: nn.Module, seen: set[nn.Module] | None) -> list[tuple[str, Any]] | None:
    """Lists modules; with None for `seen` by each of their names. Returns None if one has other parts than it seems."""
    usual = nn.Module.named_modules
    found: list[tuple[str, Any]] = []
    kinds: set[type] = set()
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        pair = waiting.pop()
        name, module = pair
        if seen is not None:
            if module in seen:
                continue
            seen.add(module)
        if type(module) not in kinds:
            if type(module).named_modules is not usual:
                return None
            kinds.add(type(module))
        found.append(pair)
        children = module._modules
        if children:  # most modules have none
            prefix = f"{name}." if name else ""
            for key, child in reversed(children.items()):
                if child is not None:
                    waiting.append((prefix + key, child))
    return found


def walk_modules(model: nn.Module) -> list[nn.Module]:
    """Returns what `model.modules()` yields: each module once."""
    return [module for _, module in walk(model)]


def walk_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Returns what `model.named_parameters()` yields: the name of each parameter and the parameter, each once."""
    if type(model).named_parameters is not nn.Module.named_parameters:
        return list(model.named_parameters())
    return _members([(name, module._parameters) for name, module in walk(model)])


def walk_buffers(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Returns what `model.named_buffers()` yields: the name of each buffer and the buffer, each once."""
    if type(model).named_buffers is not nn.Module.named_buffers:
        return list(model.named_buffers())
    return _members([(name, module._buffers) for name, module in walk(model)])


def walk_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the parameters and then the buffers of a model by name."""
    parameters, buffers = walk_state(model)
    return dict([*parameters, *buffers])


def walk_state(model: nn.Module) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, torch.Tensor]]]:
    """Returns what `walk_parameters` and `walk_buffers` return, in one walk."""
    if not _lists_usually(model):
        return walk_parameters(model), walk_buffers(model)
    modules = walk(model)
    parameters = _members([(name, module._parameters) for name, module in modules])
    return parameters, _members([(name, module._buffers) for name, module in modules])


def walk_names(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the parameters and then the buffers of a model by each of their names: shared ones have several."""
    modules = _walk(model, None) if _lists_usually(model) else None
    if modules is None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}
    tables = [*((n, m._parameters) for n, m in modules), *((n, m._buffers) for n, m in modules)]
    filled = [(f"{name}." if name else "", table) for name, table in tables if table]
    return {prefix + key: t for prefix, table in filled for key, t in table.items() if t is not None}


def _lists_usually(model: nn.Module) -> bool:
    """True if a model's class lists its parameters and buffers as `nn.Module` does."""
    usual = nn.Module
    return type(model).named_parameters is usual.named_parameters and type(model).named_buffers is usual.named_buffers


def _members(tables: Iterable[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, Any]]:
    known: dict[int, tuple[str, Any]] = {}
    for name, table in tables:
        if not table:
            continue
        for key, tensor in table.items():
            if tensor is not None and id(tensor) not in known:
                known[id(tensor)] = (f"{name}.{key}" if name else key, tensor)
    return list(known.values())
