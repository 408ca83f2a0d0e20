"""Finds the parameters of a group's channels: the filters that make them and the scales of their norm layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..network.batches import described
from ..structure.groups import Feature, Group, Slice


def filters(model: nn.Module, group: Group) -> list[Slice]:
    """Returns the slices of weights that make a group's channels; if there are none, the slices of all its parameters.

    The slices are along a weight's first dimension (the second for transposed convolutions).
    """
    own = [(piece, _parameter(model, piece.tensor)) for piece in group.slices]
    made = [p for p, t in own if t is not None and t.dim() > 1 and p.dim == _made_along(model, p.tensor)]
    return made or [piece for piece, tensor in own if tensor is not None]


def biases(model: nn.Module, group: Group) -> list[Slice]:
    """Returns the slices of the biases that the layers of `filters` add to a group's channels."""
    made = {f"{piece.tensor.rpartition('.')[0]}.bias".lstrip(".") for piece in filters(model, group)}
    return [p for p in group.slices if p.tensor in made and _parameter(model, p.tensor) is not None]


def norm_layers(model: nn.Module, group: Group) -> list[Feature]:
    """Returns the norm layers that scale a group's channels: those with a `weight`, parameter or buffer (FrozenBN)."""
    return [f for f in group.features if f.norm and _scales(model.get_submodule(f.module), f)]


def trained_norm_layers(model: nn.Module, group: Group) -> list[Feature]:
    """Returns the layers among `norm_layers` whose scale is a parameter, so that it has a gradient."""
    layers = norm_layers(model, group)
    return [f for f in layers if isinstance(model.get_submodule(f.module).weight, nn.Parameter)]


def scale(model: nn.Module, layer: Feature) -> torch.Tensor:
    """Returns the scale of a norm layer (see `norm_layers`), (channels,), a parameter or a buffer."""
    weight = model.get_submodule(layer.module).weight
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"{layer.module} has no scale")
    return weight


def rows(tensor: torch.Tensor, piece: Slice) -> torch.Tensor:
    """Returns the values of each atom in a tensor, `(size, channels of an atom, values of a channel)` in float32."""
    flat = tensor.detach().float().movedim(piece.dim, 0).reshape(tensor.shape[piece.dim], -1)
    if np.array_equal(piece.index, np.arange(len(flat))[:, None]):  # all channels in their order: nothing is copied
        return flat[:, None]
    return flat[torch.as_tensor(piece.index, device=tensor.device)]


def sums(values: torch.Tensor, piece: Slice) -> torch.Tensor:
    """Returns the sum of values over each atom's part of a tensor, `(size,)` in float32."""
    others = [d for d in range(values.dim()) if d != piece.dim]
    along = values.sum(others, dtype=torch.float32) if others else values.float()
    return along[torch.as_tensor(piece.index, device=values.device)].sum(1)


def mean_over_filters(model: nn.Module, group: Group, measure: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Returns the mean of a measure over a group's `filters`, `(size,)`; zeros if there are none.

    Args:
        model: the model.
        group: the group.
        measure: computes scores, `(channels,)`, from the weights of each channel's filter, `(channels, values)`. The
            score of an atom is the mean over its channels, so that atoms of one and of several channels compare.

    Raises:
        InputError: the measure, which may be a user's own, does not return one score for each channel.
    """

    def over_channels(filters_of_atoms: torch.Tensor) -> torch.Tensor:
        values = filters_of_atoms.flatten(0, 1)
        scores = measure(values)
        if not isinstance(scores, torch.Tensor) or scores.shape != values.shape[:1]:
            raise InputError(
                f"the measure of filters {tuple(values.shape)} must return a tensor {tuple(values.shape[:1])}, "
                f"one score for each channel, got {described(scores)}"
            )
        return scores.reshape(filters_of_atoms.shape[:2]).mean(1)

    return mean_over_atoms(model, group, over_channels)


def mean_over_atoms(model: nn.Module, group: Group, measure: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Returns the mean of a measure over a group's `filters`, `(size,)`; zeros if there are none.

    Args:
        model: the model.
        group: the group.
        measure: computes scores, `(size,)`, from the filters of each atom, `(size, channels of an atom, values)`.
    """
    pieces = [(_parameter(model, piece.tensor), piece) for piece in filters(model, group)]
    found = [measure(rows(tensor, piece)) for tensor, piece in pieces if tensor is not None]
    return torch.stack(found).mean(0) if found else torch.zeros(group.size)


def _scales(module: nn.Module, feature: Feature) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.shape == (feature.channels,)


def _parameter(model: nn.Module, name: str) -> nn.Parameter | None:
    """Returns the parameter with a name, or None if it is a buffer or does not exist."""
    owner, _, leaf = name.rpartition(".")
    try:
        return model.get_submodule(owner)._parameters.get(leaf)
    except AttributeError:
        return None


def _made_along(model: nn.Module, name: str) -> int:
    return 1 if getattr(model.get_submodule(name.rpartition(".")[0]), "transposed", False) else 0
