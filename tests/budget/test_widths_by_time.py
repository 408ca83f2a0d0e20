"""Widths by loss curves for a budget of latency: the table by widths, the measured budget, several steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from marks import slow_but
from small_networks import INPUT, Residual, build
from test_allocation import FOUND, Wide
from test_target import clock  # noqa: F401  (a fixture)
from test_widths import in_order, loss_of, random_curves

from sirfp.budget import latency
from sirfp.budget.allocation import smallest
from sirfp.budget.limits import Limits
from sirfp.budget.target import Flops, Latency
from sirfp.budget.width_cost import of_latencies
from sirfp.channels import find_groups
from sirfp.errors import InputError
from sirfp.network import clock as clocks
from sirfp.structure.plan import PruningPlan
from sirfp.surgery.cut import apply, cuts_for

X = torch.randn(INPUT)


def by_curves(model, found, curves, share, limits=Limits(()), before=None):  # noqa: B008  (frozen)
    return Latency(share).choose_by_curves(model, X, found, curves, in_order(found), limits, before)


@pytest.mark.parametrize("kind", FOUND)
def test_the_time_of_widths_is_that_of_any_atoms(clock, kind):  # noqa: F811
    found, generator = FOUND[kind], np.random.default_rng(0)
    table = latency.LatencyTable.measure(build(kind), X, found)
    cost = of_latencies(table, found)
    for _ in range(20):
        keep = generator.random(found.atoms) < generator.uniform(0.1, 1)
        widths = np.array([keep[span].sum() for span in found.spans.values()], dtype=float)
        assert cost(widths) == pytest.approx(table(keep))
        g = int(generator.integers(len(found)))
        others = np.arange(1, found.groups[g].size + 1)
        changed = [cost(np.where(np.arange(len(widths)) == g, n, widths)) - cost(widths) for n in others]
        assert cost.along(cost.sizes(widths), g, others - widths[g]) == pytest.approx(changed, abs=1e-6)


SHARES = [(1, 0.3), (1, 0.5), (1, 0.8), (8, 0.3), (8, 0.5), (8, 0.8)]


@pytest.mark.parametrize(("round_to", "share"), slow_but(SHARES, (1, 0.5), (8, 0.8)))
def test_a_latency_is_met_at_less_loss_than_by_flops(clock, share, round_to):  # noqa: F811
    found, model, limits = FOUND[Wide], build(Wide), Limits((), round_to=round_to)
    curves = random_curves(found, round_to)
    choice = by_curves(model, found, curves, share, limits)
    before, after = choice.latency
    assert after / before == pytest.approx(share, rel=0.05)
    assert clock(latency.cut_copy(model, found, choice.keep)) == after
    assert choice.budget == ("latency", share)
    for flops in np.linspace(share / 3, 2 * share, 6).clip(max=1):
        keep = Flops(flops).choose_by_curves(None, None, found, curves, in_order(found), limits).keep
        if clock(latency.cut_copy(model, found, keep)) <= after:
            assert loss_of(found, curves, choice.keep) <= 1.05 * loss_of(found, curves, keep)


def test_loss_curves_and_choice_share_the_times_of_layers(clock, monkeypatch):  # noqa: F811
    """To time them takes minutes with onnxruntime. Another pruning, also of the same budget, times them anew."""
    measured, measure = [], latency.LatencyTable.measure
    monkeypatch.setattr(
        latency.LatencyTable, "measure", lambda *args: measured.append(args[2:4]) or measure(*args)
    )
    found, model, target, limits = FOUND[Wide], build(Wide), Latency(0.5), Limits(())
    curves = random_curves(found, 0)
    target.chooser(model, X, found, limits)(curves)
    target.choose_by_curves(model, X, found, curves, in_order(found), Limits(()))
    assert len(measured) == 1
    again = find_groups(model, X)
    target.choose_by_curves(model, X, again, random_curves(again, 0), in_order(again), limits)
    target.choose_by_curves(model, X, again, random_curves(again, 0), in_order(again), Limits((), min_keep=0.2))
    anew = [(groups is found, bounds.min_keep) for groups, bounds in measured]
    assert anew == [(True, 0.02), (False, 0.02), (False, 0.2)]


def test_latency_in_two_steps_is_of_the_dense_network(clock):  # noqa: F811
    model = build(Wide)
    found, before = FOUND[Wide], clock(model)
    choice = by_curves(model, found, random_curves(found, 0), 0.7)
    first = PruningPlan({}, {}, {}, (1, 1), (1, 1), cuts=cuts_for(found, choice.keep), latency=choice.latency)
    apply(model, first)
    found = find_groups(model, X)
    second = by_curves(model, found, random_curves(found, 1), 0.5, before=first)
    assert second.latency[1] / before == pytest.approx(0.5, rel=0.05)


def test_a_latency_out_of_reach_says_the_least(clock):  # noqa: F811
    found, model = FOUND[Residual], build(Residual)
    with pytest.raises(InputError, match="0.01 of the latency is asked for, the least that can be kept is"):
        by_curves(model, found, random_curves(found, 0), 0.01)
    assert by_curves(model, found, random_curves(found, 0), 1.0).keep.all()
    least = clock(latency.cut_copy(model, found, smallest(found))) / clock(model)
    choice = by_curves(model, found, random_curves(found, 0), least * 1.02)
    assert choice.latency[1] / choice.latency[0] == pytest.approx(least * 1.02, rel=0.05)


def test_the_machine_s_own_clock_is_read(monkeypatch):
    monkeypatch.setattr(clocks, "SECONDS", 0.01)
    monkeypatch.setattr(latency, "TRIES", 1)
    torch.manual_seed(0)
    model, found = Wide(), FOUND[Wide]
    choice = by_curves(model, found, random_curves(found, 0), 0.8)
    assert min(choice.latency) > 0 and not choice.keep.all()
