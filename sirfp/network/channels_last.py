"""Stores the weights of a network channels-last, in which most networks run faster on processors."""

from __future__ import annotations

import torch
from torch import nn

from .strided_pointwise import guard


def use_channels_last(model: nn.Module) -> nn.Module:
    """Stores a model's convolution weights channels-last, in place, so that its feature maps are channels-last too.

    Also protects layers from a bug of oneDNN with channels-last maps (`sirfp.network.strided_pointwise`).
    """
    return guard(model.to(memory_format=torch.channels_last))
