"""Copies a model and its inputs to another device."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from ..errors import InputError, first_line
from .untouched import copied_inputs, copied_model
from .walk import walk_modules, walk_tensors


def check_available(device: str | torch.device | None, called: str) -> None:
    """Raises InputError if nothing can run on a device; the message calls the setting `called`. None: any will do."""
    if device is None:
        return
    try:
        made = torch.empty(0, device=device)
    except Exception as error:  # PyTorch raises several kinds
        raise InputError(f"{called} {str(device)!r}: there is no such device here: {first_line(error)}") from error
    if made.is_meta:
        raise InputError(f"{called} {str(device)!r}: nothing is computed on this device")


def on_device(model: nn.Module, inputs: Any, device: str | torch.device) -> tuple[nn.Module, Any]:
    """Copies a model and its inputs to a device.

    Tensors that modules hold as plain attributes go with the copy, also in lists, tuples and dictionaries, and so do
    objects in the inputs that have a method `to`, such as Detectron2's `Instances`. A tensor that occurs several times
    stays one tensor, which is cut once. Where a module holds the name of the model's device, the copy holds the other.

    Args:
        model: the model; it is not changed.
        inputs: its inputs; they are not changed.
        device: where the copies are.

    Raises:
        InputError: the model cannot be copied.
    """
    try:
        copied, there = copied_model(model), torch.empty(0, device=device).device
        modules = [m for m in walk_modules(copied) if not isinstance(m, torch.jit.ScriptModule)]
        tables: list[dict[str, Any]] = [t for m in modules for t in (m._parameters, m._buffers, vars(m))]
        before = [{name: value for name, value in t.items() if name not in _OF_MODULES} for t in tables]
        move = _Move(there, {t.device for t in walk_tensors(copied).values()})
        copied.to(there)
        for table, old in zip(tables, before, strict=True):
            for name, value in old.items():
                now = table.get(name)
                if now is value or (isinstance(now, torch.Tensor) and isinstance(value, torch.Tensor)):
                    table[name] = move(value, now)
        return copied, _Move(there, objects=True)(copied_inputs(inputs))
    except Exception as error:  # the model's own code may raise anything
        raise InputError(f"the model cannot be copied to the device {device}: {first_line(error)}") from error


_OF_MODULES = frozenset(vars(nn.Module()))
"""The attributes of every module, such as the tables of its parameters, buffers, parts and hooks."""


class _Move:
    """Moves values to a device, each tensor once.

    Args:
        device: the device.
        former: the devices whose names are replaced by its own.
        objects: True to move all objects that have a method `to`, not only modules.
    """

    def __init__(self, device: torch.device, former: Collection[torch.device] = (), *, objects: bool = False):
        self.device, self.former, self.objects = device, former, objects
        self._done: dict[int, tuple[Any, Any]] = {}  # {identity: (value, which must live as long; moved value)}

    def __call__(self, value: Any, now: Any = None) -> Any:
        """Returns a value on the device. Lists and dictionaries are changed in place.

        Args:
            value: any value.
            now: the value after `nn.Module.to`, if this has moved it.
        """
        if id(value) not in self._done:
            self._done[id(value)] = value, value  # containers may hold themselves
            self._done[id(value)] = value, self._moved(value, now)
        return self._done[id(value)][1]

    def _moved(self, value: Any, now: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value if now is None else now)
        if isinstance(value, torch.device):
            return self.device if value in self.former else value
        if isinstance(value, nn.Module) or (self.objects and hasattr(value, "to") and not isinstance(value, type)):
            return value.to(self.device)
        if isinstance(value, (dict, UserDict)):
            for key, each in value.items():
                value[key] = self(each)
        elif type(value) is list:
            value[:] = map(self, value)
        elif type(value) is tuple:
            return tuple(map(self, value))
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self, value))
        return value

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device == self.device:
            return tensor
        moved = tensor.detach().to(self.device)
        return nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
