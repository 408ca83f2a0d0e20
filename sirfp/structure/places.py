"""Finds the components of tied labels and their places, the dimensions of parameters and buffers that they lie in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..tracing import ChannelTrace
from .groups import SizeCall


@dataclass(frozen=True)
class Components:
    """The components of tied labels.

    Attributes:
        of: the component of each label, (labels,).
        frozen: {component that must be kept: reason}.
        inexact: {component whose removal changes a statistic: reason}.
    """

    of: np.ndarray
    frozen: dict[int, str]
    inexact: dict[int, str]

    @property
    def count(self) -> int:
        return int(self.of.max()) + 1 if len(self.of) else 0


@dataclass(frozen=True)
class Places:
    """The places of all components.

    Attributes:
        names: the (tensor, dimension) of each place.
        makes: True for a place that is the output dimension of its layer.
        blocks: (signature, blocks of the components with this signature, (components, R, 3)). A block holds the rows
            (component, place, index in the place) of one component, sorted. The signature is the component's sequence
            of places.
    """

    names: list[tuple[str, int]]
    makes: list[bool]
    blocks: list[tuple[np.ndarray, np.ndarray]]


def components_of(trace: ChannelTrace) -> Components:
    """Joins tied labels to components. If there are several reasons to freeze a component, the first is kept."""
    of = trace.labels.components()
    frozen: dict[int, str] = {}
    for labels, reason in reversed(trace.labels.frozen):
        frozen.update(dict.fromkeys(of[labels].tolist(), reason))
    inexact: dict[int, str] = {}
    for labels, reason in trace.labels.inexact:
        inexact.update(dict.fromkeys(of[labels].tolist(), reason))
    return Components(of, frozen, inexact)


def places_of(model: nn.Module, trace: ChannelTrace, state: dict, components: Components) -> Places:
    """Finds the places of each component, and collects the components that have the same places."""
    names: list[tuple[str, int]] = []
    making: list[bool] = []
    held: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    for name in state:
        for dim, labels in enumerate(trace.state_dims[name]):
            if labels is not None:
                held.append(labels)
                names.append((name, dim))
                making.append(makes(model, name, dim, state[name]))
    counts = [len(labels) for labels in held[1:]]
    starts = np.cumsum([0, *counts[:-1]]) if counts else np.zeros(0, dtype=np.int64)
    ids = components.of[np.concatenate(held)]
    table = np.empty((len(ids), 3), dtype=np.int64)
    table[:, 0] = ids
    table[:, 1] = np.repeat(np.arange(len(counts)), counts)
    table[:, 2] = np.arange(len(ids)) - np.repeat(starts, counts)
    return Places(names, making, _blocks(table[np.argsort(ids, kind="stable")]))


def _blocks(table: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Collects the components with the same places, see `Places.blocks`.

    Args:
        table: rows (component, place, index in the place), (R, 3), sorted.
    """
    starts = np.flatnonzero(np.diff(table[:, 0], prepend=-1))
    if not len(starts):
        return []
    counts = np.diff(starts, append=len(table))
    order = np.arange(len(table)) - np.repeat(starts, counts)
    weights = np.random.default_rng(0).integers(1, 2**63, size=int(counts.max()), dtype=np.uint64)
    marks = np.add.reduceat((table[:, 1].astype(np.uint64) + np.uint64(1)) * weights[order], starts)
    _, first, kind = np.unique(marks, return_index=True, return_inverse=True)
    blocks = []
    for number in np.argsort(first):
        members = np.flatnonzero(kind == number)
        rows = starts[members][:, None] + np.arange(counts[members[0]])
        blocks.append((table[rows[0], 1], table[rows]))
    return blocks


def apart(
    blocks: list[tuple[np.ndarray, np.ndarray]], components: Components, calls: Sequence[SizeCall]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Parts components of one signature whose numbers the model's code gives apart, as in `x.split([16, 16, 4, 4])`.

    In one group they would compete, and a plan could keep none of a part.

    Args:
        blocks: see `Places`.
        components: the components.
        calls: the calls in which the model's code gives sizes, with labels in place of atoms.
    """
    owner, sizes = np.full(components.count, -1), []
    for number, (_, block) in enumerate(blocks):
        free = [component for component in block[:, 0, 0].tolist() if component not in components.frozen]
        owner[free] = number
        sizes.append(len(free))
    marks = np.zeros(components.count, dtype=np.int64)
    parts = {}
    for labels in (labels for call in calls for labels in call.atoms if labels is not None and len(labels)):
        ids = np.sort(components.of[labels])  # as np.unique, whose first call imports numpy.ma
        ids = ids[np.flatnonzero(np.diff(ids, prepend=-1))]
        parts[ids.tobytes()] = ids
    for ids in parts.values():
        number = owner[ids[0]]
        if number >= 0 and len(ids) < sizes[number] and (owner[ids] == number).all():
            inside = np.zeros(components.count, dtype=np.int64)
            inside[ids] = 1
            _, marks = np.unique(2 * marks + inside, return_inverse=True)
    apart = []
    for signature, block in blocks:
        kinds = marks[block[:, 0, 0]]
        apart += [(signature, block[kinds == kind]) for kind in dict.fromkeys(kinds.tolist())]
    return apart


def makes(model: nn.Module, name: str, dim: int, tensor: torch.Tensor) -> bool:
    """True if a dimension is the output dimension of a layer's weight; False for scales, e.g. of shape (C, 1, 1)."""
    if dim > 1 or not isinstance(tensor, nn.Parameter) or sides(tensor) < 2:
        return False
    module = model.get_submodule(name.rpartition(".")[0])
    return dim == (1 if getattr(module, "transposed", False) else 0)


def sides(tensor: torch.Tensor) -> int:
    """Returns the number of dimensions of a tensor that are longer than one."""
    return sum(n > 1 for n in tensor.shape)
