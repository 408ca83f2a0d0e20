"""Copies a model and its inputs to another device."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from ..errors import InputError, first_line
from .untouched import copied_inputs, copied_model
from .walk import walk_modules


def check_available(device: str | torch.device | None, called: str) -> None:
    """Raises InputError if there is no such device on this machine; the message calls the setting `called`."""
    if device is None or device == "":
        return
    try:
        torch.empty(0, device=device)
    except Exception as error:  # PyTorch raises several kinds
        raise InputError(f"{called} {str(device)!r}: there is no such device here: {first_line(error)}") from error


def on_device(model: nn.Module, inputs: Any, device: str | torch.device) -> tuple[nn.Module, Any]:
    """Copies a model and its inputs to a device.

    Tensors that modules hold as plain attributes go with the copy, and so do objects in the inputs that have a method
    `to`, such as Detectron2's `Instances`.

    Args:
        model: the model; it is not changed.
        inputs: its inputs; they are not changed.
        device: where the copies are.

    Raises:
        InputError: the model cannot be copied, or there is no such device.
    """
    check_available(device, "device")
    try:
        copied = copied_model(model).to(device)
        for module in walk_modules(copied):
            for key, value in vars(module).items():
                if type(value) is torch.Tensor:
                    vars(module)[key] = value.to(device)
        return copied, tree_map(partial(_moved, device=device), copied_inputs(inputs))
    except Exception as error:  # the model's own code may raise anything
        raise InputError(f"the model cannot be copied to the device {device}: {first_line(error)}") from error


def _moved(value: Any, device: str | torch.device) -> Any:
    return value.to(device) if hasattr(value, "to") else value
