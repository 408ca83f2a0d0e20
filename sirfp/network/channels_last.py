"""Stores the weights of a network channels-last, in which most networks run faster on processors."""

from __future__ import annotations

from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .forward import call, inference
from .strided_pointwise import guard


def use_channels_last(model: nn.Module) -> nn.Module:
    """Stores a model's convolution weights channels-last, in place, so that its feature maps are channels-last too.

    Also protects layers from a bug of oneDNN with channels-last maps (`sirfp.network.strided_pointwise`).
    """
    _store(model, torch.channels_last)
    return guard(model)


def use_channels_last_if_possible(model: nn.Module, example_inputs: Any) -> nn.Module:
    """Does as `use_channels_last`, but leaves a model as it is whose code needs contiguous feature maps.

    Such code calls `view` on feature maps, e.g. `x.view(len(x), -1)` before a linear layer.

    Args:
        model: a model that runs on the example inputs.
        example_inputs: its inputs.
    """
    use_channels_last(model)
    with suppress(Exception), inference(model):  # any class: the user's code raises it
        call(model, example_inputs)
        return model
    _store(model, torch.contiguous_format)
    return model


def _store(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Stores all tensors of four dimensions in a format; `Module.to` fails if there are some of five."""
    for tensor in chain(model.parameters(), model.buffers()):
        if not is_lazy(tensor) and tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=memory_format)
