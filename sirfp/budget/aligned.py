"""Widths of layers that a plan leaves whole, beside those that it cuts to multiples.

A kernel has inputs and outputs. If a plan cuts the inputs to a multiple of `round_to` and leaves the outputs at a width
that is no multiple, such as 20 channels, the pruned kernel still does not fill the runtime's registers. These widths
are therefore cut to a multiple too, where this costs little. Residual streams, and layers that would lose more than a
quarter of their channels, stay whole: EfficientNet-Lite0 kept 78.1 top-1 instead of 86.2 at 0.9 of its FLOPs when its
streams of 24 and 40 channels were cut to 16 and 32. Kernels of which nothing is cut stay as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..structure.groups import ChannelGroups
from .grids import grid
from .limits import Limits

MOST = 0.25
"""A group loses at most this share of its channels for the sake of a multiple."""


def aligned(found: ChannelGroups, keep: np.ndarray, limits: Limits) -> Limits:
    """Returns limits under which the whole groups that share a cut kernel keep multiples of `round_to`.

    Args:
        found: the groups.
        keep: the atoms that a plan keeps, (atoms,) of bool.
        limits: the limits of the plan.

    Returns:
        The limits with the width of each such group, the largest multiple below its own; `limits` itself if there is no
        such group. Groups that several kernels make (residual streams), those that would lose more than `MOST`, and
        those whose width the limits give stay as they are.
    """
    if limits.round_to == 1:
        return limits
    groups_of = defaultdict(set)  # {tensor: the groups that have indices in it}
    for group in found:
        for piece in group.slices:
            groups_of[piece.tensor].add(group.name)
    cut = {group.name for group in found if not keep[found.spans[group.name]].all()}
    beside = {name for names in groups_of.values() if names & cut for name in names - cut}
    kernels = {piece.tensor for group in found for piece in group.slices if piece.dim == 1}
    given = []
    for group in found:
        makers = {piece.tensor for piece in group.slices if piece.dim == 0} & kernels
        if group.name in beside and len(makers) < 2 and group.size % group.step(limits.round_to):
            widths = grid(group, limits)
            if len(widths) > 1 and widths[-2] >= (1 - MOST) * group.size:
                given.append((group.name, widths[-2]))
    return replace(limits, given=(*limits.given, *given)) if given else limits


def choose_aligned(
    found: ChannelGroups, choose: Callable[[Limits], np.ndarray], limits: Limits
) -> tuple[np.ndarray, Limits]:
    """Chooses atoms, and again under the limits of `aligned`, until no group has to be narrower.

    Args:
        found: the groups.
        choose: returns the atoms to keep, (atoms,) of bool, under some limits.
        limits: the limits of the plan.

    Returns:
        The atoms to keep, (atoms,) of bool, and the limits under which they were chosen.
    """
    keep = choose(limits)
    while (narrower := aligned(found, keep, limits)) is not limits:
        limits = narrower
        keep = choose(limits)
    return keep, limits
