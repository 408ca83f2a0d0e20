"""Prunes a model to a choice of channels: compensates for the removed channels, makes the plan, and cuts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ..moments import Moments
from ..network.wrappers import on_plain_model
from ..structure.choice import Choice
from ..structure.groups import ChannelGroups
from ..structure.plan import Cut, PruningPlan
from .checked import WAYS, best_way
from .compensation import compensate
from .cut import cut_by, cuts_for
from .earlier_cuts import earlier_plan, remember
from .partial_copy import partial_copy
from .reconstruction import TOLERANCE, Correction
from .renormalise import renormalise, take_norms


@on_plain_model
def cut_to(
    model: nn.Module,
    found: ChannelGroups,
    choice: Choice,
    criterion: str = "",
    *,
    bias_correction: bool = True,
    optimizer: torch.optim.Optimizer | None = None,
    moments: Moments | None = None,
) -> PruningPlan:
    """Cuts a model, in place, to a choice, and records the choice's budget in the plan.

    Args:
        choice: the atoms to keep, and the budget that they meet.
        model, found, criterion, bias_correction, optimizer, moments: as in `cut`.

    Returns:
        The plan of this cut alone.
    """
    before = earlier_plan(model)
    plan = _cut(model, found, choice.keep, criterion, bias_correction, optimizer, moments)
    plan = replace(plan, budget=choice.budget, latency=choice.latency)
    remember(model, before.then(plan) if before else plan)
    return plan


@on_plain_model
def cut(
    model: nn.Module,
    found: ChannelGroups,
    keep: np.ndarray,
    criterion: str = "",
    *,
    bias_correction: bool = True,
    optimizer: torch.optim.Optimizer | None = None,
    moments: Moments | None = None,
) -> PruningPlan:
    """Cuts a model, in place, to chosen atoms. The model remembers the plan, joined with those of earlier cuts.

    Args:
        model: the model in which the groups were found.
        found: the groups.
        keep: the atoms to keep, (atoms,) of bool.
        criterion: name of the criterion, recorded in the plan.
        bias_correction: True to compensate for the constants that removed channels emitted.
        optimizer: its state is cut together with the parameters.
        moments: second moments of the layers' inputs (`take_moments`). If given, the layers that read removed channels
            are reconstructed.

    Returns:
        The plan of this cut alone.
    """
    before = earlier_plan(model)
    plan = _cut(model, found, keep, criterion, bias_correction, optimizer, moments)
    remember(model, before.then(plan) if before else plan)
    return plan


def _cut(
    model: nn.Module,
    found: ChannelGroups,
    keep: np.ndarray,
    criterion: str,
    bias_correction: bool,
    optimizer: torch.optim.Optimizer | None,
    moments: Moments | None,
) -> PruningPlan:
    """Cuts a model as `cut` does, but the model does not remember the plan."""
    way = "emitted" if bias_correction else "none"
    judged: dict[str, list[Correction]] = {}
    if moments:
        ways = WAYS if bias_correction else tuple(way for way in WAYS if way != "emitted")
        half = lambda copied, way: correct_and_cut(  # noqa: E731
            copied, found, keep, way, moments, half=True, judged=judged
        )
        way = best_way(model, found, keep, moments, half, ways)
    return correct_and_cut(model, found, keep, way, moments, criterion, optimizer, judged=judged or None)


def correct_and_cut(
    model: nn.Module,
    found: ChannelGroups,
    keep: np.ndarray,
    way: str,
    moments: Moments | None,
    criterion: str = "",
    optimizer: torch.optim.Optimizer | None = None,
    half: bool = False,
    judged: dict[str, list[Correction]] | None = None,
) -> PruningPlan:
    """Corrects the layers that read removed channels in a given way, and cuts the model, in place.

    Args:
        way: one of `sirfp.surgery.checked.WAYS`.
        half: True to fit on the first half of the images only.
        judged: the errors of corrections for this choice of atoms, see `compensate`.
        model, found, keep, moments, criterion, optimizer: as in `cut`.

    Returns:
        The plan of this cut alone.
    """
    used = moments if way in ("renormalised", "refit", "careful") else None
    tolerance = 1.0 if way == "careful" else TOLERANCE
    norms = take_norms(model, moments, half) if way == "renormalised" and moments else None
    biases = () if way == "none" else compensate(model, found, keep, optimizer, used, half, tolerance, judged)
    plan = plan_for(found, keep, criterion, biases)
    cut_by(model, plan, optimizer)
    if norms is not None and moments:
        renormalise(model, norms, plan.cuts, moments, half)
    return plan


def cut_copy(
    model: nn.Module,
    found: ChannelGroups,
    keep: np.ndarray,
    moments: Moments | None = None,
    share_layers: bool = False,
) -> nn.Module:
    """Returns a copy of a model, cut to chosen atoms, to try a choice out.

    The copy shares every tensor that the cut leaves as it is with the model. Do not change either while both are used.
    Corrections are made without checking that they help.

    Args:
        model, found, keep, moments: as in `cut`.
        share_layers: True to share layers too (`sirfp.surgery.partial_copy`). This is faster. The mode of the copy must
            not be changed then.
    """
    tensors = touched_tensors(found, keep)
    modules = touched_modules(found, keep) if share_layers else None
    copied = partial_copy(model, tensors, modules)
    correct_and_cut(copied, found, keep, "refit" if moments else "emitted", moments)
    return copied


def touched_modules(found: ChannelGroups, keep: np.ndarray) -> set[str]:
    """Returns the names of the modules whose tensors or attributes a cut changes.

    Args:
        found: the groups.
        keep: the atoms to keep, (atoms,) of bool.
    """
    names = {tensor.rpartition(".")[0] for tensor in touched_tensors(found, keep)}
    padded = np.append(keep, True)
    names |= {m for m, atoms in found.positions.items() if not padded[atoms].all()}
    return names | {m for m, widths in found.widths.items() if any(not padded[a].all() for a in widths.values())}


def touched_tensors(found: ChannelGroups, keep: np.ndarray) -> set[str]:
    """Returns the names of the tensors that a cut replaces or corrects; a bias may not exist yet.

    Args:
        found: the groups.
        keep: the atoms to keep, (atoms,) of bool.
    """
    names = {piece.tensor for group in found for piece in group.slices if not keep[found.spans[group.name]].all()}
    for emission in found.emissions:
        if not keep[emission.atoms[emission.atoms >= 0]].all():
            bias = f"{emission.weight.rpartition('.')[0]}.bias".lstrip(".")
            names |= {emission.weight, bias, emission.norm_mean or emission.weight}
    return names


def cuts_only(found: ChannelGroups, keep: np.ndarray) -> PruningPlan:
    """Returns a plan that has only what a cut reads, for copies on which a choice of atoms is tried.

    Args:
        found: the groups.
        keep: the atoms to keep, (atoms,) of bool.
    """
    return PruningPlan({}, {}, {}, (0, 0), (0, 0), cuts=cuts_for(found, keep), widths=found.widths_of(keep))


def plan_for(found: ChannelGroups, keep: np.ndarray, criterion: str = "", biases: tuple[str, ...] = ()) -> PruningPlan:
    """Returns the plan for a choice of atoms.

    Args:
        found: the groups.
        keep: the atoms to keep, (atoms,) of bool.
        criterion: name of the criterion, recorded in the plan.
        biases: modules that were given a bias, which the dense model lacks.
    """
    cuts = cuts_for(found, keep)
    extra = [
        Cut(((f"{name}.bias", 0),), c.size, c.keep)
        for name in biases
        for c in cuts
        if (f"{name}.weight", 0) in c.tensors
    ]
    return PruningPlan(
        kept={g.name: tuple(np.array(g.channels)[keep[found.spans[g.name]]].tolist()) for g in found},
        channels={g.name: g.size for g in found},
        places={g.name: g.place for g in found},
        flops=(found.flops(), found.flops(keep)),
        params=(found.params(), found.params(keep)),
        cuts=cuts + tuple(extra),
        new_biases=biases,
        widths=found.widths_of(keep),
        criterion=criterion,
        frozen={f.name: f.reason for f in found.frozen},
        branches=found.branches,
    )
