"""The decision which channels stay: a criterion's scores, a budget and limits give a choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..criteria import Criterion
from ..errors import InputError
from ..structure.choice import Choice
from ..structure.groups import ChannelGroups
from ..structure.plan import PruningPlan
from .allocation import worth_for_cost
from .limits import DEFAULT, Limits
from .target import Target


def decide(
    model: nn.Module,
    example_inputs: Any,
    found: ChannelGroups,
    criterion: Criterion,
    target: Target,
    limits: Limits = DEFAULT,
    before: PruningPlan | None = None,
) -> Choice:
    """Decides which channels stay, by what a criterion has seen; nothing in the model changes.

    `sirfp.prune`, and with it `sirfp prune`, and each pruning of a training run decide by this.

    Args:
        model: the model as it is.
        example_inputs: what it is called with to measure latency.
        found: its groups.
        criterion: built for these groups, with the statistics that it needs.
        target: the budget, of the dense model.
        limits: what the plan has to respect; its `ignore` counts in `find_groups`, which gave `found`.
        before: the plan of earlier prunings; the budget is a share of the model that was dense before them.

    Returns:
        The choice, each group's as `Criterion.refine` makes it.

    Raises:
        InputError: the budget is out of reach (the message names the least), or a score is not finite.
    """
    choice = choose(model, example_inputs, found, criterion.scores(), target, limits, before, criterion.cost_exponent)
    return replace(choice, keep=refined(found, choice.keep, criterion))


def choose(
    model: nn.Module,
    example_inputs: Any,
    found: ChannelGroups,
    scores: Mapping[str, torch.Tensor],
    target: Target,
    limits: Limits = DEFAULT,
    before: PruningPlan | None = None,
    cost_exponent: float = 0.0,
) -> Choice:
    """Chooses the atoms that stay by scores, so that a budget is met.

    Args:
        scores: worth of each channel, {group: (size,)}.
        cost_exponent: scores are divided by this power of what a channel costs of the budget's quantity; of FLOPs if
            that is latency (`sirfp.budget.allocation.worth_for_cost`).
        model, example_inputs, found, target, limits, before: as in `decide`.

    Raises:
        InputError: the budget is out of reach (the message names the least), or a score is not finite.
    """
    for name, score in scores.items():
        if not score.isfinite().all():
            raise InputError(
                f"the worth of the channels of {name!r} is not finite: are the model's weights? "
                "Start from weights that are, such as an earlier checkpoint's"
            )
    scores = worth_for_cost(found, scores, target.cost(found), cost_exponent)
    return target.choose(model, example_inputs, found, scores, limits, before)


def refined(found: ChannelGroups, keep: np.ndarray, criterion: Criterion) -> np.ndarray:
    """A choice of atoms with each group's replaced by what `Criterion.refine` makes of it; widths stay.

    Args:
        found: the groups.
        keep: which atoms stay, (atoms,) of bool.
        criterion: built for these groups, with its statistics.

    Returns:
        (atoms,) of bool.
    """
    keep = keep.copy()
    for group in found:
        inside = keep[found.spans[group.name]]
        if not inside.all():
            better = criterion.refine(group, torch.from_numpy(np.flatnonzero(inside)))
            inside[:] = False
            inside[better.cpu().numpy()] = True
    return keep
