"""Channel groups as plain data: what `sirfp.channels` finds and criteria, budgets and surgery read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from .cost import Cost


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

    @property
    def width(self) -> int:
        """How many channels of the module that names the group an atom is: more than one for heads and norm groups."""
        return sum(piece.index.shape[1] for piece in self.slices if (piece.tensor, piece.dim) == self.place) or 1


@dataclass(frozen=True)
class Frozen:
    """Channels that stay: a module's name, how many of its channels, and why."""

    name: str
    channels: int
    reason: str


@dataclass
class Emission:
    """What emptied channels would still add to one call of a layer that reads them.

    For bias compensation: docs/method.md, section 3.

    Attributes:
        weight: name of the layer's weight.
        atoms: index of the atom of each input channel among all groups' atoms, -1 where frozen, (I,).
        emitted: what each input channel emits once its norm's scale is zero, NaN where that is not known, (I,).
        groups: the layer's groups.
        norm_mean: name of the running mean of the norm that alone reads the layer and reads it alone, or None.
    """

    weight: str
    atoms: np.ndarray
    emitted: torch.Tensor
    groups: int
    norm_mean: str | None


@dataclass(frozen=True)
class Statistic:
    """An operation that looks at whole dimensions at once: a mean, a softmax, a layer norm.

    Attributes:
        name: of the operation.
        shape: of what it looks at.
        atoms: for each dimension, the atom of each index, -1 where frozen, or None where no channels index it.
    """

    name: str
    shape: tuple[int, ...]
    atoms: tuple[np.ndarray | None, ...]

    def shape_of(self, keep: np.ndarray) -> tuple[int, ...]:
        """The shape for atoms kept, (atoms,) of bool."""
        padded = np.append(keep, True)
        sizes = zip(self.shape, self.atoms, strict=True)
        return tuple(n if atoms is None else int(padded[atoms].sum()) for n, atoms in sizes)


@dataclass
class ChannelGroups:
    """All groups of a model, what is frozen, and the cost of any choice of channels.

    `branches` are the modules that run only in training; the cost does not count them.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    cost: Cost
    sizes: dict[str, tuple[int, ...]]
    emissions: tuple[Emission, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    widths: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    branches: tuple[str, ...] = ()

    def __iter__(self):
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> Group:
        return next(group for group in self.groups if group.name == name)

    @property
    def atoms(self) -> int:
        """How many atoms all groups have together."""
        return sum(group.size for group in self.groups)

    @cached_property
    def spans(self) -> dict[str, slice]:
        """Where each group's atoms lie among all atoms, in order of the groups."""
        ends = np.cumsum([group.size for group in self.groups]).tolist()
        return {g.name: slice(end - g.size, end) for g, end in zip(self.groups, ends, strict=True)}

    def flops(self, keep: np.ndarray | None = None) -> int:
        """Multiply-adds of one call with the example inputs for atoms kept, (atoms,) of bool."""
        return self.cost.flops(keep)

    def params(self, keep: np.ndarray | None = None) -> int:
        """Parameters for atoms kept, (atoms,) of bool."""
        return self.cost.params(keep)
