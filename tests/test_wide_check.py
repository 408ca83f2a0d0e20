"""Every criterion gives one plan for any batch of the example, memory format and type, within rounding of scores.

The default criterion decides widths by loss curves, the others by ranking. Quick tests look at one network and three of
the cases; slow ones at all networks and all cases.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from small_networks import NETWORKS, build, mean_square

import sirfp
from sirfp.budget.curves import LEVELS, widths_near
from sirfp.budget.limits import DEFAULT
from sirfp.channels import find_groups
from sirfp.clique import value
from sirfp.criteria import CRITERIA
from sirfp.criteria.calibration import default_criterion
from sirfp.criteria.sirfp import SIRFP
from sirfp.redundancy import edge_weights

BATCHES = (1, 2, 7)
FORMATS = (torch.contiguous_format, torch.channels_last)
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.04}
"""Largest difference of scores from those of the first case, as a share of the largest score of the network."""
KINDS = [NETWORKS[i] for i in (0, 2, 3, 10)]  # residual, grouped, depthwise, attention
CASES = list(itertools.product(ROUNDING, FORMATS, BATCHES))
FEW = [CASES[0], (torch.float32, torch.channels_last, 7), (torch.bfloat16, torch.channels_last, 2)]
RUNS = [pytest.param(kind, CASES, id=kind.__name__, marks=pytest.mark.slow) for kind in KINDS]
RUNS.insert(0, pytest.param(KINDS[0], FEW, id=f"{KINDS[0].__name__} in three cases"))


def images(count: int, seed: int, dtype: torch.dtype, memory: torch.memory_format) -> torch.Tensor:
    values = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).contiguous(memory_format=memory)


@functools.cache
def case(kind, dtype, memory, batch):
    """The model, the example and its groups: found once for all criteria, to save time."""
    model = build(kind).to(dtype=dtype, memory_format=memory)
    example = images(batch, 9, dtype, memory)
    return model, example, find_groups(model, example)


def places(groups) -> list:
    return [(g.name, [(s.tensor, s.dim, s.index.tolist()) for s in g.slices]) for g in groups]


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {default_criterion()}))
@pytest.mark.parametrize(("kind", "cases"), RUNS)
def test_plans_depend_on_batch_format_and_type_only_within_rounding(kind, cases, name, monkeypatch):
    module, seen = sys.modules["sirfp.session"], {}
    decide = module.decide

    def recorded(model, example, found, criterion, *others):
        seen.update(scores=criterion.scores(), criterion=criterion)
        return decide(model, example, found, criterion, *others)

    monkeypatch.setattr(module, "decide", recorded)
    first = None
    for dtype, memory, batch in cases:
        dense, example, found = case(kind, dtype, memory, batch)
        monkeypatch.setattr(module, "find_groups", lambda *_, found=found, **__: found)
        model = copy.deepcopy(dense)
        calibration = [images(4, seed, dtype, memory) for seed in range(2)]
        plan = sirfp.prune(model, example, name, 0.6, calibration, loss=mean_square, seed=1, widths="ranking")
        assert model(example).dtype == dtype and plan.flops[1] <= 0.6 * plan.flops[0]
        if first is None:
            first = places(found), dict(seen), plan
            continue
        assert places(found) == first[0], (dtype, memory, batch)
        assert plan.flops[0] == batch * first[2].flops[0], "FLOPs are of all images of the example"
        compare(found, first[1]["criterion"], first[1]["scores"], seen["scores"], first[2], plan, ROUNDING[dtype])


def compare(found, criterion, wanted: dict, scores: dict, expected, plan, rounding: float) -> None:
    """Requires scores that agree to a rounding error, and kept channels that are worth the same to a rounding error.

    The greedy search takes two channels that are nearly equal in either order, so scores are compared by rank
    and sets of channels by their worth: that of pairs and channels for a clique, else of channels alone.
    """
    top = max(float(score.abs().max()) for score in wanted.values())
    for group in found:
        tolerance = rounding * top
        ranked = wanted[group.name].sort().values
        torch.testing.assert_close(scores[group.name].sort().values, ranked, rtol=0, atol=tolerance)
        here, there = (torch.from_numpy(np.isin(group.channels, p.kept[group.name])) for p in (plan, expected))
        if (here == there).all():
            continue
        border = ranked[group.size - int(there.sum())]  # the lowest score that the group kept
        edges, vertices = torch.zeros(group.size, group.size), wanted[group.name]
        if isinstance(criterion, SIRFP):
            edges, vertices = edge_weights(criterion.matrix(group)), criterion.vertices().get(group.name)
        worth = [value(edges, kept.nonzero()[:, 0], vertices) - float(border * kept.sum()) for kept in (here, there)]
        assert abs(worth[0] - worth[1]) <= tolerance * int((here != there).sum())


@dataclass
class Decided:
    """What a plan of the default criterion was made from.

    Attributes:
        groups: places of all groups, to compare.
        readers: {group: the matrices of the layers that read it}.
        scores: {group: (size,)}, of all groups.
        curves: {group: its loss curve}.
        plan: the plan.
    """

    groups: list
    readers: dict
    scores: dict
    curves: dict
    plan: sirfp.PruningPlan

    def error(self, group, kept) -> float:
        """The error, in nats, of removing all other atoms of a group together; by their scores if no layer has it."""
        gone = torch.from_numpy(~np.isin(group.channels, kept))
        if group.name not in self.readers:
            return float(self.scores[group.name][gone].sum())
        total = 0.0
        for reader in self.readers[group.name]:
            channels = reader.channels[gone].flatten()
            inverse, effect = (matrix[channels][:, channels] for matrix in (reader.inverse, reader.effect))
            total += float(torch.linalg.solve(inverse, effect).trace()) / 2
        return total

    def loss(self, found, plan) -> float:
        """The sum of the curves at a plan's widths."""
        return sum(float(self.curves[g.name].over(np.array([len(plan.kept[g.name])]))[0]) for g in found)


def decided(kind, case_, monkeypatch) -> tuple:
    """Prunes by the default criterion; returns the groups and what the plan was made from."""
    dtype, memory, batch = case_
    dense, example, found = case(kind, *case_)
    seen, session, setwise = {}, sys.modules["sirfp.session"], sys.modules["sirfp.criteria.setwise"]
    decide, eliminate, readers = session.decide, setwise.eliminate, []

    def recorded(model, example, found, criterion, target, limits, before, curves):
        names = list(criterion.orders())[: len(readers)]
        seen.update(scores=criterion.scores(), curves=curves, readers=dict(zip(names, readers, strict=True)))
        return decide(model, example, found, criterion, target, limits, before, curves)

    def noted(given, size):
        readers.append(given)
        return eliminate(given, size)

    with monkeypatch.context() as patch:
        patch.setattr(session, "find_groups", lambda *_, **__: found)
        patch.setattr(session, "decide", recorded)
        patch.setattr("sirfp.budget.curves_for_budget._attained", lambda *_: math.inf)  # measures all levels
        patch.setattr(setwise, "eliminate", noted)
        model = copy.deepcopy(dense)
        calibration = [images(4, seed, dtype, memory) for seed in range(3)]
        plan = sirfp.prune(model, example, None, 0.6, calibration, seed=1, steps=1)
    assert model(example).dtype == dtype and plan.flops[1] <= 0.6 * plan.flops[0]
    assert seen["curves"] is not None and plan.criterion == default_criterion()
    return found, Decided(places(found), plan=plan, **seen)


@pytest.mark.parametrize(("kind", "cases"), RUNS)
def test_plans_by_curves_depend_on_them_only_within_rounding(kind, cases, monkeypatch):
    _, first = decided(kind, cases[0], monkeypatch)
    for each in cases[1:]:
        found, other = decided(kind, each, monkeypatch)
        rounding = ROUNDING[each[0]]
        assert other.groups == first.groups, each
        assert other.plan.flops[0] == each[2] * first.plan.flops[0]
        top = max(max(curve.losses) for curve in first.curves.values())
        for group in found:
            mine, theirs = first.curves[group.name], other.curves[group.name]
            common = sorted(set(mine.widths) & set(theirs.widths))  # rounding decides which others are measured
            assert {*widths_near(group, DEFAULT, LEVELS), group.size} <= set(common)
            losses = [[curve.at(width) for width in common] for curve in (mine.cleaned(), theirs.cleaned())]
            np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=rounding * top, err_msg=f"{each}")
        losses = [first.loss(found, plan) for plan in (first.plan, other.plan)]
        assert abs(losses[0] - losses[1]) <= 2 * len(found) * rounding * top, each
        for group in found:
            kept = [plan.kept[group.name] for plan in (first.plan, other.plan)]
            if len(kept[0]) == len(kept[1]) and kept[0] != kept[1]:
                errors = [first.error(group, one) for one in kept]
                whole = first.error(group, kept[0][:1])
                assert abs(errors[0] - errors[1]) <= rounding * whole, (each, group.name)
