"""Budgets: met from below to within one channel, partitions, least widths, multiples, and unreachable budgets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import INPUT, Dense, Depthwise, Residual, build
from torch import nn

from sirfp.budget import allocation
from sirfp.budget.allocation import allocate, split, worth_for_cost
from sirfp.budget.limits import Limits
from sirfp.channels import find_groups
from sirfp.errors import InputError


class Wide(nn.Module):
    """A backbone and a head with so many channels that a single one is a small share."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(*[nn.Conv2d(3 if i == 0 else 96, 96, 3, padding=1) for i in range(4)])
        self.head = nn.Sequential(nn.Conv2d(96, 64, 3, padding=1), nn.Conv2d(64, 4, 1))

    def forward(self, x):
        return self.head(self.backbone(x))


FOUND = {kind: find_groups(build(kind), torch.randn(INPUT)) for kind in (Wide, Residual, Dense, Depthwise)}


def _scores(found, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.randn(g.size, generator=generator) for g in found}


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(FOUND)), st.floats(0.25, 1.0), st.integers(0, 5), st.sampled_from([1, 2, 4, 8]))
def test_a_plan_costs_no_more_than_its_budget(kind, keep_flops, seed, round_to):
    found = FOUND[kind]
    try:
        keep = allocate(found, _scores(found, seed), keep_flops * found.flops(), limits=Limits(round_to=round_to))
    except InputError:
        return
    assert found.flops(keep) <= keep_flops * found.flops()
    for group in found:
        width = int(keep[found.spans[group.name]].sum())
        assert width >= max(1, 0.02 * group.size)
        assert width == group.size or width * group.width % round_to == 0


class GroupNormed(nn.Sequential):
    """Atoms of three channels: the groups of a norm."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 96, 3), nn.GroupNorm(32, 96), nn.ReLU(), nn.Conv2d(96, 4, 1))


@pytest.mark.parametrize(("round_to", "widths"), [(1, range(3, 97, 3)), (8, (24, 48, 72, 96)), (6, range(6, 97, 6))])
def test_widths_are_channels_where_an_atom_has_several(round_to, widths):
    found = find_groups(GroupNormed(), torch.randn(INPUT))
    met = set()
    for keep_flops in np.linspace(0.3, 1, 40):
        keep = allocate(found, _scores(found, 0), keep_flops * found.flops(), limits=Limits(round_to=round_to))
        met.add(3 * int(keep.sum()))
    assert met <= set(widths) and len(met) > 2


@pytest.mark.parametrize("keep_flops", [0.15, 0.4, 0.5, 0.83])
def test_a_budget_is_met_to_half_a_percent(keep_flops):
    found = FOUND[Wide]
    keep = allocate(found, _scores(found, 0), keep_flops * found.flops())
    assert 0.995 * keep_flops <= found.flops(keep) / found.flops() <= keep_flops


def test_parameters_can_be_the_budget():
    found = FOUND[Wide]
    keep = allocate(found, _scores(found, 0), 0.3 * found.params(), cost=found.params)
    assert 0.298 <= found.params(keep) / found.params() <= 0.3


def test_the_lowest_scores_go_first_in_every_group():
    found = FOUND[Wide]
    scores = _scores(found, 1)
    keep = allocate(found, scores, 0.5 * found.flops())
    for group in found:
        kept = keep[found.spans[group.name]]
        assert scores[group.name][kept].min() > scores[group.name][~kept].max()


def test_partitions_lose_the_same_share_and_are_ranked_apart():
    found = FOUND[Wide]
    scores = _scores(found, 2)
    for name in scores:
        if name.startswith("head"):
            scores[name] = scores[name] + 1000  # on one scale the head would lose nothing
    keep = allocate(found, scores, 0.5 * found.flops(), limits=Limits(("backbone",)))
    shares = [
        1 - np.concatenate([keep[found.spans[g.name]] for g in part]).mean()
        for part in split(found.groups, ("backbone",))
    ]
    assert shares[0] == pytest.approx(shares[1], abs=0.03) and shares[0] > 0.2


def test_every_group_apart_loses_the_same_share():
    found = FOUND[Wide]
    scores = {name: score + 1000 * i for i, (name, score) in enumerate(_scores(found, 2).items())}
    for partitions in ("*", ["*"], ("absent", "*")):
        keep = allocate(found, scores, 0.5 * found.flops(), limits=Limits(partitions))
        assert found.flops(keep) == pytest.approx(0.5 * found.flops(), rel=0.005)
        for group in found:
            rank = scores[group.name].argsort()[: group.size // 5]
            kept = keep[found.spans[group.name]]
            assert not kept[rank].any() and kept.mean() == pytest.approx(keep.mean(), abs=1.5 / group.size + 0.02)


def test_without_a_matching_prefix_all_are_one_partition():
    assert len(split(FOUND[Residual].groups, ("backbone",))) == 1


def test_one_prefix_alone_is_a_partition_too():
    found = FOUND[Wide]
    scores, half = _scores(found, 2), 0.5 * found.flops()
    keeps = [allocate(found, scores, half, limits=Limits(p)) for p in ("backbone", ("backbone",))]
    assert (keeps[0] == keeps[1]).all()
    assert (keeps[0] != allocate(found, _scores(found, 2), 0.5 * found.flops(), limits=Limits(()))).any()


def test_a_budget_out_of_reach_says_the_least():
    found = FOUND[Residual]
    with pytest.raises(InputError, match=r"least that can be kept is 0\.\d+"):
        allocate(found, _scores(found, 0), 0.001 * found.flops())


def test_scores_that_are_not_finite_are_refused():
    found = FOUND[Residual]
    scores = _scores(found, 0)
    scores["c.0"][3] = float("nan")
    with pytest.raises(InputError, match="c.0 are not finite"):
        allocate(found, scores, 0.5 * found.flops())


def test_the_whole_budget_keeps_everything():
    found = FOUND[Residual]
    assert allocate(found, _scores(found, 0), found.flops()).all()


def test_worth_for_cost_ranks_by_what_a_multiply_add_buys():
    found = FOUND[Wide]  # six convolutions in a row: the first of the head has fewer channels, the last reads fewer
    scores = {g.name: torch.ones(g.size) for g in found}
    assert worth_for_cost(found, scores, found.flops, 0.0) is scores
    area, worth = 2 * 16 * 16, worth_for_cost(found, scores, found.flops, 1.0)
    first, *_, last = found
    for group, made_from, read_by in ((first, 27, 9 * 96), (last, 9 * 96, 4)):
        share = (made_from + read_by) * area / found.flops()  # its own multiply-adds, and those of its reader
        torch.testing.assert_close(worth[group.name], torch.full((group.size,), 1 / share, dtype=torch.float64))
    root = worth_for_cost(found, scores, found.flops, 0.5)
    torch.testing.assert_close(root[last.name], worth[last.name].sqrt())
    below = worth_for_cost(found, {name: -score for name, score in scores.items()}, found.flops, 1.0)
    torch.testing.assert_close(below[last.name], -1 / worth[last.name])


def test_where_no_exchange_meets_a_budget_other_widths_do():
    weights, keep = np.array([7.0] * 2 + [3.0] * 6), np.array([False] * 2 + [True] * 6)
    parts = [[np.array([i]) for i in range(2)], [np.array([i]) for i in range(2, 8)]]
    cost = weights.__matmul__
    assert cost(keep) == 18 == cost(allocation._exchanged(keep, parts, 20.0, cost))
    found = allocation._searched(keep, parts, 20.0, cost)
    assert found.tolist() == [True] * 2 + [False] * 4 + [True] * 2, "the first of a group go first"
