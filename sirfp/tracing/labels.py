"""Channel labels: which indices of which dimensions live and die together.

A label is one index of one channel dimension. Rules tie labels that must stay or go together and
freeze those that must stay. Ties are only collected while the pass runs; `Labels.components` resolves
them all at once as the connected components of a graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

Array = np.ndarray  # (size of the dimension,) of int64 labels
Dims = list  # one entry a dimension: Array, or None where it is not indexed by channels


@dataclass
class Product:
    """One operation that counts in FLOPs: `factor * prod(len(side) for side in sides)`.

    Attributes:
        op: fvcore's name of the operation, e.g. "conv" or "batch_norm".
        factor: what channels do not change (positions, kernel area, batch), in multiply-adds.
        sides: label arrays of the dimensions that shrink with channels.
    """

    op: str
    factor: float
    sides: tuple[Array, ...]


@dataclass
class Tap:
    """A place where a criterion can look at features: the output of one module.

    Attributes:
        tensor: a parameter or buffer of the module, by which it is found.
        labels: the labels of the features' channels, (C,).
        norm: whether it is a normalisation layer (preferred) or a bare convolution or linear layer.
        dim: the features' channel dimension, counted from the end for channels-last features.
        positions: how many positions a map of these features has.
    """

    tensor: torch.Tensor
    labels: Array
    norm: bool
    dim: int
    positions: int = 1


@dataclass
class Consumer:
    """One call of a convolution or linear layer, which reads what emptied channels would still emit.

    Attributes:
        weight: its weight, (O, I / groups, ...) as PyTorch keeps it.
        labels: labels of its input channels, (I,).
        emitted: what each input channel emits when its norm's scale is zero, NaN where that is not known, (I,).
        groups: its groups.
        readers: how many operations read its output.
    """

    weight: torch.Tensor
    labels: Array
    emitted: torch.Tensor
    groups: int
    readers: int = 0


@dataclass
class Labels:
    """The collected labels, ties and freezes of one or several passes over one model."""

    count: int = 0
    ties: list[tuple[Array, Array]] = field(default_factory=list)
    frozen: list[tuple[Array, str]] = field(default_factory=list)
    inexact: list[tuple[Array, str]] = field(default_factory=list)

    def fresh(self, size: int) -> Array:
        """Returns `size` new labels."""
        start = self.count
        self.count += size
        return np.arange(start, self.count, dtype=np.int64)

    def tie(self, a: Array | None, b: Array | None, reason: str) -> Array | None:
        """Ties two dimensions index by index; one without labels freezes the other for `reason`.

        Returns:
            Labels of the dimension that results, None if neither has any.
        """
        if a is None or b is None:
            known = a if b is None else b
            self.freeze(known, reason)
            return known
        if a is not b:
            if len(a) != len(b):  # cannot line up: a rule of ours met what it does not understand
                self.freeze(a, reason)
                self.freeze(b, reason)
            else:
                self.ties.append((a, b))
        return a

    def tie_rows(self, labels: Array | None, rows: int) -> Array | None:
        """Ties `labels` seen as (rows, n) index by index over the rows; returns the first row."""
        if labels is None:
            return None
        table = labels.reshape(rows, -1)
        if rows > 1:
            self.ties.append((np.tile(table[0], rows - 1), table[1:].reshape(-1)))
        return table[0]

    def tie_columns(self, labels: Array | None, rows: int) -> None:
        """Ties `labels` seen as (rows, n) within each row: whole rows go or stay."""
        if labels is not None:
            table = labels.reshape(rows, -1)
            if table.shape[1] > 1:
                self.ties.append((np.repeat(table[:, 0], table.shape[1] - 1), table[:, 1:].reshape(-1)))

    def freeze(self, labels: Array | None, reason: str) -> None:
        """Marks labels that must stay, and why."""
        if labels is not None and len(labels):
            self.frozen.append((labels, reason))

    def mark_inexact(self, labels: Array | None, reason: str) -> None:
        """Marks labels whose removal changes a statistic over channels: cut, but not equal to masked."""
        if labels is not None and len(labels):
            self.inexact.append((labels, reason))

    def components(self) -> Array:
        """Returns the component of each label, (count,)."""
        if not self.ties:
            return np.arange(self.count)
        a = np.concatenate([t[0] for t in self.ties])
        b = np.concatenate([t[1] for t in self.ties])
        from scipy.sparse import coo_matrix  # slow to import
        from scipy.sparse.csgraph import connected_components

        graph = coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(self.count, self.count))
        return connected_components(graph, directed=False)[1]
