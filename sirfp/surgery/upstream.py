"""Which channels that a layer still reads are no longer known, because a norm before it runs over removed channels."""

from __future__ import annotations

import numpy as np

from ..structure.groups import ChannelGroups

ENOUGH = 64
"""Number of channels left from which on the statistics of a norm over them count as known."""


def norm_errors(found: ChannelGroups, keep: np.ndarray) -> np.ndarray:
    """Returns the squared error of each atom's channels as a share of their variance, (atoms + 1,); 0 for the last.

    Where a norm's statistics run over removed channels, the norm changes all channels that stay. With n of them left, a
    mean over them is off by about the removed share over n of their variance. Below `ENOUGH` the error is infinite: it
    is not known what these channels become.

    Args:
        found: the model's groups.
        keep: the atoms to keep, (atoms,) of bool.
    """
    errors = np.zeros(found.atoms + 1)
    for group in found:
        span = found.spans[group.name]
        left, removed = keep[span].sum() * group.width, 1 - keep[span].mean()
        if group.inexact and removed:
            errors[span] = removed / left if left >= ENOUGH else np.inf
    return errors
