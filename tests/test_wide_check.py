"""Every criterion gives one plan for any batch of the example, memory format and type, within rounding of scores."""

from __future__ import annotations

import copy
import functools
import itertools
import sys

import numpy as np
import pytest
import torch
from small_networks import NETWORKS, build, mean_square

import sirfp
from sirfp.channels import find_groups
from sirfp.clique import value
from sirfp.criteria import CRITERIA
from sirfp.criteria.sirfp import SIRFP
from sirfp.redundancy import edge_weights

BATCHES = (1, 2, 7)
FORMATS = (torch.contiguous_format, torch.channels_last)
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.04}
"""Largest difference of scores from those of the first case, as a share of the largest score of the network."""
KINDS = [NETWORKS[i] for i in (0, 2, 3, 10)]  # residual, grouped, depthwise, attention


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


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"sirfp_setwise"}))  # whose scores are not ranked by itself
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_plans_depend_on_batch_format_and_type_only_within_rounding(kind, name, monkeypatch):
    module, seen = sys.modules["sirfp.session"], {}
    decide = module.decide

    def recorded(model, example, found, criterion, *others):
        seen.update(scores=criterion.scores(), criterion=criterion)
        return decide(model, example, found, criterion, *others)

    monkeypatch.setattr(module, "decide", recorded)
    first = None
    for dtype, memory, batch in itertools.product(ROUNDING, FORMATS, BATCHES):
        dense, example, found = case(kind, dtype, memory, batch)
        monkeypatch.setattr(module, "find_groups", lambda *_, found=found: found)
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
