"""Channel groups as plain data: `sirfp.channels` finds them; criteria, budgets and surgery read them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from ..network.call_sites import Place
from .cost import Cost

MODEL_OUTPUT = "it is the model's output"
"""The reason for which the layers that make the model's outputs stay whole."""


@dataclass(frozen=True)
class Slice:
    """The indices of a group's atoms in one dimension of one tensor.

    Attributes:
        tensor: name of the parameter or buffer.
        dim: the dimension of the tensor.
        index: the indices of each atom, (size of the group, indices per atom).
    """

    tensor: str
    dim: int
    index: np.ndarray


@dataclass(frozen=True)
class Feature:
    """A module whose output holds a group's channels, for criteria that read features.

    Attributes:
        module: name of the module.
        norm: True for a normalisation layer, False for a convolution or linear layer.
        dim: the channel dimension of the output.
        index: the channels of the output that belong to each atom, (size of the group, channels per atom).
        positions: the number of positions of one feature map of one image, with the example inputs; of the first map if
            the module runs on several.
        channels: the number of channels of the output.
    """

    module: str
    norm: bool
    dim: int
    index: np.ndarray
    positions: int
    channels: int


@dataclass(frozen=True)
class Group:
    """Channels that compete: atoms with indices in the same dimensions of the same tensors.

    Attributes:
        name: name of the module that makes the channels.
        place: the (tensor, dimension) of that module in which `channels` are indices.
        slices: the indices of the atoms in each tensor.
        features: the modules at whose output a criterion can read the atoms: only norm layers if there are any.
        channels: the channel of each atom in the module that names the group (the first channel if the atom has
            several), (size,).
        inexact: reason why the pruned network cannot equal the masked one (a statistic over the channels changes), or
            None.
        layer_widths: number of channels per atom in the inputs and outputs of each layer, of a grouped convolution in
            each of its groups; above 1 e.g. for attention heads, and different in the layers before and after a pixel
            shuffle.
    """

    name: str
    place: tuple[str, int]
    slices: tuple[Slice, ...]
    features: tuple[Feature, ...]
    channels: tuple[int, ...]
    inexact: str | None = None
    layer_widths: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return len(self.channels)

    @property
    def width(self) -> int:
        """Number of channels per atom in the module that names the group: above 1 for attention heads, norm groups."""
        return sum(piece.index.shape[1] for piece in self.slices if (piece.tensor, piece.dim) == self.place) or 1

    def step(self, round_to: int) -> int:
        """Returns the number of atoms to remove at a time, so that all layers keep multiples of `round_to`."""
        widths = set(self.layer_widths) or {self.width}
        return math.lcm(*(round_to // math.gcd(round_to, width) for width in widths))


@dataclass(frozen=True)
class Frozen:
    """Channels that cannot be removed: name of the module, number of its frozen channels, and the reason."""

    name: str
    channels: int
    reason: str


@dataclass
class Emission:
    """What channels emit on average into one call of a layer that reads them.

    Bias compensation uses these means: docs/method.md, section 3.

    Attributes:
        weight: name of the layer's weight.
        atoms: the atom of each input channel, counted over all groups, -1 if the channel is frozen, (I,).
        emitted: the mean over output positions of what each tap of the kernel reads of each input channel
            (`sirfp.tracing.emissions`), NaN if unknown, (I, taps), or (I, 1) if all taps read the same. Zero padding
            counts as zeros.
        groups: the layer's number of groups.
        norm_mean: name of the running mean of the batch norm that is this layer's only consumer and normalises no other
            layer, or None.
        positions: the number of output positions of the call.
    """

    weight: str
    atoms: np.ndarray
    emitted: torch.Tensor
    groups: int
    norm_mean: str | None
    positions: int = 1


INPUT = "input"
"""In place of a function: the size is the width of an input of the module."""


@dataclass(frozen=True)
class SizeCall:
    """A call in which the model's code gives sizes, such as `x.reshape(b, n, heads, width)`.

    Attributes:
        place: where the code makes it; `INPUT` in place of the function for the width of an input.
        sizes: the sizes that the code gives, with the example inputs.
        atoms: for each size the atom of each index of the dimension, -1 if frozen, or None if it holds no channels.
        fixed: for each size True if it is a constant, such as the width of heads that are cut as a whole.
        split: the number of the operation that splits channels into these dimensions, or None.
        rounds: number of calls of the same site in one forward, those without channels included.
        training: True for a call in training mode, of a module that makes other calls there than in evaluation mode.
    """

    place: Place
    sizes: tuple[int, ...]
    atoms: tuple[np.ndarray | None, ...]
    fixed: tuple[bool, ...]
    split: int | None
    rounds: int = 1
    training: bool = False

    def sizes_of(self, keep: np.ndarray) -> tuple[int | None, ...]:
        """Returns the right sizes if the atoms in `keep`, (atoms,) of bool, are kept; None where the code is right."""
        padded = np.append(keep, True)
        parts = zip(self.sizes, self.atoms, self.fixed, strict=True)
        known = [n if fixed else None if atoms is None else int(padded[atoms].sum()) for n, atoms, fixed in parts]
        return tuple(None if n == -1 else right for n, right in zip(self.sizes, known, strict=True))


@dataclass
class ChannelGroups:
    """All groups of a model, its frozen channels, and the cost of any choice of channels.

    Attributes:
        groups: the groups, in the order of the model.
        frozen: the channels that cannot be removed.
        cost: FLOPs and parameters as a function of the atoms kept.
        sizes: {name of a parameter or buffer: its shape}.
        emissions: the constants that emptied channels emit into the layers that read them.
        widths: {module: {feature: the atom of each channel}} of the widths that modules announce.
        positions: {module: the atom of each channel} of the modules whose cut needs the dense positions of the channels
            (`sirfp.network.response_norm`).
        branches: the modules that run only in training; the cost does not count them.
        calls: the calls in which the model's code gives sizes, in the order of the forward pass.
        heads: {number of an operation that splits channels: k} for splits that lose whole heads (`ChannelTrace`).
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    cost: Cost
    sizes: dict[str, tuple[int, ...]]
    emissions: tuple[Emission, ...] = ()
    widths: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    positions: dict[str, np.ndarray] = field(default_factory=dict)
    branches: tuple[str, ...] = ()
    calls: tuple[SizeCall, ...] = ()
    heads: dict[int, int] = field(default_factory=dict)

    def __iter__(self):
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> Group:
        return next(group for group in self.groups if group.name == name)

    @property
    def atoms(self) -> int:
        """The number of atoms of all groups together."""
        return sum(group.size for group in self.groups)

    @cached_property
    def spans(self) -> dict[str, slice]:
        """{group name: the range of its atoms}, with atoms counted over all groups in order."""
        ends = np.cumsum([group.size for group in self.groups]).tolist()
        return {g.name: slice(end - g.size, end) for g, end in zip(self.groups, ends, strict=True)}

    def widths_of(self, keep: np.ndarray) -> dict[str, dict[str, int]]:
        """Returns the widths that modules announce and the sizes in their code if the atoms in `keep` are kept."""
        padded = np.append(keep, True)
        return {m: {key: int(padded[atoms].sum()) for key, atoms in v.items()} for m, v in self.widths.items()}

    def flops(self, keep: np.ndarray | None = None) -> int:
        """Returns the multiply-adds of one call with the example inputs if the atoms in `keep` are kept (None: all)."""
        return self.cost.flops(keep)

    def params(self, keep: np.ndarray | None = None) -> int:
        """Returns the number of parameters if the atoms in `keep` are kept (None: all)."""
        return self.cost.params(keep)
