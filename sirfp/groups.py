"""Channel groups as plain data: what `sirfp.channels` finds and criteria, budgets and surgery read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Slice:
    """Where a group's atoms lie in one dimension of one tensor.

    Attributes:
        tensor: name of the parameter or buffer.
        dim: dimension of it.
        index: indices of each atom, (size of the group, multiplicity).
    """

    tensor: str
    dim: int
    index: np.ndarray


@dataclass(frozen=True)
class Feature:
    """A module whose output shows a group's channels.

    Attributes:
        module: name of the module.
        norm: whether it is a normalisation layer; else a convolution or linear layer.
        dim: the channel dimension of its output.
        index: the channels of the output that belong to each atom, (size, multiplicity).
        positions: positions of one map in the pass.
        channels: channels of the output.
    """

    module: str
    norm: bool
    dim: int
    index: np.ndarray
    positions: int
    channels: int


@dataclass(frozen=True)
class Group:
    """Channels that compete: each atom is one set of slices, and all sets lie in the same tensors.

    Attributes:
        name: the module that makes the channels.
        place: the (tensor, dimension) of it in which `channels` are indices.
        slices: where the atoms lie.
        features: where a criterion can look at them, norm layers if there are any.
        channels: the atoms' channel indices in the module that names the group, (size,).
        inexact: why the pruned network differs from the masked one by nature, or None.
    """

    name: str
    place: tuple[str, int]
    slices: tuple[Slice, ...]
    features: tuple[Feature, ...]
    channels: tuple[int, ...]
    inexact: str | None = None

    @property
    def size(self) -> int:
        return len(self.channels)


@dataclass(frozen=True)
class Frozen:
    """Channels that stay: a module's name, how many of its channels, and why."""

    name: str
    channels: int
    reason: str
