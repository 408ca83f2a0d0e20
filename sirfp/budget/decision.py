"""Decides which channels stay: makes a choice from a criterion's scores, a budget and limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..criteria import Criterion
from ..errors import InputError
from ..network.batches import described
from ..structure.choice import Choice
from ..structure.groups import ChannelGroups
from ..structure.plan import PruningPlan
from .allocation import worth_for_cost
from .curve import Curve
from .limits import DEFAULT, Limits
from .target import Target
from .widths import keep_for


def decide(
    model: nn.Module,
    example_inputs: Any,
    found: ChannelGroups,
    criterion: Criterion,
    target: Target,
    limits: Limits = DEFAULT,
    before: PruningPlan | None = None,
    curves: Mapping[str, Curve] | None = None,
) -> Choice:
    """Decides which channels stay, by a criterion's statistics. The model is not changed.

    `sirfp.prune`, the command `sirfp prune` and each pruning of a training run call this function.

    Args:
        model: the model to prune.
        example_inputs: inputs of the model, for measuring latency.
        found: the model's groups.
        criterion: a criterion built for these groups, with its statistics.
        target: the budget, relative to the dense model.
        limits: the limits of the plan. `limits.ignore` has no effect here: `find_groups` used it to find `found`. The
            widths of single layers are those of `sirfp.budget.given_widths.with_given_widths`.
        before: the plan of earlier prunings. The budget is then a share of the model that was dense before them.
        curves: loss curves of all groups (`sirfp.budget.curves`). If given, they decide the width of each group, and
            the criterion only the channels; otherwise a ranking of the scores decides both.

    Returns:
        The choice, with each group refined by `Criterion.refine`.

    Raises:
        InputError: the budget is out of reach (the message names the smallest possible), or scores are not as
            `check_scores` demands.
    """
    if target.share >= 1 and limits.given:
        check_scores(found, criterion.scores())
        widths = {group.name: limits.widths.get(group.name, group.size) for group in found}
        choice = Choice(keep_for(found, criterion.orders(), widths))
        return replace(choice, keep=refined(found, choice.keep, criterion))
    if curves is None:
        scores, exponent = criterion.scores(), criterion.cost_exponent
        choice = choose(model, example_inputs, found, scores, target, limits, before, exponent)
    else:
        choice = target.choose_by_curves(model, example_inputs, found, curves, criterion.orders(), limits, before)
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
    """Chooses the atoms to keep by their scores, so that a budget is met.

    Args:
        scores: worth of each channel, {group: (size,)}.
        cost_exponent: scores are divided by a channel's cost to this power (`sirfp.budget.allocation.worth_for_cost`).
            The cost is in the budget's quantity, or in FLOPs for a budget of latency.
        model, example_inputs, found, target, limits, before: as in `decide`.

    Raises:
        InputError: the budget is out of reach (the message names the smallest possible), or scores are not as
            `check_scores` demands.
    """
    check_scores(found, scores)
    scores = worth_for_cost(found, scores, target.cost(found), cost_exponent)
    return target.choose(model, example_inputs, found, scores, limits, before)


def check_scores(found: ChannelGroups, scores: Mapping[str, torch.Tensor]) -> None:
    """Checks the scores of a criterion, which may be a user's own.

    Args:
        found: the groups.
        scores: {group: (size,)}.

    Raises:
        InputError: a group has no scores, or scores of another number or type, or a score is not finite.
    """
    for group in found:
        score = scores.get(group.name) if isinstance(scores, Mapping) else None
        if not isinstance(score, torch.Tensor) or score.shape != (group.size,):
            got = "none" if score is None else described(score)
            raise InputError(f"the scores of {group.name!r} must be a tensor ({group.size},), got {got}")
        if not score.isfinite().all():
            raise InputError(
                f"the scores of {group.name!r} are not finite: check the model's weights for NaN and infinite values, "
                "and start from finite weights, such as an earlier checkpoint"
            )


def refined(found: ChannelGroups, keep: np.ndarray, criterion: Criterion) -> np.ndarray:
    """Refines each group's choice of atoms with `Criterion.refine`. The widths stay the same.

    Args:
        found: the groups.
        keep: the atoms to keep, (atoms,) of bool.
        criterion: a criterion built for these groups, with its statistics.

    Returns:
        The refined atoms to keep, (atoms,) of bool.
    """
    keep = keep.copy()
    for group in found:
        inside = keep[found.spans[group.name]]
        if not inside.all():
            better = criterion.refine(group, torch.from_numpy(np.flatnonzero(inside)))
            inside[:] = False
            inside[better.cpu().numpy()] = True
    return keep
