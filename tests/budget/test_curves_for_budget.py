"""Loss curves are measured where a budget needs them: what is skipped loses nothing, what is suggested is measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from marks import slow_but
from small_networks import INPUT, build
from test_allocation import FOUND, Wide
from test_target import clock  # noqa: F401  (a fixture)

from sirfp.budget.curve import Curve
from sirfp.budget.curves import widths_near
from sirfp.budget.curves_for_budget import NEAR, ROUNDS, curves_for_budget
from sirfp.budget.limits import DEFAULT, Limits
from sirfp.budget.target import TARGETS
from sirfp.errors import InputError

X = torch.randn(INPUT)
LEVELS = (0.9, 0.5, 0.2, 0.05)


class Meter:
    """Takes the place of a meter: the loss of a group is a steep function of its width, with steps."""

    def __init__(self, found, factors=()):
        self.found, self.asked, self.factors = found, [], factors or range(1, 99)
        self.points: list[tuple[str, int]] = []

    def loss(self, name: str, width: int) -> float:
        number = [group.name for group in self.found].index(name)
        gone = 1 - width / self.found[name].size
        return self.factors[number] * (gone**2 + 3 * (gone > 0.5) + 0.5 * (gone > 0.2))

    def measure(self, widths, enough=math.inf, what=""):
        self.asked.append(widths)
        curves = {}
        for name, each in widths.items():
            done = []
            for width in sorted(each, reverse=True):
                done.append(width)
                if self.loss(name, width) > enough:
                    break
            self.points += [(name, width) for width in done]
            size, known = self.found[name].size, sorted(done)
            curves[name] = Curve(name, size, (*known, size), (*(self.loss(name, width) for width in known), 0.0))
        return curves

    def log(self) -> None:
        pass

    def total(self, widths) -> float:
        return sum(self.loss(name, width) for name, width in widths.items())

    def everywhere(self, levels=LEVELS) -> dict[str, Curve]:
        return Meter(self.found, self.factors).measure({g.name: widths_near(g, DEFAULT, levels) for g in self.found})


def only(curve: Curve, widths) -> Curve:
    """The points of a curve at some widths."""
    points = [point for point in zip(curve.widths, curve.losses, strict=True) if point[0] in widths]
    return Curve(curve.group, curve.size, *zip(*points, strict=True))


def curves_of(meter, target, limits=DEFAULT, levels=LEVELS):
    return curves_for_budget(build(Wide), X, target, meter, levels, limits)


def chosen(target, curves, limits=DEFAULT, **how):
    return target.chooser(build(Wide), X, FOUND[Wide], limits)(curves, **how)


@pytest.mark.parametrize("quantity", slow_but(sorted(TARGETS), "flops"))
def test_the_widths_lose_less_than_those_of_a_few_levels(clock, quantity):  # noqa: F811
    target, meter = TARGETS[quantity](0.6), Meter(FOUND[Wide])
    curves = curves_of(meter, target)
    assert meter.total(chosen(target, curves)) < meter.total(chosen(target, meter.everywhere()))
    assert len(set(meter.points)) == len(meter.points), "a width was measured twice"
    assert len(meter.asked) <= 2 + ROUNDS


@pytest.mark.parametrize("share", slow_but([0.9, 0.75, 0.5], 0.9, 0.5))
@pytest.mark.parametrize("seed", slow_but(range(4), 0))
def test_what_is_skipped_does_not_change_the_best_widths(share, seed):
    """The best plan of the widths at all levels is found from those that were measured."""
    factors = tuple(np.random.default_rng(seed).lognormal(0, 3, 99))
    target, meter, whole = TARGETS["flops"](share), Meter(FOUND[Wide], factors), Meter(FOUND[Wide], factors)
    curves, every = curves_of(meter, target), whole.everywhere()
    levels = {name: only(curve, every[name].widths) for name, curve in curves.items()}
    assert meter.total(chosen(target, levels, measured=True)) == meter.total(chosen(target, every, measured=True))


def test_groups_that_lose_too_much_are_not_measured_at_small_widths():
    found = FOUND[Wide]
    meter = Meter(found, (1000.0, 0.001, *[1.0] * 99))
    first, second = found.groups[:2]
    curves = curves_of(meter, TARGETS["flops"](0.75))
    assert curves[second.name].widths[0] < second.size / 2 < curves[first.name].widths[0] + 1


def test_partitions_are_measured_at_all_levels():
    """Each partition saves the same share, so that a loss in one says nothing about the others."""
    found = FOUND[Wide]
    meter = Meter(found, tuple(1000.0 if number == 0 else 1.0 for number in range(99)))
    limits = Limits(("*",), round_to=4)
    curves = curves_of(meter, TARGETS["flops"](0.75), limits)
    for group in found:
        assert set(widths_near(group, limits, LEVELS)) <= set(curves[group.name].widths)


def test_the_widths_that_curves_suggest_are_measured_where_no_other_is_near():
    found, target = FOUND[Wide], TARGETS["flops"](0.6)
    meter = Meter(found)
    curves_of(meter, target)
    known = {group.name: {group.size} for group in found}
    for asked in meter.asked[:2]:
        for name, widths in asked.items():
            known[name] |= {width for width in widths if (name, width) in meter.points}
    whole = Meter(found).measure({g.name: range(1, g.size) for g in found})
    before = {name: only(whole[name], widths) for name, widths in known.items()}
    wanted = {
        name: [width]
        for name, width in chosen(target, before).items()
        if min(abs(width - one) for one in known[name]) > NEAR * min(width, found[name].size - width)
    }
    assert wanted and meter.asked[2] == wanted


def test_nothing_is_measured_where_the_width_is_given():
    found, meter = FOUND[Wide], Meter(FOUND[Wide])
    given = found.groups[0]
    limits = Limits((), given=((given.name, max(1, given.size - 1)),))
    curves = curves_of(meter, TARGETS["flops"](0.7), limits)
    assert curves[given.name].widths == (given.size,)
    assert given.name not in {name for name, _ in meter.points} and meter.points


def test_a_budget_out_of_reach_says_so():
    meter = Meter(FOUND[Wide])
    with pytest.raises(InputError, match="the least that can be kept is"):
        curves_of(meter, TARGETS["flops"](0.001), Limits((), min_keep=0.5))
