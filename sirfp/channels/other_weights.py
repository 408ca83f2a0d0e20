"""Gives a trial's copies random values for constants."""

from __future__ import annotations

import torch
from torch import nn

from ..network.walk import walk_buffers, walk_parameters
from ..verify.proof import writable


@torch.no_grad()
def randomise_constants(model: nn.Module) -> None:
    """Fills the constant parameters and buffers of a model with random values, in place.

    Otherwise scales initialised with zero or a tiny value, as at the end of a residual branch, would hide a wrong cut.
    """
    generator = torch.Generator().manual_seed(0)
    for tensor in constants(model).values():
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
        for name, tensor in (*walk_parameters(model), *walk_buffers(model))
        if tensor.is_floating_point() and tensor.numel() > 1 and writable(tensor) and _is_constant(tensor.detach())
    }


def _is_constant(tensor: torch.Tensor) -> bool:
    first, last = tensor[(0,) * tensor.dim()], tensor[(-1,) * tensor.dim()]
    return bool(first == last) and bool(tensor.min() == tensor.max())
