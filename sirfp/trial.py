"""Sizes that stand in a model's own code, found by trying: cut a copy, run it, freeze what it cannot miss."""

from __future__ import annotations

import copy
import logging
import re
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from .calling import call, inference, tensors
from .channels import ChannelGroups
from .groups import Frozen, Group
from .models.proposals import fixed_proposals
from .plan import PruningPlan
from .surgery import apply, cuts_for

logger = logging.getLogger(__name__)

HALVINGS = 1  # how often groups of one role are halved once one of them has failed


def runs_without(model: nn.Module, inputs: Any, output: Any, found: ChannelGroups) -> ChannelGroups:
    """Freezes the groups that the model's own code does not let go.

    A copy is cut in all groups and run. Where that fails the groups are tried by halves, each half on top
    of what is known to go, so a group is frozen only if the copy fails with it and runs without it. Once a group
    is, those of the same role in other blocks are tried last and together, since they mostly fail alike.

    Args:
        model: the dense model.
        inputs: what it is called with.
        output: what it returned.
        found: its groups.

    Returns:
        The groups that can be cut, the others among the frozen ones with the error as the reason.
    """
    shapes = _shapes(output)
    good: list[Group] = []
    bad: dict[str, str] = {}
    doubtful: dict[tuple, list[Group]] = {}

    def grow(candidates: list[Group]) -> None:
        for group in candidates:
            if _role(group) in doubtful:
                doubtful[_role(group)].append(group)
        candidates = [group for group in candidates if _role(group) not in doubtful]
        if not candidates:
            return
        error = _failure(model, inputs, shapes, found, [*good, *candidates])
        if error is None:
            good.extend(candidates)
        elif len(candidates) == 1:
            bad[candidates[0].name] = error
            logger.info("%s stays whole: %s", candidates[0].name, error)
            doubtful[_role(candidates[0])] = []
        else:
            middle = len(candidates) // 2
            grow(candidates[:middle])
            grow(candidates[middle:])

    def settle(alike: list[Group], halvings: int) -> None:
        error = _failure(model, inputs, shapes, found, [*good, *alike])
        if error is None:
            good.extend(alike)
        elif len(alike) == 1 or not halvings:
            bad.update((group.name, error) for group in alike)
        else:
            middle = len(alike) // 2
            settle(alike[:middle], halvings - 1)
            settle(alike[middle:], halvings - 1)

    grow(list(found.groups))
    for alike in doubtful.values():
        if alike:
            settle(alike, HALVINGS)
    return without(found, bad) if bad else found


def _role(group: Group) -> tuple:
    """What a group is in its block: the names of its tensors without their numbers."""
    return tuple(dict.fromkeys((re.sub(r"\d+", "#", piece.tensor), piece.dim) for piece in group.slices))


def without(found: ChannelGroups, bad: dict[str, str]) -> ChannelGroups:
    """The groups less some, which become frozen for a reason each."""
    spans, keep = found.spans, np.ones(found.atoms, dtype=bool)
    for name in bad:
        keep[spans[name]] = False
    place = np.append(np.where(keep, np.cumsum(keep) - 1, -1), -1)
    return ChannelGroups(
        groups=tuple(g for g in found.groups if g.name not in bad),
        frozen=found.frozen + tuple(Frozen(g.name, g.size, bad[g.name]) for g in found.groups if g.name in bad),
        cost=found.cost.without(keep),
        sizes=found.sizes,
        emissions=tuple(replace(e, atoms=place[e.atoms]) for e in found.emissions),
        widths={m: {f: place[a] for f, a in v.items()} for m, v in found.widths.items()},
        branches=found.branches,
    )


def _failure(model: nn.Module, inputs: Any, shapes: dict, found: ChannelGroups, groups: list[Group]) -> str | None:
    """Why a copy cut in these groups does not run as the model does, or None."""
    keep = np.ones(found.atoms, dtype=bool)
    alike: dict[int, int] = {}
    for order, group in enumerate(groups):
        # groups of one size that the code takes for equally wide must show it, so neighbours lose unlike numbers
        count = alike[group.size] = alike.get(group.size, group.size // 3) + 1
        gone = 1 + count % max(1, group.size // 2)
        part = keep[found.spans[group.name]]
        part[np.random.default_rng(order).permutation(group.size)[:gone]] = False
        if not part.any():
            part[0] = True
    cut = copy.deepcopy(model)
    try:
        apply(cut, PruningPlan({}, {}, {}, (0, 0), (0, 0), cuts=cuts_for(found, keep)))
        with inference(cut), fixed_proposals(cut):
            got = _shapes(call(cut, inputs))
    except Exception as error:  # whatever the user's own code raises
        return f"cut, the model fails: {_one_line(error)}"
    for path, shape in shapes.items():
        if path not in got:
            return f"cut, the model no longer returns {path}"
        if shape != got[path] and not _varies(path, shape, got[path]):
            return f"cut, the model returns {path} of {got[path]}, not {shape}"
    return None


def _shapes(output: Any) -> dict[str, tuple[int, ...]]:
    return {path: tuple(t.shape) for path, t in tensors(output)}


def _varies(path: str, a: tuple, b: tuple) -> bool:
    """Detections: their number, the first dimension, may differ."""
    return "instances" in path and a[1:] == b[1:]


def _one_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:160]}"
