"""Widths by loss curves: within budget and limits, no worse than simple shares and rankings, near the exact optimum."""

from __future__ import annotations

import itertools
import logging
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from marks import drawn, slow_but
from small_networks import INPUT, Depthwise
from test_allocation import FOUND, Wide

from sirfp.budget import knapsack
from sirfp.budget.allocation import PROMISED, allocate, grid, least, widths_at, worth_for_cost
from sirfp.budget.curve import Curve
from sirfp.budget.limits import DEFAULT, Limits
from sirfp.budget.target import Flops, Params
from sirfp.budget.width_cost import WidthCost, of_products
from sirfp.budget.widths import keep_for
from sirfp.channels import find_groups
from sirfp.errors import InputError

KINDS = list(FOUND)
BUDGETS = {
    "flops": (Flops, lambda found: found.cost.operations),
    "params": (Params, lambda found: found.cost.parameters),
}

GAP = 1.01
"""The search is not exact: docs/widths_gap.md finds losses of up to 0.45% above the least one; a share for all groups
was once 0.65% better than the search here."""


def random_curves(found, seed: int) -> dict[str, Curve]:
    """Losses that rise by different powers of the removed share, over orders of magnitude, with noise."""
    generator = np.random.default_rng(seed)
    curves = {}
    for group in found:
        widths = sorted({max(1, round(share * group.size)) for share in (0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1)})
        removed = 1 - np.array(widths) / group.size
        losses = generator.lognormal(-1, 2) * removed ** generator.uniform(0.7, 5)
        losses *= generator.lognormal(0, generator.choice([0.0, 0.5]), len(losses))
        curves[group.name] = Curve(group.name, group.size, tuple(widths), tuple(losses))
    return curves


def loss_of(found, curves, keep) -> float:
    return sum(curves[g.name].at(int(keep[found.spans[g.name]].sum())) for g in found)


def in_order(found) -> dict[str, torch.Tensor]:
    return {group.name: torch.arange(group.size) for group in found}


def chosen(found, curves, share, limits=DEFAULT, kind=Flops):
    return kind(share).choose_by_curves(None, None, found, curves, in_order(found), limits).keep


@drawn(40)
@given(
    st.sampled_from(KINDS), st.sampled_from(list(BUDGETS)), st.floats(0.1, 1.0), st.integers(0, 99),
    st.sampled_from([1, 2, 4, 8]), st.sampled_from([0.0, 0.02, 0.3]), st.sampled_from([(), ("*",), ("backbone",)]),
)  # fmt: skip
def test_a_plan_is_within_its_budget_and_limits(kind, quantity, share, seed, round_to, min_keep, partitions):
    found, (target, _) = FOUND[kind], BUDGETS[quantity]
    limits = Limits(partitions, round_to=round_to, min_keep=min_keep)
    cost = target(share).cost(found)
    try:
        keep = chosen(found, random_curves(found, seed), share, limits, target)
    except InputError as error:
        assert "the budget cannot be reached" in str(error)
        assert cost(widths_at(found, 0, limits)) > share * cost()
        return
    assert cost(keep) <= share * cost()
    for group in found:
        width = int(keep[found.spans[group.name]].sum())
        assert width >= least(group, min_keep) and width in grid(group, limits)
        assert width == group.size or width * group.width % round_to == 0


@drawn(40)
@example(Depthwise, 0.6875, 23, 1)
@example(Wide, 0.42869636539632366, 34, 4)
@given(st.sampled_from(KINDS), st.floats(0.2, 0.95), st.integers(0, 99), st.sampled_from([1, 2, 4]))
def test_no_shares_and_no_ranking_lose_less(kind, share, seed, round_to):
    found, curves = FOUND[kind], random_curves(FOUND[kind], seed)
    limits = Limits((), round_to=round_to)
    budget = share * found.flops()
    try:
        others = [allocate(found, scores, budget, limits=limits) for scores in rankings(found, curves)]
    except InputError:
        return
    shares = [keep for s in np.linspace(0, 1, 101) if found.flops(keep := widths_at(found, s, limits)) <= budget]
    widths = Flops(share).chooser(None, None, found, limits)(curves)  # before `sirfp.budget.aligned`
    ours = loss_of(found, curves, keep_for(found, in_order(found), widths))
    for keep in (*others, *shares):
        assert ours <= loss_of(found, curves, keep) * GAP + 1e-12


def rankings(found, curves):
    """Scores that rank channels by what the curve of their group rises when they go, alone and for their cost."""
    scores = {}
    for group in found:
        losses = curves[group.name].over(np.arange(1, group.size + 1))
        rises = np.append(losses[:-1] - losses[1:], [])[::-1]
        scores[group.name] = torch.tensor(np.maximum.accumulate(np.append(rises, rises[-1:] * 2)))
    return [worth_for_cost(found, scores, found.flops, exponent) for exponent in (0, 1)]


@pytest.mark.parametrize("share", [0.15, 0.4, 0.5, 0.83])
@pytest.mark.parametrize("kind", [Flops, Params])
def test_a_budget_is_met_to_half_a_percent(share, kind):
    found = FOUND[Wide]
    cost = kind(share).cost(found)
    for seed in range(2):
        keep = chosen(found, random_curves(found, seed), share, kind=kind)
        assert (1 - PROMISED) * share <= cost(keep) / cost() <= share


def test_channels_that_lose_nothing_are_kept_while_the_budget_allows():
    found = FOUND[Wide]
    curves = {g.name: Curve(g.name, g.size, (1, g.size), (0.0, 0.0)) for g in found}
    keep = chosen(found, curves, 0.5)
    assert (1 - PROMISED) * 0.5 <= found.flops(keep) / found.flops() <= 0.5


def test_more_budget_is_not_used_where_it_raises_the_loss():
    # two groups of two widths: the plan that uses all of the budget loses more
    cost = WidthCost(np.array([[0], [1]]), np.zeros(2), np.eye(2), lambda lines, sizes: sizes.sum(0))
    grids = [np.array([40, 100]), np.array([50, 100])]
    problem = knapsack.Knapsack(grids, [np.array([0.1, 0]), np.array([5.0, 0])], cost, 150.0, 0.0025, 0.005)
    assert knapsack.solve(problem).tolist() == [0, 1]


@pytest.mark.parametrize("products", [BUDGETS[key][1] for key in BUDGETS])
@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_of_widths_is_that_of_any_atoms(kind, products):
    found, generator = FOUND[kind], np.random.default_rng(0)
    cost = of_products(products(found), found)
    for _ in range(20):
        keep = generator.random(found.atoms) < generator.uniform(0.1, 1)
        widths = np.array([keep[span].sum() for span in found.spans.values()], dtype=float)
        assert cost(widths) == pytest.approx(products(found).value(keep))
        g = int(generator.integers(len(found)))
        others = np.arange(found.groups[g].size + 1)
        changed = [cost(np.where(np.arange(len(widths)) == g, n, widths)) - cost(widths) for n in others]
        assert cost.along(cost.sizes(widths), g, others - widths[g]) == pytest.approx(changed, abs=1e-3)


@drawn(40)
@example(8544, 2, 0.609375)  # 1.43 times the least loss before all choices of so few were tried
@given(st.integers(0, 10**6), st.integers(2, 5), st.floats(0.15, 0.9))
def test_small_chains_are_close_to_the_exact_optimum(seed, groups, share):
    problem = chain(seed, groups, share)
    exact = min(
        problem.loss(np.array(at)) for at in itertools.product(range(6), repeat=groups) if problem.fits(np.array(at))
    )
    at = knapsack.solve(problem)
    assert problem.fits(at) and exact <= problem.loss(at) <= 1.25 * exact


def test_most_chains_are_exact():
    gaps = []
    for seed in range(20):
        problem = chain(seed, 4, 0.5)
        every = (np.array(at) for at in itertools.product(range(6), repeat=4))
        exact = min(problem.loss(at) for at in every if problem.fits(at))
        gaps.append(problem.loss(knapsack.solve(problem)) / exact - 1)
    assert np.mean(gaps) < 0.01 and np.mean(np.array(gaps) < 0.011) > 0.95


def chain(seed: int, groups: int, share: float) -> knapsack.Knapsack:
    """A chain of layers, each of which costs the product of its two widths, with six widths a group."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(8, 64, groups)
    grids = [np.unique(np.maximum(1, np.arange(1, 7) * size // 6)) for size in sizes]
    losses = [np.sort(generator.lognormal(-2, 2, 6))[::-1] * [1, 1, 1, 1, 1, 0] for _ in grids]
    sides = np.array([[groups, 0], *([g, g + 1] for g in range(groups - 1)), [groups - 1, groups]])
    factors = generator.lognormal(0, 1, groups + 1)
    members = np.vstack([np.eye(groups), np.zeros(groups)])
    cost = WidthCost(
        sides, np.append(np.zeros(groups), 3.0), members, lambda lines, products: factors[lines] @ products
    )
    least_, whole = cost(np.array([g[0] for g in grids])), cost(np.array([g[-1] for g in grids]))
    return knapsack.Knapsack(grids, losses, cost, least_ + share * (whole - least_), 0.0025, 0.005)


def test_partitions_make_the_same_share_of_their_savings():
    found, curves = FOUND[Wide], random_curves(FOUND[Wide], 3)
    keep = chosen(found, curves, 0.5, Limits(("backbone",)))
    smallest, savings = widths_at(found, 0), []
    for inside in (True, False):
        part = np.concatenate([np.full(g.size, g.name.startswith("backbone") == inside) for g in found])
        saved, most = (found.flops() - found.flops(np.where(part, atoms, True)) for atoms in (keep, smallest))
        savings.append(saved / most)
    assert savings[0] == pytest.approx(savings[1], abs=0.02)
    even = chosen(found, curves, 0.5, Limits(("*",)))
    shares = [even[span].mean() for span in found.spans.values()]
    assert max(shares) - min(shares) < 0.08
    free, default = (chosen(found, curves, 0.5, limits) for limits in (Limits(()), Limits()))
    assert (free == default).all() and loss_of(found, curves, free) < loss_of(found, curves, keep)


def test_a_budget_above_the_dense_cost_keeps_everything_and_earlier_prunings_count():
    found, curves = FOUND[Wide], random_curves(FOUND[Wide], 0)
    assert chosen(found, curves, 1.0).all()
    before = SimpleNamespace(flops=(4 * found.flops(), found.flops()))
    keep = Flops(0.1).choose_by_curves(None, None, found, curves, in_order(found), before=before).keep
    assert 0.398 <= found.flops(keep) / found.flops() <= 0.4
    assert Flops(0.3).choose_by_curves(None, None, found, curves, in_order(found), before=before).keep.all()


def test_budgets_and_curves_that_cannot_be():
    found, curves = FOUND[Wide], random_curves(FOUND[Wide], 0)
    with pytest.raises(InputError, match=r"0.001 of the FLOPs is asked for, the least .* \(MIN_KEEP 0.5\)"):
        chosen(found, curves, 0.001, Limits(min_keep=0.5))
    name, curve = next(iter(curves.items()))
    with pytest.raises(InputError, match=f"no loss curve of '{name}'"):
        chosen(found, {key: one for key, one in curves.items() if key != name}, 0.5)
    wrong = curves | {name: Curve(name, curve.size + 1, (curve.size + 1,), (0.0,))}
    with pytest.raises(InputError, match=f"one of {curve.size + 1} channels, the model has {curve.size}"):
        chosen(found, wrong, 0.5)


def test_a_model_that_is_frozen_is_said():
    found = find_groups(Wide(), torch.randn(INPUT), ignore=["*"])
    with pytest.raises(InputError, match="nothing in the model can be cut: every channel is frozen, for these reasons"):
        chosen(found, {}, 0.5)


def test_widths_that_were_not_measured_are_said(caplog):
    found = FOUND[Wide]
    curves = {g.name: Curve(g.name, g.size, (g.size // 2, g.size), (1.0, 0.0)) for g in found}
    with caplog.at_level(logging.WARNING):
        chosen(found, curves, 0.6)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        chosen(found, curves, 0.1)
    assert "keep fewer channels than their loss curves were measured at" in caplog.text


def test_a_group_that_was_not_measured_stays_whole():
    found, curves = FOUND[Wide], random_curves(FOUND[Wide], 0)
    group = found.groups[1]
    keep = chosen(found, curves | {group.name: Curve(group.name, group.size, (group.size,), (0.0,))}, 0.5)
    assert keep[found.spans[group.name]].all() and not keep.all()


def test_atoms_are_removed_in_their_order():
    found = FOUND[Wide]
    order = {g.name: torch.randperm(g.size, generator=torch.Generator().manual_seed(0)) for g in found}
    widths = {g.name: g.size - 3 for g in found}
    keep = keep_for(found, order, widths)
    for group in found:
        gone = np.flatnonzero(~keep[found.spans[group.name]])
        assert sorted(order[group.name][:3].tolist()) == gone.tolist()
    name = found.groups[0].name
    for bad in (order[name][1:], torch.zeros_like(order[name])):
        with pytest.raises(InputError, match=f"the order of '{name}' must name each of its 96 channels once"):
            keep_for(found, order | {name: bad}, widths)


@pytest.mark.parametrize(("groups", "size", "seconds"), slow_but([(60, 2048, 10), (20, 1024, 2)], (20, 1024, 2)))
def test_many_groups_of_many_channels_take_seconds(groups, size, seconds):
    generator = np.random.default_rng(0)
    grids = [np.arange(41, size + 1)] * groups
    shapes = zip(generator.lognormal(-2, 1, groups), generator.uniform(1, 4, groups), strict=True)
    losses = [a * (1 - grid / size) ** b for grid, (a, b) in zip(grids, shapes, strict=True)]
    sides = np.array([[g, g + 1] for g in range(groups - 1)])
    cost = WidthCost(sides, np.zeros(groups), np.eye(groups), lambda lines, products: products.sum(0))
    problem = knapsack.Knapsack(grids, losses, cost, 0.4 * cost(np.full(groups, size)), 0.0025, 0.005)
    start = time.process_time()
    assert problem.fits(knapsack.solve(problem))
    assert time.process_time() - start < seconds
