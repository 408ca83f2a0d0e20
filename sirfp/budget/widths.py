"""Chooses how many channels each group keeps: the least sum of loss curves within a budget."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch

from ..errors import InputError
from ..structure.groups import ChannelGroups
from . import knapsack
from .allocation import EXACT, PROMISED, out_of_reach
from .curve import Curve
from .frozen import check_groups
from .grids import grid, split
from .limits import DEFAULT, Limits
from .width_cost import WidthCost

logger = logging.getLogger(__name__)


def choose_widths(
    found: ChannelGroups,
    curves: Mapping[str, Curve],
    budget: float,
    cost: WidthCost,
    *,
    limits: Limits = DEFAULT,
    dense: float | None = None,
    what: str = "FLOPs",
    measured: bool = False,
) -> dict[str, int]:
    """Chooses the width of each group, so that the sum of the groups' losses is least.

    The losses of groups are added as if each group were cut alone. This underestimates the loss of a small budget; cut
    in several steps then, with curves of the cut model for each step.

    Curves compare the groups of the whole model, so that the default of `limits.partitions` has no effect here. With
    other prefixes, each partition alone makes the same share of the largest saving that it could make alone.

    Args:
        found: the groups.
        curves: {group: its loss curve}.
        budget: the maximum cost of the plan.
        cost: the cost as a function of the widths (`sirfp.budget.width_cost`).
        limits: the limits of the plan; its `round_to` and `min_keep` are the grid of possible widths. A group whose
            width it gives has this width, whatever its curve.
        dense: the dense model's cost, for messages; by default the cost of the present widths.
        what: name of the cost in messages.
        measured: True to choose only widths at which a loss was measured.

    Returns:
        {group: number of atoms to keep}. The cost is at most the budget, and at most `PROMISED` below it unless all
        ways to use more of it raise the loss.

    Raises:
        InputError: the smallest plan within the limits costs more than the budget, or a curve is missing or belongs to
            a group of another size.
    """
    _check(found, curves)
    grids = [np.array(grid(group, limits)) for group in found]
    losses = [
        np.zeros(1) if group.name in limits.widths else curves[group.name].over(widths, measured)
        for group, widths in zip(found, grids, strict=True)
    ]
    known = [np.isfinite(each) for each in losses]  # a group that was measured at its full width only stays whole
    grids, losses = ([each[one] for each, one in zip(part, known, strict=True)] for part in (grids, losses))
    whole, least = (cost(np.array([widths[end] for widths in grids], dtype=float)) for end in (-1, 0))
    if whole <= budget:
        return {group.name: int(widths[-1]) for group, widths in zip(found, grids, strict=True)}
    check_groups(found)
    if least > budget:
        raise out_of_reach(budget, least, dense or whole, what, limits)
    problem = knapsack.Knapsack(grids, losses, cost, budget, EXACT, PROMISED)
    parts = [list(found.groups)]
    if tuple(limits.partitions) != tuple(DEFAULT.partitions):
        parts = split(found.groups, limits.partitions)
    order = {group.name: i for i, group in enumerate(found)}
    at = knapsack.solve_parts(problem, [[order[group.name] for group in part] for part in parts])
    return {group.name: int(widths[i]) for group, widths, i in zip(found, grids, at.tolist(), strict=True)}


def keep_for(found: ChannelGroups, order: Mapping[str, torch.Tensor], widths: Mapping[str, int]) -> np.ndarray:
    """Returns the atoms that stay if each group loses its first atoms in an order of removal.

    Args:
        found: the groups.
        order: {group: its atoms from the first one to remove to the last, (size,) of int}.
        widths: {group: number of atoms to keep}.

    Returns:
        The atoms to keep, (atoms,) of bool.

    Raises:
        InputError: an order does not name each atom of its group once.
    """
    keep = np.ones(found.atoms, dtype=bool)
    for group in found:
        atoms = order[group.name].cpu().numpy()
        if not np.array_equal(np.sort(atoms), np.arange(group.size)):
            raise InputError(f"the order of {group.name!r} must name each of its {group.size} channels once")
        keep[found.spans[group.name]][atoms[: group.size - widths[group.name]]] = False
    return keep


def _check(found: ChannelGroups, curves: Mapping[str, Curve]) -> None:
    """Raises InputError unless each group has a curve of its size."""
    for group in found:
        if group.name not in curves:
            raise InputError(f"there is no loss curve of {group.name!r}: measure the curves of this model")
        if curves[group.name].size != group.size:
            raise InputError(
                f"the loss curve of {group.name!r} is one of {curves[group.name].size} channels, the model has "
                f"{group.size}: measure the curves of this model"
            )


def warn_of_guesses(
    found: ChannelGroups, curves: Mapping[str, Curve], keep: np.ndarray, limits: Limits = DEFAULT
) -> None:
    """Warns if groups keep fewer atoms than the smallest width at which their loss was measured.

    Groups whose width the limits give are left out.

    Args:
        found: the groups.
        curves: {group: its loss curve}.
        keep: the atoms that stay, (atoms,) of bool.
        limits: the limits of the plan.
    """
    free = [group.name for group in found if group.name not in limits.widths]
    widths = {name: int(keep[found.spans[name]].sum()) for name in free}
    below = [name for name, width in widths.items() if width < curves[name].widths[0]]
    if below:
        worst = min(below, key=lambda name: widths[name] / curves[name].widths[0])
        logger.warning(
            "%d of %d groups keep fewer channels than their loss curves were measured at (%s: %d; measured from %d), "
            "so that their loss is a guess: cut in more steps, or measure smaller widths too",
            len(below), len(widths), worst, widths[worst], curves[worst].widths[0],
        )  # fmt: skip
