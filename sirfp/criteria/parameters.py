"""Which parameters belong to a group's channels: the filters that make them, the scales of their norm layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..structure.groups import Feature, Group, Slice


def filters(model: nn.Module, group: Group) -> list[Slice]:
    """The slices of weights that make a group's channels; of a group without any, those of all its parameters.

    They lie along a weight's first dimension, the second of transposed convolutions.
    """
    tensors = dict(model.named_parameters())
    own = [piece for piece in group.slices if piece.tensor in tensors]
    made = [p for p in own if tensors[p.tensor].dim() > 1 and p.dim == _made_along(model, p.tensor)]
    return made or own


def biases(model: nn.Module, group: Group) -> list[Slice]:
    """The slices of biases that are added to a group's channels by the layers of its `filters`."""
    tensors = dict(model.named_parameters())
    made = {f"{piece.tensor.rpartition('.')[0]}.bias".lstrip(".") for piece in filters(model, group)}
    return [piece for piece in group.slices if piece.tensor in made and piece.tensor in tensors]


def norm_layers(model: nn.Module, group: Group) -> list[Feature]:
    """The norm layers of a group that scale each channel: those with a `weight`, a parameter or a buffer (FrozenBN)."""
    return [f for f in group.features if f.norm and _scales(model.get_submodule(f.module), f)]


def trained_norm_layers(model: nn.Module, group: Group) -> list[Feature]:
    """Those of `norm_layers` whose scale is a parameter, so that it has a gradient."""
    layers = norm_layers(model, group)
    return [f for f in layers if isinstance(model.get_submodule(f.module).weight, nn.Parameter)]


def scale(model: nn.Module, layer: Feature) -> torch.Tensor:
    """The scale of one of `norm_layers`, (channels,), a parameter or a buffer."""
    weight = model.get_submodule(layer.module).weight
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"{layer.module} has no scale")
    return weight


def rows(tensor: torch.Tensor, piece: Slice) -> torch.Tensor:
    """The values of each atom in a tensor, `(size, values)` in float32."""
    index = torch.as_tensor(piece.index, device=tensor.device)
    flat = tensor.detach().float().movedim(piece.dim, 0).reshape(tensor.shape[piece.dim], -1)
    return flat[index].flatten(1)


def sums(values: torch.Tensor, piece: Slice) -> torch.Tensor:
    """The sum of values over each atom's part of a tensor, `(size,)` in float32."""
    others = [d for d in range(values.dim()) if d != piece.dim]
    along = values.sum(others, dtype=torch.float32) if others else values.float()
    return along[torch.as_tensor(piece.index, device=values.device)].sum(1)


def mean_over_filters(model: nn.Module, group: Group, measure: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The mean over a group's `filters` of `measure`, from `(size, values)` to `(size,)`; zeros without any."""
    tensors = dict(model.named_parameters())
    found = [measure(rows(tensors[piece.tensor], piece)) for piece in filters(model, group)]
    return torch.stack(found).mean(0) if found else torch.zeros(group.size)


def _scales(module: nn.Module, feature: Feature) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.shape == (feature.channels,)


def _made_along(model: nn.Module, name: str) -> int:
    return 1 if getattr(model.get_submodule(name.rpartition(".")[0]), "transposed", False) else 0
