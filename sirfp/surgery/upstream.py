"""How far the channels that a layer still reads differ from the dense network's, because layers before it were cut.

All layers are refitted at once, on what the dense network's layers read. The pruned network's channels carry the errors
of the layers that make them. A fit that uses small differences between nearly equal channels would magnify these
errors.
"""

from __future__ import annotations

import numpy as np

from ..structure.groups import ChannelGroups

ENOUGH = 64
"""Number of channels left from which on the statistics of a norm over them count as known."""


class UpstreamErrors:
    """The squared error of each atom's channels as a share of their variance, as the layers are gone through in order.

    An atom that several layers add to has the mean of their errors. Where a norm's statistics run over removed
    channels, the norm changes all channels that stay. With n of them left, a mean over them is off by about the removed
    share over n of their variance. Below `ENOUGH` the error is infinite: it is not known what these channels become.

    Args:
        found: the model's groups.
        keep: the atoms to keep, (atoms,) of bool.
    """

    def __init__(self, found: ChannelGroups, keep: np.ndarray):
        self.changed, self.sums, self.counts = np.zeros((3, found.atoms))
        self.made: dict[str, list[np.ndarray]] = {}
        for group in found:
            span = found.spans[group.name]
            left, removed = keep[span].sum() * group.width, 1 - keep[span].mean()
            if group.inexact and removed:
                self.changed[span] = removed / left if left >= ENOUGH else np.inf
            for piece in group.slices:
                if piece.dim == 0:
                    self.made.setdefault(piece.tensor, []).append(np.arange(found.atoms)[span])

    def of(self, atoms: np.ndarray) -> np.ndarray:
        """Returns the error of channels, (I,), given the atom of each, -1 if frozen."""
        known = self.changed + self.sums / np.maximum(self.counts, 1)
        return np.append(known, 0)[atoms]

    def note(self, weight: str, error: float) -> None:
        """Notes the error of a layer's output, as a share of its variance."""
        for atoms in self.made.get(weight, []):
            self.sums[atoms] += error
            self.counts[atoms] += 1
