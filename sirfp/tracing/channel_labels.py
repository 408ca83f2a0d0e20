"""Channel labels: which indices of which dimensions must be kept or removed together.

A label is the number of one index of one channel dimension. Rules tie labels that must be kept or removed together and
freeze labels that must be kept. During the pass, ties are only collected. `Labels.components` then finds the connected
components of the graph of all ties.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass, field

import numpy as np
import torch

Array = np.ndarray  # (size of the dimension,) of int64 labels
Dims = list  # for each dimension of a tensor its Array, or None if the dimension holds no channels


@dataclass
class Product:
    """The FLOPs of one operation: `factor * prod(len(side) for side in sides)`.

    Attributes:
        op: fvcore's name of the operation, e.g. "conv" or "batch_norm".
        factor: the part that no cut changes (positions, kernel area, batch), in multiply-adds.
        sides: label arrays of the dimensions that become shorter when channels are removed.
    """

    op: str
    factor: float
    sides: tuple[Array, ...]


@dataclass
class Tap:
    """A module whose output a criterion can read as features.

    Attributes:
        tensor: a parameter or buffer of the module, which identifies the module.
        labels: the labels of the features' channels, (C,).
        norm: True for a normalisation layer (preferred), False for a convolution or linear layer.
        dim: the features' channel dimension, counted from the end for channels-last features.
    """

    tensor: torch.Tensor
    labels: Array
    norm: bool
    dim: int


@dataclass
class Consumer:
    """One call of a convolution or linear layer, with what its input channels emit on average.

    It is known of channels behind a batch norm (`sirfp.tracing.emissions`).

    Attributes:
        weight: the layer's weight, (O, I / groups, ...) in PyTorch's layout.
        labels: labels of the input channels, (I,).
        emitted: the mean of what each tap of the kernel reads of each input channel, zero where the tap lies in the
            padding, NaN if unknown, (I, taps), or (I, 1) if all taps read the same.
        groups: the layer's number of groups.
        positions: the number of output positions, of all images.
        readers: the number of operations that read the layer's output.
    """

    weight: torch.Tensor
    labels: Array
    emitted: torch.Tensor
    groups: int
    positions: int
    readers: int = 0


@dataclass
class Split:
    """A reshape that splits channels into several dimensions: heads of attention, or rows of a channel shuffle.

    Attributes:
        labels: the labels of the dimension that shrinks, (n,).
        whole: the labels of all that is split.
        depth: number of dimensions along which the labels vary, at least 2.
        owner: name of the module whose forward runs, "" for the model or if it is unknown.
    """

    labels: Array
    whole: Array
    depth: int
    owner: str


@dataclass
class Labels:
    """The labels, ties and freezes collected in one or several passes over one model.

    Attributes:
        count: number of labels.
        ties: pairs of label arrays that are tied index by index.
        frozen: labels that must be kept, with the reason.
        inexact: labels whose removal changes a statistic over channels, with the reason.
        starts: the first label of each dimension that got new ones, ascending.
    """

    count: int = 0
    ties: list[tuple[Array, Array]] = field(default_factory=list)
    frozen: list[tuple[Array, str]] = field(default_factory=list)
    inexact: list[tuple[Array, str]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    def fresh(self, size: int) -> Array:
        """Returns `size` new labels."""
        start = self.count
        self.starts.append(start)
        self.count += size
        return np.arange(start, self.count, dtype=np.int64)

    def tie(self, a: Array | None, b: Array | None, reason: str) -> Array | None:
        """Ties two dimensions index by index. A dimension without labels has a fixed size, so the other is frozen.

        Args:
            a: labels of one dimension.
            b: labels of the other.
            reason: the reason for freezing a dimension that is tied to one of fixed or different size.

        Returns:
            Labels of the resulting dimension, None if neither has labels.
        """
        if a is None or b is None:
            known = a if b is None else b
            self.freeze(known, reason)
            return known
        if a is not b:
            if len(a) != len(b):  # a rule applied to a case it does not cover: freeze both
                self.freeze(a, reason)
                self.freeze(b, reason)
            else:
                self.ties.append((a, b))
        return a

    def tie_rows(self, labels: Array | None, rows: int) -> Array | None:
        """Ties the columns of `labels` reshaped to (rows, n): a cut removes the same index from each row.

        Returns:
            The first row, (n,), as the labels of every row.
        """
        if labels is None:
            return None
        table = labels.reshape(rows, -1)
        if rows > 1:
            self.ties.append((np.tile(table[0], rows - 1), table[1:].reshape(-1)))
        return table[0]

    def tie_columns(self, labels: Array | None, rows: int) -> None:
        """Ties the rows of `labels` reshaped to (rows, n): a cut removes whole rows."""
        if labels is not None:
            table = labels.reshape(rows, -1)
            if table.shape[1] > 1:
                self.ties.append((np.repeat(table[:, 0], table.shape[1] - 1), table[:, 1:].reshape(-1)))

    def meets_others(self, labels: Array) -> bool:
        """True if a tie joins a label of the dimension that these labels were made for to one of another dimension."""
        place = bisect(self.starts, labels[0])
        first = self.starts[place - 1]
        end = self.starts[place] if place < len(self.starts) else self.count
        own = [((a >= first) & (a < end), (b >= first) & (b < end)) for a, b in self.ties]
        return any((of_a != of_b).any() for of_a, of_b in own)

    def freeze(self, labels: Array | None, reason: str) -> None:
        """Marks labels that must be kept, with the reason."""
        if labels is not None and len(labels):
            self.frozen.append((labels, reason))

    def mark_inexact(self, labels: Array | None, reason: str) -> None:
        """Marks labels whose removal changes a statistic over channels, so that the cut and the masked model differ."""
        if labels is not None and len(labels):
            self.inexact.append((labels, reason))

    def components(self) -> Array:
        """Returns the connected component of each label, (count,), numbered by their first labels."""
        if not self.ties:
            return np.arange(self.count)
        a = np.concatenate([t[0] for t in self.ties])
        b = np.concatenate([t[1] for t in self.ties])
        return components_of_graph(a, b, self.count)


def components_of_graph(a: Array, b: Array, count: int) -> Array:
    """Returns the connected component of each node of a graph, (count,) of int32, numbered by their first nodes.

    SciPy's `connected_components` returns the same, but takes a third of a second to import.

    Args:
        a: one node of each edge, (n,).
        b: the other one, (n,).
        count: the number of nodes.
    """
    root = np.arange(count)  # of each node: a node of its component that is not behind it
    while len(a):
        a, b = root[a], root[b]
        apart = a != b
        a, b = a[apart], b[apart]
        root[np.maximum(a, b)] = np.minimum(a, b)  # of several edges one counts; the others remain
        while (root[root] != root).any():
            root = root[root]
    first = root == np.arange(count)
    return (np.cumsum(first) - 1)[root].astype(np.int32)
