"""A model with its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class Subject:
    """A model with its inputs.

    Attributes:
        model: the model with random weights, in evaluation mode.
        inputs: its inputs (`sirfp.network.forward.call`).
        training: its inputs for one step of training; None for `inputs` twice as a batch.
        loss: the loss of an output in training mode; None for the mean square of every tensor in it.
    """

    model: nn.Module
    inputs: Any
    training: Any = None
    loss: Callable[[Any], torch.Tensor] | None = None


def image(*size: int, channels: int = 3) -> torch.Tensor:
    """One random image, video or volume of the size (height, width) or (depth, height, width), (1, channels, *size)."""
    return torch.randn(1, channels, *size)


def twice(inputs: Any) -> Any:
    """Returns a batch of two from a batch of one: each tensor with a batch of one joined with its mirror image."""
    if isinstance(inputs, torch.Tensor):
        batch = inputs.dim() > 0 and inputs.shape[0] == 1
        return torch.cat([inputs, inputs.flip(-1)]) if batch else inputs
    if isinstance(inputs, Mapping):
        return {key: twice(value) for key, value in inputs.items()}
    return tuple(map(twice, inputs)) if isinstance(inputs, tuple) else inputs
