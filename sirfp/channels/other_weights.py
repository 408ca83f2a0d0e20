"""Gives a trial's copies random values for constants."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from ..network.walk import walk_tensors
from ..verify.proof import writable


@torch.no_grad()
def randomise_constants(model: nn.Module, names: Collection[str] | None = None) -> None:
    """Fills the constant parameters and buffers of a model with random values, in place.

    Otherwise scales initialised with zero or a tiny value, as at the end of a residual branch, would hide a wrong cut.

    Args:
        model: the model.
        names: the names of its constants, as `constants` gives them; None to find them.
    """
    generator = torch.Generator().manual_seed(0)
    state = walk_tensors(model)
    for name in constants(model) if names is None else names:
        tensor = state[name]
        sides = sorted(tensor.shape)
        if len(sides) > 1 and sides[-2] > 1:
            values = torch.randn(tensor.shape, generator=generator) * (tensor.shape[0] / tensor.numel()) ** 0.5
        else:
            values = torch.rand(tensor.shape, generator=generator) + 0.5
        tensor.copy_(values)


def constants(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the parameters and buffers of a model that have several elements of one value, by name."""
    return {
        name: tensor
        for name, tensor in walk_tensors(model).items()
        if tensor.is_floating_point() and tensor.numel() > 1 and _is_constant(tensor.detach()) and writable(tensor)
    }


def _is_constant(tensor: torch.Tensor) -> bool:
    ends = tensor[(0,) * tensor.dim()].item(), tensor[(-1,) * tensor.dim()].item()
    return ends[0] == ends[1] and bool(tensor.min() == tensor.max())
