"""Tensors that a model keeps as plain attributes of its modules, neither as parameters nor as buffers.

Code such as `self.positions = sines(n, width)` in a constructor makes a constant of the model's width. Its channels go
with those that it is added to. A cut model holds it as a buffer that is not in the state dict.
"""

from __future__ import annotations

import dis
import types
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from .walk import walk, walk_tensors


def plain_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the floating-point tensors that are plain attributes of modules, by name (`encoder.positions`).

    Left out are tensors that other code than constructors sets, such as what a forward keeps for its next call: a newly
    built model may lack them, and would make them anew in another width. So are those of layers with hooks before their
    forward, such as the weight that weight norm computes.
    """
    modules = walk(model)
    found = {
        f"{name}.{key}" if name else key: value
        for name, module in modules
        for key, value in vars(module).items()
        if type(value) is torch.Tensor and _is_constant(module, key, value)
    }
    if not found:
        return {}
    known = {id(tensor) for tensor in walk_tensors(model).values()}
    twice: set[int] = set()
    for value in found.values():
        (twice if id(value) in known else known).add(id(value))
    kinds: set[Any] = {type(module) for _, module in modules}
    return {
        name: tensor
        for name, tensor in found.items()
        if id(tensor) not in twice and not any(name.rpartition(".")[2] in _set_later(kind) for kind in kinds)
    }


def register_plain(model: nn.Module, names: Collection[str]) -> None:
    """Makes buffers, which are not in the state dict, of plain tensors of a model, in place.

    Args:
        model: the model.
        names: names of tensors; those that are no plain tensors of the model are passed over.
    """
    for name, tensor in plain_tensors(model).items():
        if name in names:
            owner, _, key = name.rpartition(".")
            module = model.get_submodule(owner)
            delattr(module, key)
            module.register_buffer(key, tensor, persistent=False)


def _is_constant(module: Any, key: str, tensor: torch.Tensor) -> bool:
    computed = module._forward_pre_hooks or not tensor.is_leaf or tensor.requires_grad or hasattr(type(module), key)
    whole = tensor.is_floating_point() and tensor.layout == torch.strided and tensor.numel() > 1
    return whole and not computed and not isinstance(module, torch.jit.ScriptModule)


@lru_cache(maxsize=4096)
def _set_later(kind: type) -> frozenset[str]:
    """Returns the names of the attributes that methods of a class other than its constructor set, on any object."""
    found: set[str] = set()
    for base in kind.__mro__:
        if base is nn.Module or base is object:
            continue
        for name, member in vars(base).items():
            if name not in ("__init__", "_apply"):  # `_apply` moves a tensor to another device or type
                found.update(_stored(_code(member)))
    return frozenset(found)


def _code(member: Any) -> types.CodeType | None:
    """Returns the code of a method, also of a decorated one, a property or a static method; None of anything else."""
    member = getattr(member, "fget", None) or getattr(member, "__func__", member)
    while hasattr(member, "__wrapped__"):
        member = member.__wrapped__
    code = getattr(member, "__code__", None)
    return code if isinstance(code, types.CodeType) else None


def _stored(code: types.CodeType | None) -> Iterator[str]:
    """Yields the names of the attributes that code sets, and code inside it."""
    if code is None:
        return
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_ATTR", "DELETE_ATTR"):
            yield str(step.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _stored(constant)
