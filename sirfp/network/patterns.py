"""Finds the tensors of a network that a name or a pattern means."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

import torch
from torch import nn


def matching(model: nn.Module, state: Mapping[str, torch.Tensor], patterns: Iterable[str]) -> list[str]:
    """Returns the names of the tensors that patterns match, sorted.

    Args:
        model: the network.
        state: its tensors by name, shared ones under their first name; names in the result are these.
        patterns: names of modules or tensors, or shell patterns of them such as `layer3.*` or `*.conv1`. A module means
            all tensors in it. A tensor with several names is matched by each of them.
    """
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    every += state.items()  # constants that are neither parameters nor buffers
    first = {id(tensor): name for name, tensor in state.items()}
    places = [(_holders(name), first[id(tensor)]) for name, tensor in every if id(tensor) in first]
    found: set[str] = set()
    for pattern in patterns:
        found |= {own for names, own in places if pattern in names or _any(names, pattern)}
    return sorted(found)


def modules_with_tensors(model: nn.Module) -> set[str]:
    """Returns the names of the modules that parameters are in, under all their names, for "did you mean"."""
    return {module for name, _ in model.named_parameters(remove_duplicate=False) for module in _holders(name)[:-1]}


def _holders(name: str) -> list[str]:
    """Returns the name of a tensor and the names of all modules that it is in."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _any(names: Iterable[str], pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)
